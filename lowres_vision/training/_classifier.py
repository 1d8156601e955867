"""A classifier under training: model, loss, transform, optimiser and learning-rate schedule."""

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lowres_vision._batch import Batch
from lowres_vision._checks import check_choice, check_range
from lowres_vision._random import stream
from lowres_vision.losses import check_outputs
from lowres_vision.optim import keep_batch_norm_statistics

# Keys that keep the random streams of one seed apart.
_TRANSFORM = 1


class Classifier(L.LightningModule):
    """Trains any model that maps images to ``(B, K)`` outputs, with any loss of this library.

    Logged per epoch: ``train_loss``, and on the pooled held-out predictions ``val_loss``,
    ``val_accuracy`` and ``val_macro_f1`` (the mean over batches of a macro-F1 is another,
    flattering number). Crops, flips and mixes of a step are a function of ``seed``, epoch and
    batch alone.

    Args:
        model: From images to outputs, e.g. a :class:`~lowres_vision.models.LowResClassifier`.
        loss: A Module of :mod:`lowres_vision.losses`; its ``probabilities`` make predictions.
        transform: From the loader's images to the model's, called as
            ``transform(images, mix=..., generator=...)``, e.g. a
            :class:`~lowres_vision.augment.BatchTransform`; None hands the images on.
        optimizer: From parameters to an optimiser, e.g. ``partial(torch.optim.AdamW, lr=5e-5)``,
            or ``partial(SAM, base_optimizer=torch.optim.AdamW, lr=5e-5)`` with
            :class:`~lowres_vision.optim.SAM`, whose two passes see the same crops and mixes.
        schedule: ``"cosine"`` takes the learning rate to 0 over the run, ``"constant"`` keeps it.
        warmup: Share of the steps over which the learning rate rises from 0, in [0, 1].
        seed: Seed of the transform's draws.

    Raises:
        ValueError: If the model's head does not give what the loss reads.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        transform: nn.Module | None = None,
        optimizer: Callable[[Any], Optimizer],
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("schedule", schedule, ("cosine", "constant"))
        check_range("warmup", warmup, 0.0, 1.0)
        check_outputs(model, loss)
        # Depthwise convolutions of a CPU are 9 times faster on channels_last weights and images.
        self.model = model.to(memory_format=torch.channels_last)
        self.loss: Any = loss
        self.transform = transform
        self.make_optimizer = optimizer
        self.schedule, self.warmup, self.seed = schedule, warmup, seed
        self._held_out: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs ``(B, K)``."""
        outputs: Tensor = self.model(images)
        return outputs

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        generator = stream(self.seed, _TRANSFORM, self.current_epoch, batch_index, self.global_rank)
        second_pass = bool(getattr(self.optimizers(), "in_second_pass", False))
        with keep_batch_norm_statistics(self.model, enabled=second_pass):
            loss: Tensor = self.loss(self._outputs(batch, generator), batch.targets)
        self.log(
            "train_loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch.rows),
        )
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Keep one batch of outputs for the pooled scores."""
        self._held_out.append((self._outputs(batch), batch.targets))

    def on_validation_epoch_end(self) -> None:
        """Score the pooled held-out predictions."""
        outputs, targets = (torch.cat(parts) for parts in zip(*self._held_out, strict=True))
        self._held_out.clear()
        predicted = outputs.argmax(dim=1).cpu()
        scores = {
            "val_loss": self.loss(outputs, targets),
            "val_accuracy": (predicted == targets.cpu()).float().mean(),
            "val_macro_f1": float(f1_score(targets.cpu(), predicted, average="macro")),
        }
        for name, score in scores.items():
            self.log(name, score, prog_bar=name == "val_accuracy")

    def predict_step(self, batch: Batch, batch_index: int) -> tuple[Tensor, Tensor]:
        """Return ``(rows (B,), probabilities (B, K))``."""
        return batch.rows, self.loss.probabilities(self._outputs(batch)).float()

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, a pure function of the step."""
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        steps = int(self.trainer.estimated_stepping_batches)
        warm = round(self.warmup * steps)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _outputs(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        images: Any = batch.images
        if self.transform is not None:
            images = self.transform(images, mix=batch.mix, generator=generator)
        outputs: Tensor = self(images)
        return outputs
