"""Batches from images that all lie in memory, or on the device that trains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from lowres_vision._batch import Batch, PairBatch, collate
from lowres_vision._checks import check_range
from lowres_vision._random import stream
from lowres_vision.data._dataset import MultiResolutionDataset

Indices = Sequence[int | tuple[int, ...]]
Collate = Callable[[Any], Any]


class ResidentLoader:
    """Batches of a data set whose images are read once and then stay in memory.

    It stands in for ``DataLoader(dataset, batch_sampler=..., collate_fn=...)`` without workers and
    gives the same batches. On a GPU, images never travel again::

        dataset = MultiResolutionDataset(manifest, rows=train, cache="cache")
        loader = ResidentLoader(dataset, batch_size=64, shuffle=True, device="cuda")
        transform = BatchTransform(224, mean=mean, std=std)
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                outputs = model(transform(batch.images, mix=batch.mix))

    Random crops and flips are :class:`lowres_vision.augment.BatchTransform`'s, a batch at a time:
    a dataset with a ``transform`` of its own, which wants a sample at a time, is refused.

    **Order.** Without ``batch_sampler``, an epoch deals all samples into batches whose sizes
    differ by at most one: none is dropped or repeated, and no BatchNorm meets a last batch of
    one. The order is a function of ``(seed, epoch)`` alone. Of several devices each takes every
    ``num_replicas``-th batch, and all take equally many. To go on within an epoch after a
    restart, say how many batches of this device were done: ``set_epoch(epoch, start=...)``.

    **Call** ``set_epoch`` **before every epoch**, or each is the same; Lightning does so itself.

    Args:
        dataset: Its rows' images are read when the loader is made, from its cache or its files;
            64 x 64 pixels take 12 KB each.
        batch_size: Most samples in a batch of one device; ignored with ``batch_sampler``.
        shuffle: Draw the order anew each epoch, else keep the dataset's.
        batch_sampler: Gives the indices of each batch, as a DataLoader's does, keyed or not.
        collate: From samples to a batch: :func:`collate` or a collator of
            :mod:`lowres_vision.mixing`.
        device: Where the images stay, and the batches are.
        seed: Seed of the order.
        rank: Number of this device; default that of ``torch.distributed`` when an epoch starts,
            or 0 where it is not in use.
        num_replicas: Number of devices; default as for ``rank``.

    Raises:
        DataError: With every image file that cannot be decoded.
        TypeError: If ``dataset`` is of another type or has a transform.
        ValueError: If a number is out of range, or a data set is too small to give each of
            several devices a sample.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import Manifest, make_toy_pairs
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=3, per_class=3)
        >>> dataset = MultiResolutionDataset(Manifest.read_csv(folder / "train.csv"))
        >>> loader = ResidentLoader(dataset, batch_size=4, shuffle=True)
        >>> [tuple(batch.images.shape) for batch in loader]
        [(3, 3, 64, 64), (3, 3, 64, 64), (3, 3, 64, 64)]
    """

    def __init__(
        self,
        dataset: MultiResolutionDataset,
        *,
        batch_size: int = 64,
        shuffle: bool = False,
        batch_sampler: Iterable[Indices] | None = None,
        collate: Collate = collate,
        device: str | torch.device = "cpu",
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        if not isinstance(dataset, MultiResolutionDataset) or dataset.transform is not None:
            what = "one with a transform" if hasattr(dataset, "transform") else type(dataset)
            raise TypeError(
                "`dataset` must be a MultiResolutionDataset without transform, for samples are "
                f"fetched by the batch: transform the batch, or use a DataLoader; got {what}"
            )
        self.dataset = dataset
        self.device = torch.device(device)
        self.collate = collate
        self.batch_sampler: Any = batch_sampler
        if batch_sampler is None:
            self.batch_sampler = _EvenBatches(
                len(dataset), batch_size, shuffle, seed, rank, num_replicas
            )
        self._resident = dataset.resident(self.device)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch, and with ``start`` how many batches of it to skip.

        A ``batch_sampler`` that was given is told the epoch if it has ``set_epoch``, and decides
        itself where to start.
        """
        if isinstance(self.batch_sampler, _EvenBatches):
            self.batch_sampler.set_epoch(epoch, start=start)
        elif start:
            raise ValueError(f"`start` is for the `batch_sampler` that was given, got {start}")
        elif hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of batches this device still has in this epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch | PairBatch]:
        """Give the batches of the epoch."""
        for indices in self.batch_sampler:
            batch = self.collate(self._resident.__getitems__(indices))
            yield batch if self.device.type == "cpu" else _to(batch, self.device)


class _EvenBatches(Sampler[list[tuple[int, int]]]):
    """All samples once, as ``(index, epoch)``, in batches whose sizes differ by at most one."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int | None,
        num_replicas: int | None,
    ) -> None:
        check_range("batch_size", batch_size, 1)
        check_range("seed", seed, 0)
        if (rank is None) != (num_replicas is None):
            raise ValueError("`rank` and `num_replicas` must be given together")
        if rank is not None and num_replicas is not None:
            check_range("num_replicas", num_replicas, 1)
            check_range("rank", rank, 0, num_replicas - 1)
        self.samples, self.batch_size, self.shuffle, self.seed = samples, batch_size, shuffle, seed
        self._place = None if rank is None or num_replicas is None else (rank, num_replicas)
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        check_range("epoch", epoch, 0)
        check_range("start", start, 0)
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, self._steps(self._placed()[1]) - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, replicas = self._placed()
        if self.samples < replicas:
            raise ValueError(
                f"`dataset` must have a sample for each of {replicas} devices, got {self.samples}"
            )
        order = np.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=stream(self.seed, self.epoch)).numpy()
        parts = np.array_split(order, self._steps(replicas) * replicas)
        for part in parts[rank + self.start * replicas :: replicas]:
            yield [(index, self.epoch) for index in part.tolist()]

    def _steps(self, replicas: int) -> int:
        return -(-self.samples // (self.batch_size * replicas))

    def _placed(self) -> tuple[int, int]:
        if self._place is not None:
            return self._place
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1


def _to(value: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    if isinstance(value, tuple):
        items = (_to(item, device) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
