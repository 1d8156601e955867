"""One training run: fit a classifier, keep its best weights, predict with them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from lowres_vision.training._classifier import Classifier
from lowres_vision.training._data import PairsDataModule
from lowres_vision.training._weights import load_weights, save_weights

Floats = npt.NDArray[np.float32]
Monitor = Literal["val_loss", "val_accuracy", "val_macro_f1"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class FoldRun:
    """A Lightning run with its own directory, a progress bar, a CSV log and its best weights.

    Args:
        directory: Gets ``metrics.csv``, ``best.safetensors`` and its ``.json``.
        epochs: Passes over the training samples.
        monitor: Score that chooses the epoch; ties keep the earlier one.
        precision: Lightning's name of the arithmetic.
        classes: Class names, stored with the weights.
    """

    def __init__(
        self,
        directory: Path,
        *,
        epochs: int,
        monitor: Monitor,
        precision: Precision,
        classes: tuple[str, ...],
    ) -> None:
        self._best = _BestWeights(directory / "best.safetensors", monitor, classes)
        with _quiet():
            self._trainer = L.Trainer(
                max_epochs=epochs,
                precision=precision,
                logger=CSVLogger(directory.parent, name="", version=directory.name),
                callbacks=[self._best, _ProgressBar(leave=True)],
                enable_checkpointing=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
            )

    def fit(self, classifier: Classifier, data: PairsDataModule) -> int:
        """Train, leave ``classifier`` with its best weights, and return the epoch they are of."""
        with _quiet():
            self._trainer.fit(classifier, datamodule=data)
        return int(load_weights(classifier.model, self._best.path)["epoch"])

    def predict(self, classifier: Classifier, loader: Any, rows: npt.NDArray[np.int64]) -> Floats:
        """Return ``(N, K)`` probabilities, after checking that they are of ``rows``, in order."""
        with _quiet():
            batches = self._trainer.predict(classifier, loader)
        assert batches is not None
        found, probabilities = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        if not np.array_equal(found, rows):
            raise RuntimeError("the loader lost the order of its rows; its predictions are void")
        return np.asarray(probabilities, dtype=np.float32)


class _BestWeights(L.Callback):
    """Saves the model's weights after each epoch whose score is the best so far."""

    def __init__(self, path: Path, monitor: Monitor, classes: tuple[str, ...]) -> None:
        self.path, self.monitor, self.classes = path, monitor, classes
        self.best = -np.inf

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        score = -scores[self.monitor] if self.monitor == "val_loss" else scores[self.monitor]
        if not np.isfinite(scores["val_loss"]):
            raise FloatingPointError(
                f"val_loss is {scores['val_loss']} after epoch {trainer.current_epoch}; "
                f"lower the learning rate, or train in 32-true"
            )
        if score > self.best:
            self.best = score
            about = {"epoch": trainer.current_epoch, "scores": scores, "classes": self.classes}
            save_weights(module.model, self.path, **about)  # type: ignore[arg-type]


class _ProgressBar(RichProgressBar):
    """Lightning's bar without the version number, which here is the fold's directory."""

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
        try:
            yield
        finally:
            logger.setLevel(level)
