"""Shares of a batch, and what the processes of one run found, put together again.

Every process of a run draws the whole batch's order, crops and mixes, and trains on its share of
the outcome. So one process and several see the same images, whatever the mix pairs with what.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Return this process' number and the number of processes; ``(0, 1)`` for one alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Return whether this is the process that writes files.

    Lightning reads it from what torchrun, SLURM or itself has set, before any process has met
    the others.
    """
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def rank_share(batch: int) -> slice:
    """Return which samples of a batch of ``batch`` this process trains on."""
    rank, world = rank_and_world()
    return slice(rank, batch, world)


def share_weight(batch: int) -> float:
    """Return by how much to multiply the mean loss over this process' share.

    The processes' gradients are averaged. Shares that differ by a sample count by their size, so
    that the average is the gradient of the mean over the batch.
    """
    rank, world = rank_and_world()
    return len(range(rank, batch, world)) * world / batch


def pool_by_row(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Gather rows and values of all processes, each row once, sorted by row.

    Args:
        rows: ``(n,)`` row numbers; as many in each process, some of them there to fill up.
        values: ``(n, ...)`` what belongs to them.

    Returns:
        ``rows`` and ``values`` of N different rows, the same in every process. One process alone
        gets back what it gave.
    """
    _, world = rank_and_world()
    if world == 1:
        return rows, *values
    everything = [_gather(tensor, world) for tensor in (rows, *values)]
    order = torch.argsort(everything[0], stable=True)
    ordered = everything[0][order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return tuple(tensor[order][first] for tensor in everything)


def from_all_processes(found: Any) -> list[Any]:
    """Return what each process found, in their order; all must call this."""
    _, world = rank_and_world()
    everything = [found] * world
    if world > 1:
        dist.all_gather_object(everything, found)
    return everything


def wait_for_all_processes() -> None:
    """Return when all processes have come here.

    A barrier rather than a gather: Gloo's thread lets go of what it gathered a moment after the
    caller goes on, and a process that ends in that moment is aborted ("terminate called without an
    active exception"), as the tensors belong to an interpreter that is gone.
    """
    if rank_and_world()[1] > 1:
        nccl = dist.get_backend() == "nccl"  # which would guess the device
        dist.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)


def _gather(tensor: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
