"""What travels from a dataset to a training step: samples, and batches of them."""

from collections.abc import Sequence
from typing import NamedTuple, overload

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


class Fetched(Sequence[Sample | Pair]):
    """Samples that were fetched together: a sequence of them, whose fields lie side by side.

    To a reader it is a list of ``Sample`` or ``Pair``, each made when it is asked for. A collator
    takes the fields whole, and a batch then holds no Python object per sample.

    Args:
        images: One batch of images, or the low and the high ones of pairs, each ``(B, C, H, W)``
            or a list of B ``(C, H, W)``.
        targets: ``(B,)`` int64 class indices.
        rows: ``(B,)`` int64.

    Example:
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> fetched = Fetched((images,), torch.tensor([1, 0]), torch.tensor([7, 3]))
        >>> len(fetched), fetched[1].target, fetched[1].row
        (2, 0, 3)
        >>> collate(fetched).images is images
        True
    """

    def __init__(
        self, images: tuple[Tensor | list[Tensor], ...], targets: Tensor, rows: Tensor
    ) -> None:
        self.images, self.targets, self.rows = images, targets, rows

    def __len__(self) -> int:
        """Return B."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample | Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample | Pair]: ...
    def __getitem__(self, index: int | slice) -> Sample | Pair | list[Sample | Pair]:
        """Return one sample, or a list of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        image, *high = (column[index] for column in self.images)
        target, row = int(self.targets[index]), int(self.rows[index])
        return Pair(image, high[0], target, row) if high else Sample(image, target, row)


def collate(samples: Sequence[Sample] | Sequence[Pair] | Fetched) -> Batch | PairBatch:
    """Turn samples into a batch; images of one size are stacked, of several kept as a list."""
    if isinstance(samples, Fetched):
        images = samples.images
        targets, rows = samples.targets, samples.rows
    else:
        columns = [0, 1] if isinstance(samples[0], Pair) else [0]
        images = tuple(stack_images([sample[i] for sample in samples]) for i in columns)  # type: ignore[misc]
        targets = torch.stack([torch.as_tensor(sample.target) for sample in samples])
        rows = torch.tensor([sample.row for sample in samples])
    if len(images) == 2:
        return PairBatch(*images, targets, rows)
    return Batch(images[0], targets, rows)


def stack_images(images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Stack ``(C, H, W)`` images of one size to ``(B, C, H, W)``; return others as they are."""
    if isinstance(images, Tensor):
        return images
    same = all(image.shape == images[0].shape for image in images)
    return torch.stack(images) if same else images
