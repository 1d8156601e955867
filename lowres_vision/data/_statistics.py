"""Mean and standard deviation of each channel, exact to the last bit, in one pass."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowres_vision._batch import Pair, PairBatch

_LEVELS = torch.arange(256)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel.

    Attributes:
        mean: Mean of each channel in [0, 1], as :func:`lowres_vision.ops.resize` takes it.
        std: Population standard deviation of each channel in [0, 1].
        images: Number of images.
        pixels: Number of pixels, the same in every channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    pixels: int

    @property
    def mean_255(self) -> tuple[float, ...]:
        """Mean of each channel in 0..255."""
        return tuple(255 * value for value in self.mean)

    @property
    def std_255(self) -> tuple[float, ...]:
        """Standard deviation of each channel in 0..255."""
        return tuple(255 * value for value in self.std)


def channel_statistics(images: Iterable[object]) -> ChannelStatistics:
    """Return mean and standard deviation of each channel over all pixels of all images.

    Every pixel counts alike, so a large image counts more than a small one. Pixels are counted by
    level and sums are integers of any size, so that neither order nor number of the images leaves
    a rounding error; memory does not grow with the data.

    Give the rows that are trained on and no others: the statistics of validation rows are
    something a model should not know.

    Args:
        images: uint8 images ``(C, H, W)`` or batches ``(B, C, H, W)``; samples and batches with
            such images in front (``Sample``, ``Batch``, ``(image, target)``). A
            :class:`MultiResolutionDataset` without a transform, say, or a DataLoader over one.

    Returns:
        :class:`ChannelStatistics`, with ``mean`` and ``std`` in [0, 1] and ``mean_255`` and
        ``std_255`` in 0..255.

    Raises:
        TypeError: If an image is not uint8, or an item is a pair, whose two images are one
            picture.
        ValueError: If there is no pixel, or the number of channels differs between images.

    Example:
        >>> black_and_white = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 4, 2)
        >>> channel_statistics([black_and_white])
        ChannelStatistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), images=1, pixels=8)
    """
    counts: Tensor | None = None  # (C, 256)
    number = 0
    for item in images:
        for batch in _image_batches(item):
            found = _count_levels(batch)
            if counts is not None and len(found) != len(counts):
                raise ValueError(
                    f"`images` must agree in channels, got {len(counts)}, then {len(found)}"
                )
            counts = found if counts is None else counts + found
            number += len(batch)
    pixels = 0 if counts is None or not len(counts) else int(counts[0].sum())
    if counts is None or not pixels:
        raise ValueError("`images` must have a pixel, got none")

    means, stds = [], []
    for channel in counts:
        first = int(channel @ _LEVELS)
        second = int(channel @ _LEVELS**2)
        means.append(first / (255 * pixels))
        # Integers until the last division: the textbook formula without its cancellation.
        variance = (pixels * second - first**2) / (255 * pixels) ** 2
        stds.append(math.sqrt(variance))
    return ChannelStatistics(tuple(means), tuple(stds), number, pixels)


def _image_batches(item: object) -> list[Tensor]:
    """Return the images of an item as batches ``(B, C, H, W)``."""
    if isinstance(item, Pair | PairBatch):
        raise TypeError(
            f"`images` must be single images, got a {type(item).__name__}: take one resolution"
        )
    if isinstance(item, tuple) and item:
        item = item[0]
    batches = []
    for image in item if isinstance(item, list) else [item]:
        if not isinstance(image, Tensor) or image.dtype != torch.uint8:
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"`images` must be uint8 tensors, before any transform, got {got}")
        if image.ndim not in (3, 4):
            raise ValueError(
                f"`images` must be (C, H, W) or (B, C, H, W), got shape {tuple(image.shape)}"
            )
        batches.append(image if image.ndim == 4 else image[None])
    return batches


def _count_levels(images: Tensor) -> Tensor:
    """Return how often each level occurs in each channel of ``(B, C, H, W)``: ``(C, 256)``."""
    channels = images.transpose(0, 1).flatten(1).cpu()  # (C, B * H * W)
    return torch.stack([torch.bincount(levels, minlength=256) for levels in channels])
