"""One axis of a resize: which input pixels an output pixel reads, and with what weights.

The axis of an image has ``length`` pixels; pixel j covers [j, j + 1) and has its centre at
j + 1/2. A box [start, start + extent) is cut into ``size`` output pixels of width
``scale = extent / size``, whose centres lie at ``c_i = start + (i + 1/2) * scale`` (half-pixel
centres, ``align_corners=False``). The box owns the pixels floor(start) .. ceil(start + extent) - 1
and no other pixel is ever read. With the filter f,

- plain: ``f(j + 1/2 - c_i)`` for the 2 (bilinear) or 4 (bicubic) pixels nearest to c_i, and a
  pixel outside the box is replaced by the box's nearest;
- antialiased: ``f((j + 1/2 - c_i) / max(scale, 1))`` for the box's own pixels, divided by
  their sum.

The bicubic filter is Keys' (1981, https://doi.org/10.1109/TASSP.1981.1163711) with a = -0.75, or
-0.5 when antialiased: the constants of OpenCV and of Pillow, which torch uses too.
"""

import torch
from torch import Tensor

PLAIN_CUBIC = -0.75
ANTIALIASED_CUBIC = -0.5


def tap_matrix(
    starts: Tensor, extents: Tensor, length: int, size: int, *, mode: str, antialias: bool
) -> Tensor:
    """Return the weights as dense matrices, ``(..., size, length)`` float64.

    Args:
        starts: ``(...)`` float64, where each box begins, in pixels.
        extents: ``(...)`` float64, how long each box is, > 0.
        length: Pixels of the input axis.
        size: Pixels of the output axis.
        mode: "bilinear" or "bicubic".
        antialias: Widen the filter with the scale when shrinking.
    """
    pixels = torch.arange(length, dtype=torch.float64, device=starts.device)  # (length,)
    outputs = torch.arange(size, dtype=torch.float64, device=starts.device)  # (size,)
    starts, extents = starts[..., None], extents[..., None]  # (..., 1)
    scales = extents / size
    centres = starts + (outputs + 0.5) * scales  # (..., size)
    first = torch.floor(starts).clamp(0, length - 1)  # (..., 1)
    last = (torch.ceil(starts + extents) - 1).clamp(0, length - 1)

    if antialias:
        distances = (pixels + 0.5 - centres[..., None]) / scales.clamp(min=1)[..., None]
        weights = _filter(distances, mode, ANTIALIASED_CUBIC)  # (..., size, length)
        inside = (pixels >= first) & (pixels <= last)  # (..., length)
        weights = weights * inside[..., None, :]
        return weights / weights.sum(-1, keepdim=True)

    below = torch.floor(centres - 0.5)  # (..., size)
    weights = torch.zeros_like(centres[..., None] + pixels)  # (..., size, length)
    for offset in (0, 1) if mode == "bilinear" else (-1, 0, 1, 2):
        tap = below + offset
        weight = _filter(tap + 0.5 - centres, mode, PLAIN_CUBIC)
        read = torch.minimum(torch.maximum(tap, first), last)
        weights = weights + weight[..., None] * (read[..., None] == pixels)
    return weights


def _filter(distance: Tensor, mode: str, a: float) -> Tensor:
    x = distance.abs()
    if mode == "bilinear":
        return (1 - x).clamp(min=0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
