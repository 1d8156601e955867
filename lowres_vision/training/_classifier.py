"""A classifier under training: model, loss, transform, optimiser and learning-rate schedule."""

from collections.abc import Callable, Collection, Mapping
from functools import reduce
from operator import add
from typing import Any, Literal

import lightning as L
import torch
from sklearn.metrics import f1_score
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lowres_vision._batch import Batch, PairBatch
from lowres_vision._checks import check_choice, check_range
from lowres_vision._random import stream
from lowres_vision.losses import check_outputs
from lowres_vision.optim import keep_batch_norm_statistics
from lowres_vision.training._optimisation import (
    accumulation_weight,
    make_schedule,
    refuse_combinations,
    scale_rates,
)
from lowres_vision.training._pairing import Consistency, Distillation, Terms, Views
from lowres_vision.training._ranks import (
    from_all_processes,
    pool_by_row,
    rank_and_world,
    rank_share,
    share_weight,
)
from lowres_vision.training._sharding import shard
from lowres_vision.training._unfreezing import check_stages, thaw

# Keys that keep the random streams of one seed apart.
_TRANSFORM = 1


class Classifier(L.LightningModule):
    """Trains any model that maps images to ``(B, K)`` outputs, with any loss of this library.

    Logged per epoch: ``train_loss``, and on the pooled held-out predictions ``val_loss``,
    ``val_accuracy`` and ``val_macro_f1`` (the mean over batches of a macro-F1 is another
    number). Crops, flips and mixes of a step are a function of ``seed``, epoch and
    batch alone.

    Gradients accumulated over several batches (Lightning's ``accumulate_grad_batches``) are those
    of their mean loss, also in an epoch's last step, which may have fewer. Combinations that
    Lightning would run but get wrong are refused by name when the optimiser is built.

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
            Or from the optimiser and the number of steps of an epoch to a scheduler that is stepped
            after each step, e.g. ``lambda optimizer, steps: CosineWarmRestarts(optimizer,
            first_cycle=5 * steps, max_lr=1e-3)``.
        warmup: Share of the steps over which the learning rate rises from 0, in [0, 1].
        groups: From the model to parameter groups, e.g. ``partial(parameter_groups,
            layer_decay=0.75)`` of :func:`parameter_groups`; None is one group.
        unfreeze: Names or patterns of parameters and Modules by the epoch from which they train,
            e.g. ``{0: ["head"], 2: ["backbone.layer4"], 4: ["*"]}``; all else is frozen as by
            :func:`~lowres_vision.models.freeze_except`. None leaves the model as it came.
        ema: From the model to a moving average of its weights, e.g. ``partial(ModelEmaV3,
            decay=0.999, use_warmup=True)`` of ``timm.utils``. The average is then what is
            validated, saved and predicted with.
        pairing: What to make of both resolutions of a row, :class:`Consistency` or
            :class:`Distillation`; training batches must then be pairs. Each term of its loss is
            logged as ``train_`` and its name.
        seed: Seed of the transform's draws.

    Raises:
        ValueError: If an argument is out of range, the model's head does not give what the loss
            reads, or model, transform and pairing do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        transform: nn.Module | None = None,
        optimizer: Callable[[Any], Optimizer],
        schedule: Literal["cosine", "constant"] | Callable[[Any, int], LRScheduler] = "cosine",
        warmup: float = 0.0,
        groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
        unfreeze: Mapping[int, str | Collection[str]] | None = None,
        ema: Callable[[nn.Module], ModelEmaV3] | None = None,
        pairing: Consistency | Distillation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("warmup", warmup, 0.0, 1.0)
        if not callable(schedule):
            check_choice("schedule", schedule, ("cosine", "constant"))
        elif warmup > 0:
            raise ValueError(f"`warmup` must be 0 with a `schedule` of one's own, got {warmup}")
        check_outputs(model, loss)
        # Depthwise convolutions of a CPU are 9 times faster on channels_last weights and images.
        self.model = model.to(memory_format=torch.channels_last)
        self.loss: Any = loss
        self.transform = transform
        self.make_optimizer, self.make_groups = optimizer, groups
        self.schedule, self.warmup, self.seed = schedule, warmup, seed
        self.stages = None if unfreeze is None else check_stages(model, unfreeze)
        self.average = None if ema is None else ema(self.model).requires_grad_(False)
        self.pairing = pairing
        if pairing is not None:
            pairing.check(model, loss)
            if transform is not None and not hasattr(transform, "draw"):
                raise ValueError(
                    f"`transform` must draw crops apart from making them, as BatchTransform does, "
                    f"to treat both views of a pair alike; {type(transform).__name__} does not"
                )
        self._views: Views | None = None
        self._held_out: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums: dict[str, Any] = {}  # of the training losses, this epoch
        self._counted = 0

    def setup(self, stage: str) -> None:
        """Forget what an epoch that was broken off has left."""
        self._held_out.clear()
        self._sums, self._counted, self._views = {}, 0, None

    @property
    def scored_model(self) -> nn.Module:
        """The model that is validated, saved and predicts: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs ``(B, K)`` of the model, in evaluation mode of the scored one."""
        outputs: Tensor = (self.model if self.training else self.scored_model)(images)
        return outputs

    def training_step(self, batch: Batch | PairBatch, batch_index: int) -> Tensor:
        """Return the loss of one batch, or of this process' share of it."""
        optimizer = self.optimizers()
        second_pass = bool(getattr(optimizer, "in_second_pass", False))
        views = self._views
        if views is None or not second_pass:
            views = self._draw(batch, batch_index, self.current_epoch)
        self._views = views if hasattr(optimizer, "in_second_pass") and not second_pass else None
        with keep_batch_norm_statistics(self.model, enabled=second_pass):
            terms = self._terms(views)
        loss = reduce(add, terms.values())
        weight = share_weight(len(batch.rows))
        if not second_pass:
            self._count_loss({"train_loss": loss, **terms}, weight, len(batch.rows))
        weight *= accumulation_weight(self.trainer, batch_index)
        return loss if weight == 1 else weight * loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Keep one batch of outputs for the pooled scores."""
        self._held_out.append((batch.rows, self(self._images(batch)), batch.targets))

    def on_validation_epoch_end(self) -> None:
        """Score the pooled held-out predictions."""
        parts = (torch.cat(part) for part in zip(*self._held_out, strict=True))
        _, outputs, targets = pool_by_row(*parts)
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
        return batch.rows, self.loss.probabilities(self(self._images(batch))).float()

    def configure_model(self) -> None:
        """Share the weights out over the processes, where the strategy does."""
        if self.device_mesh is not None:
            averaged = None if self.average is None else self.average.module
            for part in (self.model, averaged, self.loss, self.pairing):
                if part is not None:
                    shard(part, self.device_mesh)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, a pure function of the step."""
        if self.stages is not None:
            # What trains later is the optimiser's from the start; without gradients it stays.
            thaw(self.model, self.stages, epoch=max(self.stages))
        optimizer = self.make_optimizer(self._parameters_to_train())
        scale_rates(optimizer)
        self.on_train_epoch_start()
        refuse_combinations(
            self.trainer, optimizer, ema=self.average is not None, unfreeze=bool(self.stages)
        )
        schedule = make_schedule(optimizer, self.trainer, self.schedule, self.warmup)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Unfreeze what trains by now; a run resumed within an epoch does not start that epoch."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Unfreeze what trains from this epoch on."""
        if self.stages is not None:
            thaw(self.model, self.stages, epoch=self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean training losses."""
        for name, total in self._sums.items():
            mean = total / self._counted
            self.log(name, mean, prog_bar=name == "train_loss", sync_dist=rank_and_world()[1] > 1)
        self._sums, self._counted = {}, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an epoch that is under way."""
        checkpoint["training_sums"] = from_all_processes((dict(self._sums), self._counted))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; a run may go on in another number of processes."""
        saved = checkpoint["training_sums"]
        rank, world = rank_and_world()
        shares = saved[rank : rank + 1] if len(saved) == world else saved
        for sums, self._counted in shares:
            for name, total in sums.items():
                share = total.to(self.device) / len(shares)
                self._sums[name] = self._sums.get(name, 0) + share

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow; its decay is a function of the step alone."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model, step=self.global_step + 1)

    def _parameters_to_train(self) -> list[Any]:
        """Return what trains, in groups if asked; the loss's and pairing's own come last."""
        every = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.make_groups is None:
            return every
        groups = self.make_groups(self.model)
        grouped = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [parameter for parameter in every if id(parameter) not in grouped]
        return [*groups, {"params": rest}] if rest else groups

    def _draw(self, batch: Batch | PairBatch, batch_index: int, epoch: int) -> Views:
        """Return this process' share of a step's views, drawn for the whole batch."""
        generator = stream(self.seed, _TRANSFORM, epoch, batch_index)
        return self._prepare(batch, rank_share(len(batch.rows)), generator)

    def _prepare(self, batch: Batch | PairBatch, share: slice, generator: torch.Generator) -> Views:
        """Return what does not depend on the weights in training."""
        if isinstance(batch, PairBatch) != (self.pairing is not None):
            raise TypeError(
                f"`pairing` goes with batches of pairs (resolution='pair'), and only with them: "
                f"got a {type(batch).__name__} with pairing={self.pairing}"
            )
        if isinstance(batch, PairBatch):
            assert self.pairing is not None
            return self.pairing.prepare(batch, self.transform, self.loss, share, generator)
        return Views(self._images(batch, generator)[share], batch.targets[share])

    def _terms(self, views: Views) -> Terms:
        """Return the terms of the loss by name."""
        if self.pairing is None:
            return {"train_loss": self.loss(self(views.images), views.targets)}
        terms: Terms = self.pairing(self.model, self.loss, views)
        return {f"train_{name}": term for name, term in terms.items()}

    def _images(self, batch: Batch, generator: torch.Generator | None = None) -> Any:
        if isinstance(batch, PairBatch):
            raise TypeError(
                "held-out samples must be of one resolution, 'low' or 'high', got a PairBatch"
            )
        if self.transform is not None:
            return self.transform(batch.images, mix=batch.mix, generator=generator)
        if batch.mix is not None:
            raise ValueError("a drawn mix needs a `transform` that applies it, got None")
        return batch.images

    def _count_loss(self, losses: Terms, weight: float, count: int) -> None:
        """Add one batch to the epoch's means; ``log`` in each would be 2 % of a small step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + weight * count * loss.detach().float()
        self._counted += count
