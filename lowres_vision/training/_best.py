"""The weights of the epoch that a run keeps: the best on what it held out, or the last."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from lowres_vision.training._sharding import whole
from lowres_vision.training._weights import copied, write_weights
from lowres_vision.training._writer import Writer

Monitor = Literal["val_loss", "val_accuracy", "val_macro_f1", "last"]


class BestWeights(L.Callback):
    """Saves the weights after each epoch whose score is among the best so far.

    The best are ``best.safetensors``. With ``keep`` above 1 the best ``keep``, that one among them,
    are ``epoch_N.safetensors`` besides.

    Args:
        directory: Where the files go.
        monitor: Score that chooses; ties keep the earlier epoch. Or "last", which chooses none.
        keep: Number of epochs whose weights are kept.
        about: Stored in the JSON beside the weights.
        writer: What writes them while training goes on; they are all there when it ends.
    """

    def __init__(
        self,
        directory: Path,
        *,
        monitor: Monitor,
        keep: int,
        about: dict[str, Any],
        writer: Writer,
    ) -> None:
        self._writer = writer
        self.directory, self.monitor, self.keep, self.about = directory, monitor, keep, about
        self.kept: list[tuple[float, int]] = []  # score, higher is better, and epoch; best first

    @property
    def path(self) -> Path:
        """Return the file of the best weights."""
        return self.directory / "best.safetensors"

    @property
    def epoch(self) -> int:
        """Return the epoch of the best weights."""
        return self.kept[0][1]

    def files(self) -> list[str]:
        """Return the names of the weights kept."""
        epochs = [_name(epoch) for _, epoch in self.kept] if self.keep > 1 else []
        return [self.path.name, *epochs]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Have everything written before validation forks loader processes, and calls any hook."""
        if trainer.is_last_batch:
            self._writer.wait()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Have everything written."""
        self._writer.wait()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Compare the epoch's score with those kept."""
        # A resumed run knows no training scores from before; the file must not tell the two apart.
        found = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_")
        }
        # Devices may round a loss differently, and all have to put the same weights whole.
        scores = trainer.strategy.broadcast(found)
        if not np.isfinite(scores["val_loss"]):
            raise FloatingPointError(
                f"val_loss is {scores['val_loss']} after epoch {trainer.current_epoch}; "
                f"lower the learning rate, or train in 32-true"
            )
        epoch = trainer.current_epoch
        ranks = {**scores, "val_loss": -scores["val_loss"], "last": float(epoch)}
        score = ranks[self.monitor]
        before = self.kept
        ranked = sorted([*before, (score, epoch)], key=lambda entry: (-entry[0], entry[1]))
        self.kept = ranked[: self.keep]
        if (score, epoch) in self.kept:
            about = {"epoch": epoch, "scores": scores, **self.about}
            self._save(whole(scored_model(module).state_dict()), about, ranked)

    @rank_zero_only
    def _save(
        self, state: dict[str, Tensor], about: dict[str, Any], ranked: list[tuple[float, int]]
    ) -> None:
        paths = [self.path] if self.epoch == about["epoch"] else []
        if self.keep > 1:
            paths.append(self.directory / _name(about["epoch"]))
        gone = [self.directory / _name(epoch) for _, epoch in ranked[self.keep :]]

        def write(weights: dict[str, Tensor]) -> None:
            for path in paths:
                write_weights(weights, path, about)
            for path in gone:
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}.json").unlink(missing_ok=True)

        self._writer.submit(lambda: partial(write, copied(state)))

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and epochs kept."""
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.kept = state["kept"]


def scored_model(module: Any) -> nn.Module:
    """Return what validation scores: an average of the weights where the classifier has one."""
    model: nn.Module = getattr(module, "scored_model", module.model)
    return model


def _name(epoch: int) -> str:
    return f"epoch_{epoch}.safetensors"
