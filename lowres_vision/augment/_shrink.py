"""Blur and shrink as one matrix per axis.

A Gaussian blur and every usual resampling kernel are linear and separable, so a blurred and shrunk
image is ``rows @ image @ columns.T``.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Kernel = Literal[
    "area",
    "box",
    "bilinear",
    "bicubic",
    "lanczos",
    "nearest",
    "aliased_bilinear",
    "aliased_bicubic",
]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def shrink_matrix(length: int, size: int, kernel: Kernel, *, blur: float = 0.0) -> Tensor:
    """Return the weights that blur ``length`` pixels and resample them to ``size``.

    Output pixel ``i`` is centred on ``(i + .5) * length / size``. Weights outside the image are
    left out and the rest sum to 1.

    Args:
        length: Pixels of the input axis.
        size: Pixels of the output axis, at most ``length``.
        kernel: See :class:`lowres_vision.augment.Degrade`.
        blur: Standard deviation of the Gaussian, in input pixels.

    Returns:
        ``(size, length)`` float64.
    """
    pixels = torch.arange(length, dtype=torch.float64)
    scale = length / size
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale  # (size, 1)
    if kernel == "nearest":
        weights = (pixels == centres.floor()).double()
    elif kernel == "area":
        begin = torch.maximum(pixels, centres - scale / 2)
        end = torch.minimum(pixels + 1, centres + scale / 2)
        weights = (end - begin).clamp(min=0)
    elif kernel in ("aliased_bilinear", "aliased_bicubic"):
        weights = _clamped_taps(pixels, centres, cubic=kernel == "aliased_bicubic")
    else:
        weights = _filter((pixels + 0.5 - centres) / scale, kernel)  # (size, length)
    weights = weights / weights.sum(1, keepdim=True)
    if blur:
        gaussian = torch.exp(-((pixels[:, None] - pixels) ** 2) / (2 * blur**2))
        weights = weights @ (gaussian / gaussian.sum(1, keepdim=True))
    return weights


def _clamped_taps(pixels: Tensor, centres: Tensor, *, cubic: bool) -> Tensor:
    """Return the plain kernels' weights: two or four neighbours, whatever lies between outputs."""
    below = torch.floor(centres - 0.5)
    weights = torch.zeros(len(centres), len(pixels), dtype=torch.float64)
    for offset in (-1, 0, 1, 2) if cubic else (0, 1):
        distance = below + offset + 0.5 - centres
        weight = _cubic(distance, -0.75) if cubic else (1 - distance.abs()).clamp(min=0)
        weights += weight * (pixels == (below + offset).clamp(0, len(pixels) - 1))
    return weights


def _filter(x: Tensor, kernel: str) -> Tensor:
    """Return Pillow's filters at distances in output pixels."""
    if kernel == "box":
        return ((x > -0.5) & (x <= 0.5)).double()
    if kernel == "bilinear":
        return (1 - x.abs()).clamp(min=0)
    if kernel == "bicubic":
        return _cubic(x, -0.5)
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Return Keys' cubic kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def shrunk_side(side: int, factor: float) -> int:
    """Return ``side / factor``, rounded half up, at least 1."""
    return max(math.floor(side / factor + 0.5), 1)
