"""Which fold a model is built for, and weights that have not seen what it is scored on."""

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from lowres_vision.training._classifier import Classifier
from lowres_vision.training._pairing import Distillation
from lowres_vision.training._weights import load_weights

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        index: Number of the fold, from 0.
        held_out: ``(n,)`` int64 rows of the manifest that are scored and never trained on.
        data_sha256: Digest of the manifest that the rows are of.
    """

    index: int
    held_out: npt.NDArray[np.int64]
    data_sha256: str

    def record(self) -> dict[str, Any]:
        """Return what is stored with weights trained in this fold, to know them by."""
        rows = np.sort(np.asarray(self.held_out, dtype="<i8"))
        digest = hashlib.sha256(self.data_sha256.encode() + rows.tobytes()).hexdigest()
        return {"index": self.index, "held_out": len(rows), "held_out_sha256": digest}


def load_fold_weights(model: nn.Module, path: str | os.PathLike[str], *, fold: Fold) -> None:
    """Load weights that were trained with the same rows held out, e.g. to train them further.

    Args:
        model: What the weights are of.
        path: Weights that :func:`cross_validate` saved, or :func:`save_weights` with
            ``fold=fold.record()``.
        fold: What the model is to be scored on.

    Raises:
        FileNotFoundError: If the weights or their sidecar are missing.
        ValueError: If the weights do not fit, do not say which rows they were not trained on, or
            were trained on rows that this fold holds out.
    """
    found = load_weights(model, path).get("fold")
    if found is None:
        raise ValueError(
            f"{Path(path)} does not say which rows it was not trained on; within folds, take "
            f"weights that `cross_validate` saved for the same folds"
        )
    _refuse_other_fold(found, fold, str(Path(path)))
    model._fold_record = found


def load_teacher(model: M, path: str | os.PathLike[str], *, fold: Fold) -> M:
    """Load a teacher as :func:`load_fold_weights` does, freeze it and return it.

    For the ``build`` of :func:`cross_validate`, which then takes the fold it builds for::

        def build(*, fold):
            weights = f"runs/high/fold_{fold.index}/best.safetensors"
            teacher = load_teacher(high_resolution_model(), weights, fold=fold)
            return Classifier(low_resolution_model(), ..., pairing=Distillation(teacher))
    """
    load_fold_weights(model, path, fold=fold)
    return model.eval().requires_grad_(False)


def call_build(build: Callable[..., Classifier], fold: Fold) -> Classifier:
    """Return ``build()``, or ``build(fold=fold)`` where it has a parameter of that name.

    Raises:
        TypeError: If what is built is no classifier.
        ValueError: If the weights of its model or teacher were loaded for another fold.
    """
    takes_fold = "fold" in inspect.signature(build).parameters
    classifier = build(fold=fold) if takes_fold else build()
    if not isinstance(classifier, Classifier):
        raise TypeError(f"`build` must return a Classifier, got a {type(classifier).__name__}")
    models = {"the model": classifier.model}
    if isinstance(classifier.pairing, Distillation):
        models["the teacher"] = classifier.pairing.teacher
    for name, model in models.items():
        found = getattr(model, "_fold_record", None)
        if found is not None:
            _refuse_other_fold(found, fold, name)
    return classifier


def _refuse_other_fold(found: dict[str, Any], fold: Fold, name: str) -> None:
    wanted = fold.record()
    if found.get("held_out_sha256") != wanted["held_out_sha256"]:
        raise ValueError(
            f"{name} was trained with other rows held out ({found.get('held_out')} rows, fold "
            f"{found.get('index')}) than fold {fold.index} of this run ({wanted['held_out']} "
            f"rows), and may have seen what this fold is scored on; take the weights of the same "
            f"fold of the same data"
        )
