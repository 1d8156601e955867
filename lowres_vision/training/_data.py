"""The loaders of one run: shuffled training batches, ordered validation and prediction."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lowres_vision._batch import Batch, PairBatch, collate
from lowres_vision._checks import check_range
from lowres_vision._random import stream
from lowres_vision.data import BalancedSampler, MultiResolutionDataset
from lowres_vision.training._in_flight import InFlight
from lowres_vision.training._ranks import rank_and_world

Collate = Callable[[Any], Any]


class PairsDataModule(L.LightningDataModule):
    """Batches of rows for a Lightning trainer.

    Every epoch deals its training samples into batches whose sizes differ by at most one: none is
    dropped, and no BatchNorm ever meets a last batch of one. The order is a function of ``seed``
    and the epoch alone, so a restart or another number of workers changes nothing, and a run that
    is resumed within an epoch goes on with the next batch.

    Of several processes each reads whole training batches, so that mixes are drawn for all
    of a batch and crops are the same whatever the number of processes; :class:`Classifier` then
    takes its share. Held-out and predicted samples are dealt to the processes in turn.

    Args:
        train: Training samples, e.g. a :class:`~lowres_vision.data.MultiResolutionDataset`, whose
            transforms are then keyed by the epoch.
        held_out: Validation samples, read in order.
        predict: Samples to predict, read in order; default ``held_out``.
        batch_size: Most samples in a batch, over all processes together; 3 at 2, of an odd number.
        collate: From training samples to a batch, e.g. a
            :class:`~lowres_vision.mixing.CutMixCollator`. Held-out samples are never mixed.
        sampler: Draws the training samples in place of shuffling them. It must draw for all
            processes: ``BalancedSampler(..., rank=0, num_replicas=1)``.
        samples_per_epoch: Samples that a shuffled epoch takes; default all. The next epoch goes on
            where it stopped, so that in the long run all come equally often.
        workers: Loader processes; 0 reads in this one.
        seed: Seed of the order.

    Raises:
        ValueError: If a number is out of range, or ``sampler`` and ``samples_per_epoch`` are both
            given.
    """

    def __init__(
        self,
        train: Dataset[Any],
        held_out: Dataset[Any],
        *,
        predict: Dataset[Any] | None = None,
        batch_size: int = 32,
        collate: Collate = collate,
        sampler: BalancedSampler | None = None,
        samples_per_epoch: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("batch_size", batch_size, 1)
        check_range("workers", workers, 0)
        check_range("samples_per_epoch", 1 if samples_per_epoch is None else samples_per_epoch, 1)
        if sampler is not None and samples_per_epoch is not None:
            raise ValueError(
                "`samples_per_epoch` must be None with a `sampler`; see its num_samples"
            )
        self.train, self.held_out = train, held_out
        self.predict = held_out if predict is None else predict
        self.batch_size, self.collate, self.workers, self.seed = batch_size, collate, workers, seed
        self.sampler, self.samples_per_epoch = sampler, samples_per_epoch
        self._start = (0, 0)
        self._in_flight: list[InFlight] = []

    def train_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the training batches, in a new order each epoch."""
        keyed = isinstance(self.train, MultiResolutionDataset)
        samples: int = len(self.train)  # type: ignore[arg-type]
        per_epoch = self.samples_per_epoch or samples
        if self.sampler is not None:
            per_epoch = len(self.sampler)
        world = rank_and_world()[1]
        if min(self.batch_size, per_epoch) < world:
            raise ValueError(
                f"`batch_size` must give each of {world} processes a sample, got {self.batch_size} "
                f"of {per_epoch} samples"
            )

        def draw(epoch: int) -> list[Any]:
            if self.sampler is not None:
                self.sampler.set_epoch(epoch)
                return list(self.sampler)
            return _shuffled(samples, per_epoch, seed=self.seed, epoch=epoch, keyed=keyed)

        batches = _Batches(
            draw,
            per_epoch,
            self.batch_size,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            start=lambda: self._start,
        )
        return _Loader(
            self._noted(self.train),
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            # PyTorch's own generator would be moved by every start of a loader.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the held-out batches, in order."""
        return self._in_order(self.held_out)

    def predict_dataloader(self) -> DataLoader[Batch | PairBatch]:
        """Return the batches to predict, in order."""
        return self._in_order(self.predict)

    def state_dict(self) -> dict[str, int]:
        """Return the next batch's epoch and how many batches of that epoch came before it."""
        assert self.trainer is not None
        done = (self.trainer.fit_loop.batch_idx + 1) % int(self.trainer.num_training_batches)
        return {"epoch": self.trainer.current_epoch, "batch": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start with the batch that ``state`` names."""
        self._start = (state["epoch"], state["batch"])

    def rows_in_flight(self, processes: Collection[int] | None) -> list[int]:
        """Return the rows that these loader processes, or all, last began to read."""
        return sorted({row for noted in self._in_flight for row in noted.rows(processes)})

    def _noted(self, samples: Dataset[Any]) -> Dataset[Any]:
        if self.workers == 0:
            return samples
        noted = InFlight(samples, workers=self.workers, most=max(2 * self.batch_size, 3))
        self._in_flight = [*self._in_flight[-2:], noted]  # training, validation and prediction
        return noted

    def _in_order(self, samples: Dataset[Any]) -> DataLoader[Batch | PairBatch]:
        count: int = len(samples)  # type: ignore[arg-type]
        return DataLoader(
            self._noted(samples),
            sampler=_Turns(count),
            batch_size=2 * self.batch_size,
            collate_fn=collate,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.seed),
        )


def _shuffled(samples: int, per_epoch: int, *, seed: int, epoch: int, keyed: bool) -> list[Any]:
    """Return an epoch's indices: its part of an endless row of shuffled passes over the samples.

    Where ``keyed`` an index comes as ``(index, pass)``; an epoch of all samples is one pass.
    """
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    passes = range(first // samples, -(-last // samples))
    drawn = [
        (index, number)
        for number in passes
        for index in torch.randperm(samples, generator=stream(seed, number)).tolist()
    ]
    start = first - passes.start * samples
    part = drawn[start : start + per_epoch]
    return list(part) if keyed else [index for index, _ in part]


class _Loader(DataLoader[Any]):
    """Starts an epoch when its first batch is asked for, not when an iterator is made.

    A schedule that asks Lightning for the number of steps has it make one while it sets up. What a
    run that is resumed goes on with is known only later, how much so is up to the strategy; loader
    processes that read ahead would by then have begun with the first batch of epoch 0.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class _Batches(Sampler[list[Any]]):
    """An epoch's indices in batches of even size, without those that were trained on already."""

    def __init__(
        self,
        draw: Callable[[int], list[Any]],
        samples: int,
        batch_size: int,
        *,
        epoch: Callable[[], int],
        start: Callable[[], tuple[int, int]],
    ) -> None:
        self.draw, self.samples, self.batch_size = draw, samples, batch_size
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, which is what Lightning counts with."""
        batches = -(-self.samples // self.batch_size)
        # Batches of two, of an odd number of samples: one takes three, none is left with one.
        return batches if self.batch_size == 1 else max(1, min(batches, self.samples // 2))

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch()
        indices = self.draw(epoch)
        resumed, done = self.start()
        parts = np.array_split(np.arange(len(indices)), len(self))
        for part in parts[done if epoch == resumed else 0 :]:
            yield [indices[place] for place in part]


class _Turns(Sampler[int]):
    """Every so-manyth sample, as many in each process: the first few come again at the end.

    A process with a batch fewer than the others would leave them waiting for it. How many there
    are is known when the loader starts, not always when it is made.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return -(-self.samples // rank_and_world()[1])

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        return iter((np.arange(rank, len(self) * world, world) % self.samples).tolist())
