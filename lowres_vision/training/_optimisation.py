"""Learning rates, their schedule, and what Lightning must not be asked to combine."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the learning rate of each group by its ``lr_scale``, where it has one."""
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)


def make_schedule(
    optimizer: Optimizer,
    trainer: L.Trainer,
    schedule: str | Callable[[Any, int], LRScheduler],
    warmup: float,
) -> LRScheduler:
    """Return the schedule over the steps of a run."""
    steps = trainer.estimated_stepping_batches  # sets the number of batches, too
    if not isinstance(schedule, str):
        batches = _known(trainer.num_training_batches, "of an epoch", "give loaders with a length")
        return schedule(optimizer, -(-batches // trainer.accumulate_grad_batches))
    if schedule == "constant" and warmup == 0:
        return LambdaLR(optimizer, lambda step: 1.0)
    remedy = "give the trainer `max_epochs` or `max_steps`, or take 'constant' without warm-up"
    known = _known(steps, "of the run", remedy)
    warm = round(warmup * known)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, known - warm)))

    return LambdaLR(optimizer, factor)


def _known(steps: float, of: str, remedy: str) -> int:
    if math.isinf(steps):
        raise ValueError(f"`schedule` needs the number of steps {of}, which is open; {remedy}")
    return int(steps)


def accumulation_weight(trainer: L.Trainer, batch_index: int) -> float:
    """Return by how much to multiply a batch's loss, which Lightning divides by the full number.

    The last step of an epoch may accumulate fewer batches than the others; its gradient is to be
    their mean all the same.
    """
    full = trainer.accumulate_grad_batches
    last = trainer.num_training_batches % full
    return full / last if last and batch_index >= trainer.num_training_batches - last else 1.0


def refuse_combinations(
    trainer: L.Trainer, optimizer: Optimizer, *, ema: bool, unfreeze: bool
) -> None:
    """Raise where Lightning would run but not do what is asked.

    Raises:
        ValueError: Naming the two that do not go together.
    """
    sharded = isinstance(trainer.strategy, FSDPStrategy)
    if hasattr(optimizer, "in_second_pass"):
        if trainer.accumulate_grad_batches > 1:
            _refuse(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}",
                "only the last batch would be in the second pass",
                "use larger batches, or 1",
            )
        if trainer.precision == "16-mixed":
            _refuse(
                "precision='16-mixed'",
                "its scaler takes no closure, so the second pass would be left out",
                "use 'bf16-mixed' or '32-true'",
            )
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            _refuse(
                "gradient_clip_algorithm='value'",
                "it would turn the direction of the first pass",
                "clip by 'norm', which keeps it",
            )
        if sharded:
            _refuse(
                "Lightning's FSDPStrategy",
                "the norm would be of one shard",
                "use 'ddp', or cross_validate(strategy='fsdp')",
            )
    if ema and sharded:
        raise ValueError(
            "`ema` does not go with Lightning's FSDPStrategy, which shards the weights and not "
            "their average; use 'ddp', or cross_validate(strategy='fsdp')"
        )
    if unfreeze and trainer.world_size > 1:
        raise ValueError(
            f"`unfreeze` does not go with {trainer.world_size} processes, which settle at the "
            f"start whose gradients they share; use one, or a run per stage"
        )


def _refuse(what: str, why: str, remedy: str) -> None:
    raise ValueError(f"SAM does not go with {what}: {why}; {remedy}")
