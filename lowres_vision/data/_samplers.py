"""Drawing rare classes more often, the same draws on any number of devices."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from lowres_vision._checks import check_range
from lowres_vision._random import stream
from lowres_vision.data._weights import Scheme, weigh


# Lightning, Ray and others shard every sampler that is not a DistributedSampler, and would
# shard this one a second time.
class BalancedSampler(DistributedSampler[Any]):
    """Draws samples with replacement, a class as often as its weight and its count demand.

    A class of ``n`` samples is drawn in proportion to ``n * w(n)``, with the weights of
    :func:`class_weights`, and its samples equally often: with ``inverse`` all classes are equally
    frequent, the other schemes stay between that and the frequencies of the data.

    An epoch's draw is a function of ``(seed, epoch)`` alone and is made for all devices together;
    device ``rank`` takes draws ``rank, rank + num_replicas, ...``. A step therefore sees the same
    samples on one device as on several, and where the draws do not divide evenly a few more are
    drawn: nothing is repeated to fill up. To go on within an epoch after a restart, say how many
    samples of this device have been trained on with ``set_epoch(epoch, start=...)``.

    **Call** ``set_epoch`` **before every epoch**, or each is the same; Lightning does so itself.

    Args:
        labels: ``(N,)`` class of each sample of the dataset, in its order: ints or strings. Of a
            ``resolution="both"`` dataset that is ``np.tile(manifest.labels[rows], 2)``.
        scheme: As in :func:`class_weights`.
        beta: As in :func:`class_weights`.
        num_samples: Draws per epoch on all devices together; default N.
        seed: Seed of the draws.
        rank: Number of this device; default that of ``torch.distributed`` when an epoch starts,
            or 0 where it is not in use.
        num_replicas: Number of devices; default as for ``rank``. Give 1 where something else
            shares out the batches, as Accelerate does.
        keyed: Yield ``(index, epoch, number of the draw)`` in place of ``index``: the keys with
            which a :class:`MultiResolutionDataset` makes its randomness independent of workers
            and devices, and different for a sample that is drawn twice.

    Raises:
        ValueError: If there is no sample, a label is negative (unlabelled) or no class, or a
            number is out of range.

    Example:
        >>> labels = ["tit"] * 90 + ["rail"] * 10
        >>> sampler = BalancedSampler(labels, num_samples=1000)
        >>> sampler.set_epoch(3)
        >>> round(sum(labels[index] == "rail" for index in sampler), -2)
        500

    References:
        The distribution is that of ``torch.utils.data.WeightedRandomSampler`` with one weight per
        sample. That one stops at 2^24 samples, and neither knows epochs nor devices.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        *,
        scheme: Scheme = "inverse",
        beta: float = 0.999,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        keyed: bool = False,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuUS":
            raise ValueError(
                f"`labels` must be (N,) classes, ints or strings, with N > 0, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        if labels.dtype.kind == "i" and labels.min() < 0:
            raise ValueError(f"`labels` must be >= 0, got {labels.min()}: unlabelled samples")
        check_range("num_samples", len(labels) if num_samples is None else num_samples, 1)
        check_range("seed", seed, 0)
        if (rank is None) != (num_replicas is None):
            raise ValueError("`rank` and `num_replicas` must be given together")
        if rank is not None and num_replicas is not None:
            check_range("num_replicas", num_replicas, 1)
            check_range("rank", rank, 0, num_replicas - 1)
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._by_class = torch.from_numpy(np.argsort(classes, kind="stable"))
        self._counts = torch.from_numpy(counts)
        self._first = self._counts.cumsum(0) - self._counts
        mass = torch.from_numpy(counts * weigh(counts, scheme=scheme, beta=beta)).cumsum(0)
        self._edges = mass[:-1] / mass[-1]
        self._place = None if rank is None or num_replicas is None else (rank, num_replicas)
        self.total = len(labels) if num_samples is None else num_samples
        self.seed = seed
        self.keyed = keyed
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch to draw, and with ``start`` how many samples of it to skip."""
        check_range("epoch", epoch, 0)
        check_range("start", start, 0)
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the number of samples this device still has in this epoch."""
        _, replicas = self._placed()
        return max(-(-self.total // replicas) - self.start, 0)

    def __iter__(self) -> Iterator[Any]:
        """Draw this device's samples of the epoch."""
        rank, replicas = self._placed()
        total = -(-self.total // replicas) * replicas
        draws = torch.arange(rank, total, replicas)[self.start :]
        # Float64 has 2^53 steps where torch.multinomial works in float32's 2^24.
        uniform = torch.rand(
            total, 2, generator=stream(self.seed, self.epoch), dtype=torch.float64
        )[draws]
        classes = torch.searchsorted(self._edges, uniform[:, 0].contiguous(), right=True)
        within = (uniform[:, 1] * self._counts[classes]).long()
        indices = self._by_class[self._first[classes] + within].tolist()
        if not self.keyed:
            return iter(indices)
        return ((i, self.epoch, draw) for i, draw in zip(indices, draws.tolist(), strict=True))

    def _placed(self) -> tuple[int, int]:
        if self._place is not None:
            return self._place
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1
