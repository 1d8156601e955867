"""From an image file to a uint8 tensor."""

import os
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lowres_vision.data._open import MAX_PIXELS, open_image, to_rgb


def decode_image(
    file: str | os.PathLike[str] | IO[bytes],
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Decode an image file to uint8 RGB ``(3, H, W)``.

    The first frame of an animation is taken; EXIF orientation is applied; 16-bit grey is scaled
    to 8 bits; transparency is composited on ``background``.

    Args:
        file: Path or binary file.
        background: RGB in 0..255 that shows through transparent pixels.
        max_pixels: Largest width x height that is decoded; more is refused from the header alone.

    Raises:
        DataError: If the file cannot be decoded, is too large, or holds float or 32-bit pixels,
            whose range nothing states.
    """
    with open_image(file, max_pixels=max_pixels) as image:
        pixels = np.array(to_rgb(image, background))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
