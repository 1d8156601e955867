"""A run that stops in the step whose loss or gradient is NaN or inf, and leaves it on disk."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lowres_vision._batch import Batch, PairBatch
from lowres_vision._checks import check_range
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._diagnosis import diagnose, random_state
from lowres_vision.training._failed_step import FailedStep
from lowres_vision.training._ranks import (
    from_all_processes,
    is_first_process,
    rank_and_world,
    wait_for_all_processes,
)
from lowres_vision.training._sharding import Sharded, whole


class NonFiniteGuard(L.Callback):
    """Stops training in the step whose loss or gradient is NaN or inf, before a weight moves.

    The error names the rows, the first Module that returned something not finite, and a folder
    from which one command runs the step again; see :func:`replay`. In the folder are the
    classifier as it was before the step, the batch as it was read, and the random states, in plain
    containers.

    A finite loss with an infinite gradient would make the weights NaN in this step and the loss
    only in the next, so gradients are looked at as well. Not where somebody else does: a scaler
    (16-mixed) and :class:`~lowres_vision.optim.SAM` leave such a step out, which is their way to
    live with it. Here these steps are counted, logged as ``skipped_steps``, and
    ``max_skipped`` in a row stop the run.

    Where the weights are shared out over processes (``strategy="fsdp"``) all of them stop, and the
    step is saved to be run again in one process, with the whole batch; nothing is looked for on the
    spot.

    The guard has to stand behind callbacks that draw or seed random numbers. A step costs it a copy
    of the buffers (BatchNorm's statistics), and the largest gradient of each parameter.

    Args:
        directory: The run's; the step goes into its ``failure``.
        max_skipped: Number of steps left out in a row that stop the run, at least 1. A scaler
            begins at 65536 and halves, so 17 bring it below 1.

    Raises:
        FloatingPointError: In the run, as described.
    """

    def __init__(self, directory: Path, *, max_skipped: int = 20) -> None:
        check_range("max_skipped", max_skipped, 1)
        self.directory = directory
        self.max_skipped = max_skipped
        self.skipped_steps = 0
        self._in_a_row = 0
        self._steps, self._counter = 0, 0.0
        self._batch: tuple[Any, int] = (None, 0)
        self._random_states: list[dict[str, Tensor]] = []  # when each pass of the step began
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._places: list[dict[str, Tensor | None]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Find the layers that have buffers; walking the Modules in each step would cost more."""
        self._places = [part._buffers for part in module.modules() if part._buffers]

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how things are before the step."""
        self._batch = batch, batch_idx
        self._random_states = [random_state()]
        self._steps, self._counter = trainer.global_step, _counter(trainer)
        buffers = [b for place in self._places for b in place.values() if b is not None]
        if [id(buffer) for buffer, _ in self._buffers] != [id(buffer) for buffer in buffers]:
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        elif buffers:
            torch._foreach_copy_([copy for _, copy in self._buffers], buffers)

    def on_before_backward(
        self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss of a pass."""
        finite = math.isfinite(loss.item())
        if isinstance(trainer.strategy, Sharded):  # all have to stop together, to put weights whole
            finite = all(from_all_processes(finite))
        if not finite:
            self._stop(trainer, module, "loss")

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look at the gradients of a pass."""
        self._random_states.append(random_state())
        if _skips(trainer) is not None:
            return
        gradients = [
            weight.grad
            for group in trainer.optimizers[0].param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        # A sum of squares may overflow where no element does, so the largest element decides; but
        # it takes 12.5 ms to find where the sum takes 0.4 (5 million weights, one core).
        if gradients and not any(
            _finite(torch._foreach_norm(gradients, order)) for order in (2.0, torch.inf)
        ):
            self._stop(trainer, module, "gradient")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a step that was left out."""
        if _skips(trainer) is None or trainer.global_step == self._steps:
            return
        if _counter(trainer) <= self._counter:
            self._in_a_row = 0
            return
        self.skipped_steps += 1
        self._in_a_row += 1
        if self._in_a_row >= self.max_skipped:
            self._stop(trainer, module, "gradient")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the steps left out so far."""
        if _skips(trainer) is not None:
            module.log("skipped_steps", float(self.skipped_steps))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"skipped_steps": self.skipped_steps, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counters back."""
        self.skipped_steps, self._in_a_row = state_dict["skipped_steps"], state_dict["in_a_row"]

    def _stop(self, trainer: L.Trainer, module: Any, kind: Literal["loss", "gradient"]) -> None:
        """Save the pass, run it again to see what was wrong, and raise."""
        batch, batch_index = self._batch
        if not isinstance(module, Classifier) or not isinstance(batch, Batch | PairBatch):
            raise FloatingPointError(
                f"a {kind} is not finite in epoch {trainer.current_epoch}, batch {batch_index}"
            )
        second_pass = bool(getattr(_optimizer(trainer), "in_second_pass", False))
        moved = [(buffer, buffer.clone()) for buffer, _ in self._buffers]
        if not second_pass:  # the second leaves them alone
            _copy_back(self._buffers)
        sharded = isinstance(trainer.strategy, Sharded)
        rank, world = (0, 1) if sharded else rank_and_world()
        step = FailedStep(
            kind=kind,
            batch=batch,
            weights=_plain_state(module),
            random_state=self._random_states[second_pass],
            epoch=trainer.current_epoch,
            batch_index=batch_index,
            seed=module.seed,
            second_pass=second_pass,
            precision=str(trainer.precision),
            device=module.device.type,
            threads=torch.get_num_threads(),
            rank=rank,
            world=world,
            evaluating=[name for name, part in module.named_modules() if not part.training],
            frozen=[name for name, p in module.named_parameters() if not p.requires_grad],
        )
        if sharded:
            found = f"rows {', '.join(map(str, batch.rows.tolist()))}, those of all processes"
        else:
            diagnosis, step.outputs = diagnose(module, step)
            if kind == "loss" and math.isfinite(diagnosis.loss):
                _copy_back(moved)
                return  # only scaled up for fp16 does it overflow: the scaler will skip the step
            _copy_back(self._buffers)
            step.found, step.images_sha256 = diagnosis.record(), diagnosis.images_sha256
            found = diagnosis.to_text()
        folder = self.directory / ("failure" if world == 1 else f"failure_rank_{rank}")
        if is_first_process() or not sharded:
            step.save(folder)
        # Where all stop, none goes before all have saved: a launcher kills the rest when one ends.
        if sharded:
            wait_for_all_processes()
        elif world > 1 and kind == "gradient" and _gradients_are_shared(trainer, batch_index):
            found = "\n".join(from_all_processes(f"{folder.name}: {found}"))
        what = f"the {kind} is not finite"
        if self._in_a_row >= self.max_skipped:
            what = f"{self._in_a_row} steps in a row were left out: a gradient was not finite"
        found = found.replace("\n", "\n  ")
        raise FloatingPointError(
            f"{what} in epoch {step.epoch}, batch {step.batch_index} (both from 0)"
            f"{', second pass' if step.second_pass else ''}; the weights are as before the step\n"
            f"  {found}\n"
            f"run the step again with\n"
            f"  python -m lowres_vision.training replay {folder} --build FILE.py:FUNCTION\n"
            f"where FUNCTION returns the Classifier; a lower learning rate, gradient clipping or "
            f"32-true arithmetic are what helps most often"
        )


def _finite(norms: Sequence[Tensor]) -> bool:
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def _copy_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)


def _plain_state(module: L.LightningModule) -> dict[str, Tensor]:
    state = whole(module.state_dict())
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _optimizer(trainer: L.Trainer) -> Any:
    return trainer.optimizers[0] if trainer.optimizers else None


def _gradients_are_shared(trainer: L.Trainer, batch_index: int) -> bool:
    """Return whether the processes have averaged their gradients, and so see the same ones."""
    stepped = (batch_index + 1) % trainer.accumulate_grad_batches == 0
    return stepped or trainer.is_last_batch


def _skips(trainer: L.Trainer) -> Literal["scaler", "SAM"] | None:
    """Return who leaves out steps whose gradients are not finite."""
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "scaler"
    return "SAM" if hasattr(_optimizer(trainer), "skipped_steps") else None


def _counter(trainer: L.Trainer) -> float:
    """Return a number that grows when a step is left out."""
    match _skips(trainer):
        case "scaler":
            scaler: Any = trainer.precision_plugin.scaler  # type: ignore[attr-defined]
            return -float(scaler.get_scale())
        case "SAM":
            return float(_optimizer(trainer).skipped_steps)
    return 0.0
