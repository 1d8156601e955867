"""From an image file to a uint8 tensor, with Pillow's silent traps closed.

Pillow turns 16-bit grey white and float TIFF black, keeps the colour under full transparency and
leaves EXIF-rotated photos lying on their side, each without a word. Here 16-bit is scaled, float
refused, transparency composited and rotation applied.
"""

import os
import struct
import zlib
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lowres_vision.data._errors import DataError, Fault

# What Pillow's decoders were seen to raise on damaged files; anything else is a fault of ours.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(
    file: str | os.PathLike[str] | IO[bytes],
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = 2**24,
) -> Tensor:
    """Decode an image file to uint8 RGB ``(3, H, W)``.

    The first frame of an animation is taken; EXIF orientation is applied; 16-bit grey is scaled
    to 8 bits; transparency is composited on ``background``.

    Args:
        file: Path or binary file.
        background: RGB in 0..255 that shows through transparent pixels.
        max_pixels: Largest width x height that is decoded; more is refused from the header alone.

    Raises:
        DataError: If the file cannot be decoded, is too large, or holds float pixels, whose
            range nothing states.
    """
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "image")
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                reason = f"claims {width} x {height} pixels, more than {max_pixels}"
                raise DataError(name, [Fault(reason, "shrink it or raise `max_pixels`")])
            if image.mode == "F":
                reason = "holds float pixels, whose range nothing states"
                raise DataError(name, [Fault(reason, "save it with 8 or 16 bits")])
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image), background))
    except DataError:
        raise
    except _DAMAGE as error:
        reason = f"cannot be decoded ({type(error).__name__}: {error})"
        raise DataError(name, [Fault(reason, "replace the file or drop its row")]) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((levels.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")
