"""The loaders of one run: shuffled training batches, ordered validation and prediction."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lowres_vision._batch import Batch, PairBatch, collate
from lowres_vision._checks import check_range
from lowres_vision._random import stream
from lowres_vision.data import MultiResolutionDataset

Collate = Callable[[Any], Any]


class PairsDataModule(L.LightningDataModule):
    """Batches of rows for a Lightning trainer.

    Every epoch deals all training samples into batches whose sizes differ by at most one: none is
    dropped, and no BatchNorm ever meets a last batch of one. The order is a function of ``seed``
    and the epoch alone, so a restart or another number of workers changes nothing.

    Args:
        train: Training samples, e.g. a :class:`~lowres_vision.data.MultiResolutionDataset`, whose
            transforms are then keyed by the epoch.
        held_out: Validation samples, read in order.
        predict: Samples to predict, read in order; default ``held_out``.
        batch_size: Most samples in a batch.
        collate: From training samples to a batch, e.g. a
            :class:`~lowres_vision.mixing.CutMixCollator`. Held-out samples are never mixed.
        workers: Loader processes; 0 reads in this one.
        seed: Seed of the order.
    """

    def __init__(
        self,
        train: Dataset[Any],
        held_out: Dataset[Any],
        *,
        predict: Dataset[Any] | None = None,
        batch_size: int = 32,
        collate: Collate = collate,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("batch_size", batch_size, 1)
        check_range("workers", workers, 0)
        self.train, self.held_out = train, held_out
        self.predict = held_out if predict is None else predict
        self.batch_size, self.collate, self.workers, self.seed = batch_size, collate, workers, seed

    def train_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the training batches, in a new order each epoch."""
        batches = _ShuffledBatches(
            len(self.train),  # type: ignore[arg-type]
            self.batch_size,
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            keyed=isinstance(self.train, MultiResolutionDataset),
        )
        return DataLoader(
            self.train,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the held-out batches, in order."""
        return self._in_order(self.held_out)

    def predict_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the batches to predict, in order."""
        return self._in_order(self.predict)

    def _in_order(self, samples: Dataset[Any]) -> DataLoader[Batch | PairBatch]:
        return DataLoader(
            samples, batch_size=2 * self.batch_size, collate_fn=collate, num_workers=self.workers
        )


class _ShuffledBatches(Sampler[list[Any]]):
    """All samples once, in an order drawn from (seed, epoch), in batches of even size.

    Where ``keyed`` an index comes as ``(index, epoch)``.
    """

    def __init__(
        self, samples: int, batch_size: int, *, seed: int, epoch: Callable[[], int], keyed: bool
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.epoch, self.keyed = epoch, keyed

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch()
        order = torch.randperm(self.samples, generator=stream(self.seed, epoch))
        parts: Sequence[Any] = np.array_split(order.numpy(), len(self))
        for part in parts:
            indices = part.tolist()
            yield [(index, epoch) for index in indices] if self.keyed else indices
