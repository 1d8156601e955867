"""What travels from a dataset to a training step: samples, and batches of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowres_vision.ops import Mix


class Sample(NamedTuple):
    """One image.

    ``image`` is uint8 ``(C, H, W)`` unless a transform made it otherwise, ``target`` a class index
    (-1: unlabelled) or ``(K,)`` probabilities, ``row`` the row of the manifest.
    """

    image: Tensor
    target: int | Tensor
    row: int


class Pair(NamedTuple):
    """One row at both resolutions; as :class:`Sample`, with two images of one picture."""

    low: Tensor
    high: Tensor
    target: int | Tensor
    row: int


class Batch(NamedTuple):
    """Samples of one step.

    ``images`` is ``(B, C, H, W)``, or a list of ``(C, H, W)`` where native sizes differ;
    ``targets`` is ``(B,)`` class indices or ``(B, K)`` probabilities; ``rows`` is ``(B,)``.
    ``mix`` is a drawn CutMix or MixUp that still has to be applied by the resize, or None.
    """

    images: Tensor | list[Tensor]
    targets: Tensor
    rows: Tensor
    mix: Mix | None = None


class PairBatch(NamedTuple):
    """Pairs of one step; as :class:`Batch`, with ``low`` and ``high`` in place of ``images``."""

    low: Tensor | list[Tensor]
    high: Tensor | list[Tensor]
    targets: Tensor
    rows: Tensor
    mix: Mix | None = None


def collate(samples: Sequence[Sample] | Sequence[Pair]) -> Batch | PairBatch:
    """Turn samples into a batch; images of one size are stacked, of several kept as a list."""
    targets = torch.stack([torch.as_tensor(sample.target) for sample in samples])
    rows = torch.tensor([sample.row for sample in samples])
    if isinstance(samples[0], Pair):
        low = stack_images([pair.low for pair in samples])  # type: ignore[union-attr]
        high = stack_images([pair.high for pair in samples])  # type: ignore[union-attr]
        return PairBatch(low, high, targets, rows)
    return Batch(stack_images([s.image for s in samples]), targets, rows)  # type: ignore[union-attr]


def stack_images(images: list[Tensor]) -> Tensor | list[Tensor]:
    """Stack ``(C, H, W)`` images of one size to ``(B, C, H, W)``; return others as they are."""
    same = all(image.shape == images[0].shape for image in images)
    return torch.stack(images) if same else images
