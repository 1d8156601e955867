"""One training run: fit a classifier, keep its best weights, predict with them."""

import copy
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    GradientAccumulationScheduler,
    ProgressBar,
    RichProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from lowres_vision._checks import check_range
from lowres_vision.training._advice import GO_ON, advice
from lowres_vision.training._best import BestWeights, Monitor, scored_model
from lowres_vision.training._checkpoint import PlainCheckpoints
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._data import PairsDataModule
from lowres_vision.training._guard import NonFiniteGuard
from lowres_vision.training._loggers import closing, make_loggers
from lowres_vision.training._metrics_file import MetricsFile
from lowres_vision.training._ranks import pool_by_row
from lowres_vision.training._resume import Resumable, StepSeeds
from lowres_vision.training._sharding import Sharded
from lowres_vision.training._usage import UsageRecord
from lowres_vision.training._weights import load_weights
from lowres_vision.training._writer import Writer

Floats = npt.NDArray[np.float32]
# What of Lightning's does not go with a run here, and what to give in its place.
_INSTEAD: dict[type[L.Callback], str] = {
    Checkpoint: "checkpoints are written anyway, see `checkpoint_every` and `keep`",
    WeightAveraging: "give the Classifier an `ema`",
    StochasticWeightAveraging: "give the Classifier an `ema`",
    GradientAccumulationScheduler: "give `accumulate`",
}
_FOREIGN_SHARDING = ("fsdp", "deepspeed", "model_parallel")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class FoldRun:
    """A Lightning run with its own directory that can be killed and started again.

    Where the directory has a checkpoint, :meth:`fit` goes on from it. On a CPU the outcome is, bit
    for bit, that of a run that was never interrupted.

    Args:
        directory: Gets ``metrics.csv``, ``best.safetensors`` with its ``.json`` and, until the run
            is trained, ``training.checkpoint``.
        epochs: Passes over the training samples.
        monitor: Score that chooses the epoch; ties keep the earlier one.
        precision: Lightning's name of the arithmetic.
        classes: Class names, stored with the weights.
        seed: Seed of the model's own randomness in training, e.g. dropout.
        about: Further words for the JSON beside the weights.
        conditions: What loggers show as the parameters of the run.
        accumulate: Batches whose gradients make one step.
        clip_norm: Longest gradient that a step takes; None for no limit.
        patience: Epochs without a better ``monitor`` after which training stops; None never stops.
        keep: Number of best epochs whose weights are kept.
        checkpoint_every: Optimiser steps between checkpoints within an epoch; None saves between
            epochs only.
        logger: A name of :func:`make_loggers`, or several; ``"csv"`` is ``metrics.csv``.
        tags: Words that the loggers find the run by.
        callbacks: Further callbacks; each run takes a copy.
        devices: Devices of each node, as Lightning reads it.
        strategy: How they share the work, as Lightning names it, e.g. ``"ddp"``;
            ``"fsdp"`` is :class:`Sharded`.
        num_nodes: Machines.
    """

    def __init__(
        self,
        directory: Path,
        *,
        epochs: int,
        monitor: Monitor,
        precision: Precision,
        classes: tuple[str, ...],
        seed: int = 0,
        about: dict[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        patience: int | None = None,
        keep: int = 1,
        checkpoint_every: int | None = None,
        logger: str | Sequence[str] = "csv",
        tags: Sequence[str] = (),
        callbacks: Sequence[L.Callback] = (),
        devices: int | str = 1,
        strategy: str = "auto",
        num_nodes: int = 1,
    ) -> None:
        check_range("keep", keep, 1)
        _check_strategy(strategy, precision)
        callbacks = [_checked(callback) for callback in callbacks]
        bars = [] if any(isinstance(c, ProgressBar) for c in callbacks) else [_ProgressBar()]
        check_range("clip_norm", 1 if clip_norm is None else clip_norm, 0, open_low=True)
        check_range("patience", 1 if patience is None else patience, 1)
        check_range("checkpoint_every", 1 if checkpoint_every is None else checkpoint_every, 1)
        self.directory = directory
        self.checkpoint = directory / "training.checkpoint"
        self._classes = classes
        self._precision = precision
        self._writer = Writer()
        self._best = BestWeights(
            directory,
            monitor=monitor,
            keep=keep,
            about={**(about or {}), "classes": classes},
            writer=self._writer,
        )
        stopping: list[L.Callback] = []
        if patience is not None:
            mode = "min" if monitor == "val_loss" else "max"
            stopping = [EarlyStopping(monitor, mode=mode, patience=patience)]
        loggers = make_loggers(logger, directory, tags=tags, settings=conditions)
        for each in loggers:
            if isinstance(each, MetricsFile):
                each.writer = self._writer
        with _quiet():
            self._trainer = L.Trainer(
                max_epochs=epochs,
                precision=precision,
                accumulate_grad_batches=accumulate,
                gradient_clip_val=clip_norm,
                logger=loggers,
                callbacks=[
                    StepSeeds(seed),
                    self._best,
                    *bars,
                    *stopping,
                    *copy.deepcopy(callbacks),
                    UsageRecord(directory),
                    NonFiniteGuard(directory),
                    Resumable(self.checkpoint, every=checkpoint_every),
                ],
                plugins=[PlainCheckpoints(self._writer)],
                devices=devices,
                strategy=Sharded() if strategy == "fsdp" else strategy,
                num_nodes=num_nodes,
                use_distributed_sampler=False,  # the loaders share the batches out themselves
                enable_checkpointing=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                default_root_dir=directory,  # where it looks for what SLURM made it save
                log_every_n_steps=1,
            )

    def fit(self, classifier: Classifier, data: PairsDataModule) -> int:
        """Train, leave ``classifier`` with its best weights, and return the epoch they are of.

        Raises:
            torch.OutOfMemoryError: If a device or the machine has no memory left.
            RuntimeError: If a loader process died.
        """
        resume = str(self.checkpoint) if self.checkpoint.exists() else None
        _check_outputs(classifier.model, self._classes)
        with closing(self._trainer.loggers), _quiet(), self._advice(data):
            with self._writer, _interruptible(self.directory):
                self._trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
            self.wait()
        return self.load_best(classifier)

    def load_best(self, classifier: Classifier) -> int:
        """Give ``classifier`` the best weights of a finished fit, and return their epoch."""
        return int(load_weights(scored_model(classifier), self._best.path)["epoch"])

    def wait(self) -> None:
        """Wait until all processes of the run have come here."""
        self._trainer.strategy.barrier()

    def weights(self) -> list[str]:
        """Return the names of the files of weights kept, the best first."""
        return self._best.files()

    def predict(
        self,
        classifier: Classifier,
        data: PairsDataModule,
        loader: Any,
        rows: npt.NDArray[np.int64],
    ) -> Floats:
        """Return ``(N, K)`` probabilities, after checking that they are of ``rows``, in order."""
        with _quiet(), self._advice(data), _interruptible(self.directory):
            batches = self._trainer.predict(classifier, loader)
        assert batches is not None
        found, probabilities = pool_by_row(*map(torch.cat, zip(*batches, strict=True)))
        if not np.array_equal(found.cpu().numpy(), rows):
            raise RuntimeError("the loader lost the order of its rows; its predictions are void")
        return np.asarray(probabilities.cpu().numpy(), dtype=np.float32)

    def _advice(self, data: PairsDataModule) -> Any:
        return advice(
            self.directory,
            batch_size=data.batch_size,
            precision=self._precision,
            workers=data.workers,
            rows_of=data.rows_in_flight,
        )


def _check_strategy(strategy: str, precision: Precision) -> None:
    if strategy != "fsdp" and any(word in strategy for word in _FOREIGN_SHARDING):
        raise ValueError(
            f"`strategy` must be 'fsdp' to share the weights out, or leave them whole on every "
            f"device, as 'auto' and 'ddp' do, got {strategy!r}: its checkpoints are not of whole "
            f"weights"
        )
    if strategy == "fsdp" and precision == "16-mixed":
        raise ValueError(
            "strategy='fsdp' does not go with precision='16-mixed', whose scaler would look at one "
            "part of the gradient; use 'bf16-mixed' or '32-true', or strategy='ddp'"
        )


def _checked(callback: L.Callback) -> L.Callback:
    """Refuse a callback of Lightning's that would get in the way of what is done here."""
    if not isinstance(callback, L.Callback):
        raise TypeError(f"`callbacks` must be callbacks of Lightning's, got {callback!r}")
    for kind, instead in _INSTEAD.items():
        if isinstance(callback, kind):
            raise ValueError(
                f"`callbacks` must have no {type(callback).__name__}, which goes past what is "
                f"scored, saved and resumed here; {instead}"
            )
    return callback


def _check_outputs(model: nn.Module, classes: Sequence[str]) -> None:
    """Have the first outputs refused that are not one for each class."""

    def check(_: nn.Module, __: Any, outputs: Any) -> None:
        hook.remove()
        if outputs.shape[1:] != (len(classes),):
            raise ValueError(
                f"the model must give an output for each of {len(classes)} classes, got outputs "
                f"of shape {tuple(outputs.shape)}"
            )

    hook = model.register_forward_hook(check)


@contextmanager
def _interruptible(directory: Path) -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning ends the process; a notebook wants to go on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{directory} was interrupted; {GO_ON}") from None
        raise
    finally:
        if current_thread() is main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


class _ProgressBar(RichProgressBar):
    """Lightning's bar without the version number, which here is the fold's directory."""

    def __init__(self) -> None:
        super().__init__(leave=True)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = dict(super().get_metrics(*args))
        metrics.pop("v_num", None)
        return metrics


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Lightning says of devices, tips and its own internals, five lines a fold."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Our scores are the same in every process, or put together.
        warnings.filterwarnings("ignore", message=r"It is recommended .*'(train|val)_.*sync_dist")
        # True of loaders that cannot be resumed; ours is told where to go on.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended")
        # Frozen BatchNorm, averages and teachers are meant to be.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
        try:
            yield
        finally:
            logger.setLevel(level)
