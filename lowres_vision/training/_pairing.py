"""What a training step makes of a picture at two resolutions: consistency or distillation.

A pairing works in two parts. ``prepare`` makes the views, and asks the teacher: all that does not
depend on the weights in training. ``forward`` runs the model and returns the terms of the loss. An
optimiser that takes two passes (SAM) repeats only the second.
"""

import hashlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lowres_vision._batch import PairBatch
from lowres_vision._checks import check_choice, check_range
from lowres_vision.losses import (
    check_outputs,
    consistency_loss,
    distillation_loss,
    feature_loss,
)
from lowres_vision.mixing import scale_mix

Terms = dict[str, Tensor]


class Views(NamedTuple):
    """What the model reads in one step, and what the teacher said of it."""

    images: Tensor
    targets: Tensor
    teacher_logits: Tensor | None = None
    teacher_features: Tensor | None = None


class Consistency(nn.Module):
    r"""Trains one model on both views, and towards one prediction of them.

    .. math:: \tfrac12 (l(z^{low}, t) + l(z^{high}, t)) + w \, D(z^{low}, z^{high})

    with the classifier's loss l and :func:`~lowres_vision.losses.consistency_loss` D. Both views
    get the same crops, flips, mixes and targets and go through the model as one batch of twice
    the size, so BatchNorm takes the statistics of both, as in training on them one by one.

    Args:
        weight: w >= 0; 0 trains on both views only.
        divergence: "jensen_shannon" or "kl".
        high_teaches: Only the low view moves towards the other's prediction.

    References:
        Tian et al., "ResFormer", CVPR 2023, https://arxiv.org/abs/2212.00776, train on replicas of
        an image at several sizes with a scale consistency loss; here the two are two resolutions
        that a data set came in, at one size, and what is to agree is the prediction.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        divergence: Literal["jensen_shannon", "kl"] = "jensen_shannon",
        high_teaches: bool = False,
    ) -> None:
        super().__init__()
        check_range("weight", weight, 0.0)
        check_choice("divergence", divergence, ("jensen_shannon", "kl"))
        self.weight, self.high_teaches = weight, high_teaches
        self.divergence: Literal["jensen_shannon", "kl"] = divergence

    def check(self, model: nn.Module, loss: nn.Module) -> None:
        """Refuse a loss that does not say which logits it reads."""
        _require("loss", loss, "logits")

    def prepare(
        self,
        batch: PairBatch,
        transform: Any,
        loss: Any,
        share: slice,
        generator: torch.Generator | None,
    ) -> Views:
        """Return both views of a share of the batch, low ones first, with the targets twice."""
        low, high = _views(batch, transform, transform, share, generator)
        if low.shape != high.shape:
            raise ValueError(
                f"both views must reach the model in one size, got {tuple(low.shape)} and "
                f"{tuple(high.shape)}; give the classifier a `transform`"
            )
        targets = batch.targets[share]
        return Views(torch.cat([low, high]), torch.cat([targets, targets]))

    def forward(self, model: Any, loss: Any, views: Views) -> Terms:
        """Return the terms "labels" and "consistency", whose sum is the loss."""
        outputs = model(views.images)
        low, high = loss.logits(outputs).chunk(2)
        if self.high_teaches:
            high = high.detach()
        gap = consistency_loss(low, high, divergence=self.divergence)
        return {"labels": loss(outputs, views.targets), "consistency": self.weight * gap}


class Distillation(nn.Module):
    r"""Trains a student that sees low resolution by a teacher that sees high resolution.

    .. math:: w_l \, l(z, t) + w_p \, T^2 KL(q \Vert p) + w_f \, D(P f, g)

    with the classifier's loss l, the softened predictions of teacher q and student p
    (:func:`~lowres_vision.losses.distillation_loss`) and their embeddings g and f
    (:func:`~lowres_vision.losses.feature_loss`). Teacher and student get the same crops, flips and
    mixes of the same pictures, each at its own resolution and size; soft targets are as good as
    hard ones.

    The teacher only predicts: it is frozen, in evaluation mode whatever the classifier's is, and
    runs without gradients, once per step also under SAM. It follows the classifier to its device,
    but is no part of its parameters, its ``state_dict`` or its checkpoints; these hold the
    teacher's SHA-256, and a run is not resumed with another one.

    A teacher must not have been trained on what the student is scored on, or the score is void:
    within folds take the same fold's, which :func:`load_teacher` checks.

    Args:
        teacher: From images to outputs, e.g. a :class:`~lowres_vision.models.LowResClassifier`.
        teacher_loss: What the teacher was trained with, to read its outputs; None: as the student.
        transform: From high-resolution images to the teacher's, a
            :class:`~lowres_vision.augment.BatchTransform` of whose draws none is made: crops are
            the student's. None: the student's transform.
        labels: Weight w_l >= 0.
        predictions: Weight w_p >= 0.
        features: Weight w_f >= 0; above 0, both models need ``embed`` and the student ``classify``
            as :class:`~lowres_vision.models.LowResClassifier` has them.
        temperature: T > 0.
        distance: "cosine" or "mse", between embeddings.
        projection: P, trained along, where the embeddings' widths differ, e.g.
            ``nn.Linear(1280, 768)``.

    Raises:
        ValueError: If an argument is out of range, or predictions and features both weigh 0.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531; Romero et al., "FitNets", ICLR 2015,
        https://arxiv.org/abs/1412.6550. In both, teacher and student see the same pixels.
    """

    teacher_sha256: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        *,
        teacher_loss: nn.Module | None = None,
        transform: nn.Module | None = None,
        labels: float = 1.0,
        predictions: float = 1.0,
        features: float = 0.0,
        temperature: float = 2.0,
        distance: Literal["cosine", "mse"] = "cosine",
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, weight in (
            ("labels", labels),
            ("predictions", predictions),
            ("features", features),
        ):
            check_range(name, weight, 0.0)
        if predictions == features == 0:
            raise ValueError("`predictions` or `features` must be > 0, or there is no teaching")
        check_range("temperature", temperature, 0.0, open_low=True)
        check_choice("distance", distance, ("cosine", "mse"))
        if features > 0:
            _require("teacher", teacher, "embed", "classify")
        # In a tuple, a Module is no submodule.
        teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._teacher = (teacher,)
        self.register_buffer("teacher_sha256", _digest(teacher))
        self.register_load_state_dict_pre_hook(_refuse_another_teacher)  # type: ignore[no-untyped-call]
        self.teacher_loss, self.transform = teacher_loss, transform
        self.labels, self.predictions, self.features = labels, predictions, features
        self.temperature = temperature
        self.distance: Literal["cosine", "mse"] = distance
        self.projection = nn.Identity() if projection is None else projection

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def check(self, model: nn.Module, loss: nn.Module) -> None:
        """Refuse a student without the methods needed, or a teacher of other outputs."""
        if self.features > 0:
            _require("model", model, "embed", "classify")
        teacher_loss = loss if self.teacher_loss is None else self.teacher_loss
        check_outputs(self.teacher, teacher_loss)
        _require("loss", loss, "logits")
        _require("teacher_loss", teacher_loss, "logits")
        shared = {id(p) for p in self.teacher.parameters()} & {id(p) for p in model.parameters()}
        if shared:
            raise ValueError("`teacher` and student share weights; give copy.deepcopy(teacher)")

    def prepare(
        self,
        batch: PairBatch,
        transform: Any,
        loss: Any,
        share: slice,
        generator: torch.Generator | None,
    ) -> Views:
        """Return the student's views of a share of the batch, and what the teacher says of its."""
        teacher: Any = self.teacher
        low, high = _views(batch, transform, self.transform or transform, share, generator)
        with torch.no_grad():
            features = teacher.embed(high) if self.features > 0 else None
            outputs = teacher(high) if features is None else teacher.classify(features)
            reads: Any = self.teacher_loss or loss
            logits = reads.logits(outputs)
        return Views(low, batch.targets[share], logits, features)

    def forward(self, model: Any, loss: Any, views: Views) -> Terms:
        """Return the weighted terms "labels", "predictions" and "features", whose sum is the loss.

        Terms that weigh 0 are left out.
        """
        embedding = model.embed(views.images) if self.features > 0 else None
        outputs = model(views.images) if embedding is None else model.classify(embedding)
        terms = {}
        if self.labels > 0:
            terms["labels"] = self.labels * loss(outputs, views.targets)
        if self.predictions > 0:
            assert views.teacher_logits is not None
            terms["predictions"] = self.predictions * distillation_loss(
                loss.logits(outputs), views.teacher_logits, temperature=self.temperature
            )
        if embedding is not None:
            assert views.teacher_features is not None
            projected = self.projection(embedding)
            if projected.shape != views.teacher_features.shape:
                raise ValueError(
                    f"the student's embedding has width {projected.shape[1]}, the teacher's "
                    f"{views.teacher_features.shape[1]}; give `projection`, e.g. "
                    f"nn.Linear({embedding.shape[1]}, {views.teacher_features.shape[1]})"
                )
            terms["features"] = self.features * feature_loss(
                projected, views.teacher_features, distance=self.distance
            )
        return terms

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Take the teacher along to another device or dtype."""
        self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def _views(
    batch: PairBatch, first: Any, second: Any, share: slice, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return the low images by one transform and the high ones by another, drawn alike."""
    low, high = batch.low, batch.high
    if first is not None and second is not None:
        crops = first.draw(low, generator=generator)
        mix = None if batch.mix is None else scale_mix(batch.mix, first.size, second.size)
        low = first(low, crops=crops, mix=batch.mix)
        high = second(high, crops=crops, mix=mix)
    elif batch.mix is not None or not isinstance(low, Tensor) or not isinstance(high, Tensor):
        raise ValueError("drawn mixes and images of several sizes need a `transform`, got None")
    return low[share], high[share]


def _digest(model: nn.Module) -> Tensor:
    """Return the SHA-256 of a model's weights, names and shapes, as 32 uint8."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _refuse_another_teacher(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, Distillation)
    saved = state.get(f"{prefix}teacher_sha256")
    if saved is not None and not torch.equal(saved.cpu(), module.teacher_sha256.cpu()):
        raise ValueError(
            f"the checkpoint was trained by another teacher (SHA-256 {_hex(saved)}, this one's is "
            f"{_hex(module.teacher_sha256)}); resume with that one, or start anew"
        )


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()[:12]


def _require(name: str, module: nn.Module, *methods: str) -> None:
    missing = [method for method in methods if not hasattr(module, method)]
    if missing:
        like = "the losses of lowres_vision" if methods == ("logits",) else "LowResClassifier"
        raise ValueError(
            f"`pairing` needs `{name}` to have {' and '.join(missing)}, like {like}; "
            f"{type(module).__name__} has not"
        )
