"""The process that decodes for an audit: lines of paths come in, one line goes out per file.

It runs apart because a decoder written in C may crash or hang on a damaged file;
``_audit_pool`` is the other end.
"""

import hashlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lowres_vision.data._duplicates import hash_thumbnail, thumbnail
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._open import open_image, to_rgb

# Below this range of averaged grey levels a hash is of compression noise, not of the picture.
_FLAT = 8


class Inspection(NamedTuple):
    """What a file that decodes turned out to hold."""

    height: int
    width: int
    format: str
    animated: bool
    flat: bool
    hash: int
    digest: str


def inspect(path: str, *, max_pixels: int) -> Inspection:
    """Decode one file whole and describe it.

    Raises:
        DataError: If :func:`lowres_vision.data.decode_image` would raise it.
    """
    data = _read(path)
    with open_image(io.BytesIO(data), max_pixels=max_pixels) as image:
        rgb = to_rgb(image)
        animated = _is_animated(image)
    grey = thumbnail(rgb)
    return Inspection(
        height=rgb.height,
        width=rgb.width,
        format=str(image.format),
        animated=animated,
        flat=int(grey.max()) - int(grey.min()) < _FLAT,
        hash=hash_thumbnail(grey),
        digest=hashlib.sha256(data).hexdigest(),
    )


def serve() -> None:
    """Inspect files as asked on stdin, until it closes.

    A request is a JSON list of paths. An answer is a JSON list: the fields of an
    :class:`Inspection`, or the reason and the remedy of a fault.
    """
    max_pixels = int(sys.argv[1])
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    print("ready", file=answers, flush=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libtiff writes its complaints there
        os.dup2(silence, stream)
    for line in sys.stdin:
        for path in json.loads(line):
            print(json.dumps(_answer(path, max_pixels)), file=answers, flush=True)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        fault = Fault(f"cannot be read ({error.strerror})", "put it back or mend its permissions")
        raise DataError(path, [fault]) from None


def _answer(path: str, max_pixels: int) -> Inspection | tuple[str, str]:
    try:
        return inspect(path, max_pixels=max_pixels)
    except DataError as error:
        return error.faults[0].reason, error.faults[0].remedy
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return f"broke the decoder ({what})", "replace the file or drop its row"


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage beyond the first frame, which alone is read: an IndexError for GIF
        return True
