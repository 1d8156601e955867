"""Random crops, flips, quarter turns and erased boxes that fit both images of a pair."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowres_vision._checks import check_range

Box = tuple[float, float, float, float]  # top, left, bottom, right, in shares of the image


class _Draw(NamedTuple):
    """What is done to both images of a pair, in this order; boxes relative, so that they fit."""

    crop: Box
    flip_left_right: bool
    flip_up_down: bool
    quarter_turns: int
    erase: Box | None


class RandomPairTransform:
    """Crops, flips, turns and erases a picture alike in both its resolutions.

    For the ``transform`` of a ``MultiResolutionDataset(resolution="pair")``. Boxes are drawn on
    the pixels of the smaller image and carried over as shares of the picture, so they end on
    whole pixels there; in the larger image they are rounded to its pixels, which is within half
    a pixel of the smaller one, and exact where one size is a multiple of the other. No pixel is
    interpolated: the larger image shrinks to the smaller one after the transform as it did
    before. Rotations by other than quarter turns would break that, for they blur an image by
    about one of its own pixels, and those differ.

    Crops keep their native size, and a batch of several sizes is a list of images, which
    :func:`lowres_vision.ops.resize` takes. For crops of one size give ``crop=(s, s)`` and
    ``ratio=(1, 1)``.

    **Randomness** comes from ``generator``, without one from PyTorch's default generator. The
    dataset passes a generator of its own where the sampler yields keys: see
    :class:`MultiResolutionDataset`.

    Args:
        crop: Smallest and largest share of the area to keep, in (0, 1], or None for no crop.
        ratio: Smallest and largest width / height of the crop in pixels, drawn evenly in its
            logarithm. A crop that is too wide or too high is cut to the picture.
        flip_left_right: Probability.
        flip_up_down: Probability.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees, each as likely.
        erase: Probability that a box is filled with ``fill``.
        erase_area: Smallest and largest share of the area that is erased; the box is up to three
            times as wide as high, or as high as wide.
        fill: Value of the erased pixels by channel, in the images' unit; default is the mean
            colour of ImageNet in 0..255.

    Example:
        >>> transform = RandomPairTransform(crop=(0.25, 0.25), ratio=(1, 1))
        >>> low, high = torch.rand(3, 64, 64), torch.rand(3, 256, 256)
        >>> low, high = transform(low, high, generator=torch.Generator().manual_seed(0))
        >>> low.shape, high.shape
        (torch.Size([3, 32, 32]), torch.Size([3, 128, 128]))

    References:
        Zhong et al., Random Erasing Data Augmentation, 2017, https://arxiv.org/abs/1708.04896.
        The box here is cut to the picture where the paper draws it again.
    """

    def __init__(
        self,
        *,
        crop: tuple[float, float] | None = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_left_right: float = 0.5,
        flip_up_down: float = 0.0,
        quarter_turns: bool = False,
        erase: float = 0.0,
        erase_area: tuple[float, float] = (0.02, 0.2),
        fill: tuple[float, ...] = (124, 116, 104),
    ) -> None:
        for name, area in (("crop", crop), ("erase_area", erase_area)):
            if area is not None:
                check_range(f"{name}[0]", area[0], 0, open_low=True)
                check_range(f"{name}[1]", area[1], area[0], 1)
        check_range("ratio[0]", ratio[0], 0, open_low=True)
        check_range("ratio[1]", ratio[1], ratio[0])
        check_range("flip_left_right", flip_left_right, 0, 1)
        check_range("flip_up_down", flip_up_down, 0, 1)
        check_range("erase", erase, 0, 1)
        self.crop = crop
        self.ratio = ratio
        self.flip_left_right = flip_left_right
        self.flip_up_down = flip_up_down
        self.quarter_turns = quarter_turns
        self.erase = erase
        self.erase_area = erase_area
        self.fill = fill

    def __call__(
        self, low: Tensor, high: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return both images, transformed alike.

        Args:
            low: ``(C, h, w)`` of any dtype; not written to.
            high: ``(C, H, W)`` of the same picture.
            generator: Source of the draw, on the CPU.
        """
        for name, image in (("low", low), ("high", high)):
            if image.ndim != 3 or not image.numel():
                raise ValueError(
                    f"`{name}` must be (C, H, W) and not empty, got shape {tuple(image.shape)}"
                )
            if self.erase and len(image) != len(self.fill):
                raise ValueError(
                    f"`fill` must have one value per channel: {len(self.fill)} for {len(image)}"
                )
        grid = min(low.shape[1], high.shape[1]), min(low.shape[2], high.shape[2])
        draw = self._draw(grid, generator)
        return self._apply(low, draw), self._apply(high, draw)

    def _draw(self, grid: tuple[int, int], generator: torch.Generator | None) -> _Draw:
        """Draw what to do; a pair always takes twelve numbers, whatever is switched on."""
        u = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        crop: Box = (0, 0, 1, 1)
        turns = int(4 * u[6]) if self.quarter_turns else 0
        if self.crop is not None:
            crop = _box(grid, self.crop, self.ratio, u[:4])
            grid = round((crop[2] - crop[0]) * grid[0]), round((crop[3] - crop[1]) * grid[1])
        if turns % 2:
            grid = grid[::-1]
        erase = _box(grid, self.erase_area, (1 / 3, 3), u[8:]) if u[7] < self.erase else None
        return _Draw(crop, u[4] < self.flip_left_right, u[5] < self.flip_up_down, turns, erase)

    def _apply(self, image: Tensor, draw: _Draw) -> Tensor:
        top, left, bottom, right = _pixels(draw.crop, image)
        image = image[:, top:bottom, left:right]
        flipped = [2] * draw.flip_left_right + [1] * draw.flip_up_down
        image = image.flip(flipped).rot90(draw.quarter_turns, (1, 2)).contiguous()
        if draw.erase is not None:
            top, left, bottom, right = _pixels(draw.erase, image)
            image[:, top:bottom, left:right] = image.new_tensor(self.fill)[:, None, None]
        return image


def _box(
    grid: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], u: list[float]
) -> Box:
    """Return a random box that ends on whole pixels of ``grid``, in shares of it."""
    rows, columns = grid
    pixels = rows * columns * (area[0] + (area[1] - area[0]) * u[0])
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** u[1]
    height = min(max(round(math.sqrt(pixels / aspect)), 1), rows)
    width = min(max(round(math.sqrt(pixels * aspect)), 1), columns)
    top, left = int(u[2] * (rows - height + 1)), int(u[3] * (columns - width + 1))
    return top / rows, left / columns, (top + height) / rows, (left + width) / columns


def _pixels(box: Box, image: Tensor) -> tuple[int, int, int, int]:
    """Return the edges of a relative box in pixels of ``image``, halves rounded up."""
    height, width = image.shape[1:]
    top, left, bottom, right = box
    return (
        int(top * height + 0.5),
        int(left * width + 0.5),
        int(bottom * height + 0.5),
        int(right * width + 0.5),
    )
