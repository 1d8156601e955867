"""Re-tuning the end of a trained model on images as they are at test time."""

import copy
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lowres_vision._checks import check_range, check_size
from lowres_vision.augment import BatchTransform
from lowres_vision.models import LowResClassifier, freeze_except
from lowres_vision.training._classifier import Classifier

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def retune_head(
    classifier: Classifier,
    *,
    optimizer: Callable[[Any], Optimizer],
    size: int | tuple[int, int] | None = None,
    norms: int = 1,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> Classifier:
    """Return a classifier that trains the head and last norm on test-time images alone.

    Random crops enlarge what they show, so a model trained on them sees objects smaller at test
    time, and its last statistics are off. A few epochs on whole images, at the size of the test or
    a larger one, put that right at little cost: pooling, neck, head and the last norms of the
    backbone train; the rest is frozen as by :func:`~lowres_vision.models.freeze_except`. Train the
    result like any classifier; with folds, by a second :func:`cross_validate` whose ``build`` loads
    what the first one saved::

        def build(*, fold):
            classifier = first_build()
            weights = f"runs/first/fold_{fold.index}/best.safetensors"
            load_fold_weights(classifier.scored_model, weights, fold=fold)
            return retune_head(classifier, optimizer=partial(torch.optim.SGD, lr=1e-3), size=288)

    Args:
        classifier: Trained, around a :class:`~lowres_vision.models.LowResClassifier` and with a
            :class:`~lowres_vision.augment.BatchTransform`. It is copied, not changed.
        optimizer: As of :class:`Classifier`.
        size: Side or ``(height, width)`` that images get at test time; None as before. Position
            embeddings are resampled by timm where the backbone has some.
        norms: How many norms of the backbone to train, from its end; 0 for none.
        schedule: As of :class:`Classifier`.

    Returns:
        A new classifier around a copy of the scored model, with the same loss and seed, no crops,
        and no pairing.

    Raises:
        TypeError: If model or transform is another.
        ValueError: If the backbone has fewer norms, or cannot read the size.

    References:
        Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019,
        https://arxiv.org/abs/1906.06423, which re-tunes the classifier and the last BatchNorm.
    """
    model, transform = copy.deepcopy(classifier.scored_model), classifier.transform
    for name, value, kind in (
        ("model", model, LowResClassifier),
        ("transform", transform, BatchTransform),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"`classifier.{name}` must be a {kind.__name__}, got {type(value).__name__}"
            )
    assert isinstance(model, LowResClassifier)
    assert isinstance(transform, BatchTransform)
    side = transform.eval_size if size is None else check_size("size", size)
    if side != transform.size and model.resizer is None:
        model.set_image_size(side)
    trainable = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(("backbone.", "resizer."))
    ]
    model.train()  # an average is kept in evaluation mode
    freeze_except(model, trainable + _last_norms(model.backbone, norms))
    whole = BatchTransform(
        side,
        mean=transform.mean,
        std=transform.std,
        scale=None,
        flip=transform.flip,
        via=transform.via,
        mode=transform.mode,
        dtype=transform.dtype,
    )
    return Classifier(
        model,
        classifier.loss,
        transform=whole,
        optimizer=optimizer,
        schedule=schedule,
        seed=classifier.seed,
    )


def _last_norms(backbone: nn.Module, count: int) -> list[str]:
    """Return the names of the last norms that have weights."""
    found = [
        f"backbone.{name}"
        for name, module in backbone.named_modules()
        if isinstance(module, _NORMS) and list(module.parameters(recurse=False))
    ]
    check_range("norms", count, 0, len(found))
    return found[len(found) - count :]
