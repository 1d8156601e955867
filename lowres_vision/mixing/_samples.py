"""What a collator is handed: samples read field by field, checked, and turned into a key."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowres_vision._batch import Fetched, Pair, Sample


class Fields(NamedTuple):
    """Samples, field by field: one column of images, or two of pairs; rows where there are any."""

    images: Sequence[Tensor | list[Tensor]]
    targets: list[int | Tensor]
    rows: list[int] | None

    @property
    def names(self) -> list[str]:
        """How an error names each sample."""
        if self.rows is None:
            return [f"item {index} of the batch" for index in range(len(self.targets))]
        return [f"row {row}" for row in self.rows]

    @property
    def keys(self) -> list[int]:
        """The rows; without rows, a checksum of the first image and of all targets."""
        if self.rows is not None:
            return self.rows
        checksum = zlib.crc32(_raw(self.images[0][0]))
        for target in self.targets:
            checksum = zlib.crc32(_raw(torch.as_tensor(target)), checksum)
        return [checksum]


def read_samples(samples: Sequence[Any]) -> Fields:
    """Return the fields of ``Sample``, ``Pair`` or ``(image, target)`` samples."""
    if not samples:
        raise ValueError("`samples` must hold at least one sample, got none")
    if isinstance(samples, Fetched):
        return Fields(samples.images, samples.targets.tolist(), samples.rows.tolist())
    kinds = {type(sample) for sample in samples}
    first = samples[0]
    if len(kinds) == 1 and isinstance(first, Sample | Pair):
        *images, targets, rows = (list(field) for field in zip(*samples, strict=True))
    elif kinds <= {tuple, list} and all(len(sample) == 2 for sample in samples):
        *images, targets = (list(field) for field in zip(*samples, strict=True))
        rows = None
    else:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"`samples` must all be of type Sample, all Pair or all (image, target), got {names}"
        )
    for column in images:
        _check_images(column)
    return Fields(images, targets, rows)


def _check_images(images: Sequence[object]) -> None:
    first = images[0]
    for image in images:
        if not isinstance(image, Tensor):
            raise TypeError(
                f"an image must be a (C, H, W) tensor, got {type(image).__name__}; convert it in "
                "the dataset's transform"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"an image must be uint8 or float, got {image.dtype}")
        if image.ndim != 3:
            raise ValueError(f"an image must be (C, H, W), got shape {tuple(image.shape)}")
        if isinstance(first, Tensor) and image.dtype != first.dtype:
            raise TypeError(
                f"images of a batch must share a dtype, got {first.dtype} and {image.dtype}"
            )


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
