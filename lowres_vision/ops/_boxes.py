"""Random crop boxes, drawn for a whole batch at once."""

import math

import torch
from torch import Tensor

from lowres_vision._checks import check_range, check_size

_TRIES = 10  # torchvision's number of draws before it falls back to a centre crop


def random_resized_crop_boxes(
    batch: int,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one random crop per image, with the distribution of torchvision's RandomResizedCrop.

    A crop's area is uniform in ``scale`` times the image's area and the logarithm of its aspect
    ratio (width over height) is uniform in ``ratio``; sides are rounded to whole pixels and the
    position is uniform. The first of ten draws that fits is taken; where none fits, the largest
    centre crop whose ratio lies within ``ratio``.

    Args:
        batch: Number of boxes, B.
        size: Height and width of the images, in pixels.
        scale: Smallest and largest share of the area, both > 0.
        ratio: Smallest and largest width / height, both > 0.
        generator: Source of randomness; the boxes are made on its device. None: torch's default
            CPU generator.

    Returns:
        ``(B, 4)`` float32 of whole numbers: top, left, height, width, in pixels.

    Raises:
        TypeError: If ``size`` is not two ints.
        ValueError: If ``batch`` is negative, or a range is empty or not positive.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> boxes = random_resized_crop_boxes(2, (64, 48), generator=generator)
        >>> boxes.shape, bool((boxes[:, 0] + boxes[:, 2] <= 64).all())
        (torch.Size([2, 4]), True)

    References:
        Szegedy et al., Going deeper with convolutions, 2015, https://arxiv.org/abs/1409.4842,
        section 6, describes the crop; the ten tries and the fallback are torchvision's.
    """
    height, width = check_size("size", size)
    check_range("batch", batch, 0)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        check_range(f"{name}[0]", low, 0, open_low=True)
        check_range(f"{name}[1]", high, low)
    device = generator.device if generator is not None else torch.device("cpu")
    draw = torch.rand(4, batch, _TRIES, generator=generator, device=device, dtype=torch.float64)

    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])  # (B, tries)
    low, high = math.log2(ratio[0]) / 2, math.log2(ratio[1]) / 2
    # exp and sqrt would go to MKL, whose threads meet even over a few hundred numbers: 4 to 7 ms
    # a call, against 10 us, where another process has the core of one of them.
    stretch = torch.exp2(low + (high - low) * draw[1])  # the root of the aspect ratio
    side = area * torch.rsqrt(area)
    heights = torch.round(side / stretch)
    widths = torch.round(side * stretch)
    tops = torch.floor(draw[2] * (height - heights + 1))
    lefts = torch.floor(draw[3] * (width - widths + 1))
    boxes = torch.stack([tops, lefts, heights, widths], dim=-1)  # (B, tries, 4)

    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.to(torch.uint8).argmax(dim=1)  # the first of equal maxima
    chosen = boxes[torch.arange(batch, device=device), first]  # (B, 4)
    fallback = boxes.new_tensor(_centre_box(height, width, ratio))
    return torch.where(fits.any(dim=1, keepdim=True), chosen, fallback).float()


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
