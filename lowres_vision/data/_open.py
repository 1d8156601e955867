"""From an image file to upright 8-bit RGB, with Pillow's silent traps closed.

Pillow turns 16-bit grey white and float TIFF black, keeps the colour under full transparency and
leaves EXIF-rotated photos lying on their side, each without a word; EPS files it hands to
Ghostscript, an interpreter of programs. Here 16-bit is scaled, float, 32-bit and EPS refused,
transparency composited and rotation applied.

Without PyTorch, so that the processes of an audit start in a moment.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lowres_vision.data._errors import DataError, Fault

MAX_PIXELS = 2**24

# Pixel formats only. HEIF is there where the user has registered a plug-in for it.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# What Pillow's decoders were seen to raise on damaged files; anything else is a fault of ours.
# Its warnings come as errors where the user has made them so.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    OverflowError,
    MemoryError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# What makes an image of an EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def open_image(
    file: str | os.PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image; damage that shows inside the ``with`` is a DataError that names the file."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "image")
    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    try:
        with Image.open(file, formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                reason = f"claims {width} x {height} pixels, more than {max_pixels}"
                raise DataError(name, [Fault(reason, "shrink it or raise `max_pixels`")])
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                kind = "float" if image.mode == "F" else "32-bit"
                reason = f"holds {kind} pixels, whose range nothing states"
                raise DataError(name, [Fault(reason, "save it with 8 or 16 bits")])
            yield image
    except DataError:
        raise
    except _DAMAGE as error:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # its words hold the file object's address
            what = "no image format is recognised"
        reason = f"cannot be decoded ({what})"
        raise DataError(name, [Fault(reason, "replace the file or drop its row")]) from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Return an open image upright, with 8 bits, without transparency, as RGB."""
    image.load()  # first: a TIFF turns itself when it is loaded
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in _TURNS:
        # `ImageOps.exif_transpose` also writes the EXIF anew, which odd tags do not survive: of
        # 12,000 healthy pictures with such tags it lost 3,749, by errors of ten kinds.
        image = image.transpose(_TURNS[orientation])
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        levels = np.asarray(image).astype(np.int64)
        clear = image.info.get("transparency")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image)
    if image.mode == "RGB":  # `convert` would copy it
        image.load()
        return image
    return image.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) that an open image has once its EXIF orientation is applied."""
    turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    if turned and image.format != "TIFF":  # of a TIFF, Pillow tells the upright size
        return image.size
    return image.height, image.width
