"""One degradation, and the pure function that applies it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowres_vision.augment._jpeg import jpeg_round_trip
from lowres_vision.augment._shrink import Kernel, shrink_matrix


@dataclass(frozen=True)
class Degradation:
    """One drawn degradation, in the order in which it is applied.

    Attributes:
        blur: Standard deviation of the Gaussian, in pixels of the input.
        size: ``(height, width)`` after shrinking; None keeps the size.
        kernel: Resampling kernel, see :class:`Degrade`.
        noise: Standard deviation of the Gaussian noise, in levels of 0..255.
        seed: Seed of the noise.
        quality: JPEG quality, or None for no JPEG.
    """

    blur: float = 0.0
    size: tuple[int, int] | None = None
    kernel: Kernel = "area"
    noise: float = 0.0
    seed: int = 0
    quality: int | None = None


def degrade(image: Tensor, degradation: Degradation) -> Tensor:
    """Blur, shrink, add noise to and compress one image, a pure function of its arguments.

    Blur and shrinking are computed in float32 without rounding between them; the result is
    rounded to whole levels before JPEG.

    Args:
        image: uint8 ``(C, H, W)``; C of 1 or 3 where JPEG is asked for.
        degradation: What to do.

    Returns:
        uint8 ``(C, height, width)`` on the image's device.

    Example:
        >>> image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
        >>> degrade(image, Degradation(size=(2, 2)))[0]
        tensor([[14, 18],
                [46, 50]], dtype=torch.uint8)
    """
    pixels = blur_and_shrink(image[None], degradation)[0]  # (C, height, width)
    if degradation.noise:
        generator = torch.Generator().manual_seed(degradation.seed)
        noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        pixels = pixels + degradation.noise * noise
    levels = (pixels + 0.5).floor().clamp(0, 255).to(torch.uint8)
    quality = degradation.quality
    return levels if quality is None else jpeg_round_trip(levels, quality)


def blur_and_shrink(images: Tensor, degradation: Degradation) -> Tensor:
    """Apply the linear part to ``(B, C, H, W)``; returns float32 levels, not rounded."""
    pixels = images.float()
    height, width = images.shape[-2:]
    size = degradation.size or (height, width)
    if not degradation.blur and size == (height, width):
        return pixels
    rows, columns = (
        shrink_matrix(length, side, degradation.kernel, blur=degradation.blur).to(pixels)
        for length, side in zip((height, width), size, strict=True)
    )
    return rows @ pixels @ columns.T
