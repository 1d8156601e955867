"""Checkpoints at the right moments, and a trainer that goes on from one as if nothing had been."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lowres_vision._random import stream
from lowres_vision.training._ranks import from_all_processes, rank_and_world

# Key that keeps these streams apart from others of the same seed.
_STEP = 2


class StepSeeds(L.Callback):
    """Seeds PyTorch before each training step by the run's seed, epoch, batch and process.

    So dropout, too, is a function of the step, and no random state has to be saved. To be the
    first of the callbacks.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed PyTorch for this step."""
        rank, _ = rank_and_world()
        keys = (self.seed, _STEP, trainer.current_epoch, batch_idx, rank)
        # torch.manual_seed formats the call stack for each kind of device that is not in use.
        seeded = torch.default_generator if module.device.type == "cpu" else torch
        seeded.manual_seed(stream(*keys).initial_seed())


class Resumable(L.Callback):
    """Saves the state of training, and keeps all of it in what is saved.

    A checkpoint is written when an epoch starts, so that everything the last one logged is behind
    it, and every ``every`` optimiser steps. It holds what Lightning collects (weights, optimiser,
    schedule, scaler, counters, the ``state_dict`` of every callback) and what it leaves out: how
    far the loggers' files had come, and the sums behind means over a half-done epoch.

    To be the last of the callbacks: the others have then done their part of the step.

    Args:
        path: The checkpoint.
        every: Optimiser steps between checkpoints within an epoch; None for none.
    """

    def __init__(self, path: Path, *, every: int | None) -> None:
        self.path, self.every = path, every
        self._at_epoch_start = False
        self._sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._last_step = 0
        self._resumed_step = 0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the state between two epochs, unless that is what the run was resumed from."""
        # Nothing may be written yet when the first batch forks the loader processes.
        if trainer.global_step != self._resumed_step:
            self._at_epoch_start = True
            trainer.save_checkpoint(self.path, weights_only=False)
            self._at_epoch_start = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save the state within an epoch, where it is time and no gradient is half accumulated."""
        for name, (value, weight) in self._sums.items():
            metric = trainer.fit_loop.epoch_loop._results[name]
            metric.value = metric.value + value.to(metric.value.device)
            metric.cumulated_batch_size += weight.to(metric.value.device)
        self._sums = {}
        step, stepped = trainer.global_step, trainer.global_step != self._last_step
        self._last_step = step
        within = batch_idx + 1 < trainer.num_training_batches
        if self.every is not None and stepped and within and step % self.every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        fit = trainer.fit_loop
        checkpoint["loggers"] = {
            type(logger).__name__: logger.state_dict()
            for logger in trainer.loggers
            if hasattr(logger, "state_dict")
        }
        if self._at_epoch_start:
            checkpoint["sums"] = []
            # Lightning has counted the coming epoch as ready and would count it again.
            for counters in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                counters["ready"] = counters["completed"]
            return
        sums = {
            name: (metric.value.cpu(), metric.cumulated_batch_size.cpu())
            for name, metric in fit.epoch_loop._results.items()
            if name.startswith("training_step.")
            and metric.meta.on_epoch
            and metric.meta.is_mean_reduction
        }
        checkpoint["sums"] = from_all_processes(sums)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it back."""
        for logger in trainer.loggers:  # which may be others than they were
            if state := checkpoint["loggers"].get(type(logger).__name__):
                logger.load_state_dict(state)  # type: ignore[attr-defined]
        rank, _ = rank_and_world()
        if rank < len(checkpoint["sums"]):
            self._sums = checkpoint["sums"][rank]
        self._last_step = self._resumed_step = checkpoint["global_step"]
