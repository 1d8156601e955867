"""What every loss here agrees on: targets, weights, smoothing, reduction and precision.

A loss is defined by ``l[i, c]``, the loss of sample ``i`` were ``c`` its class. With ``t`` the
target (an index stands for its one-hot row), ``w`` the class weights and ``e`` the label smoothing,

    s[i, c] = (1 - e) * t[i, c] + e / K
    L[i]    = sum_c s[i, c] * w[c] * l[i, c]

    "none": L        "sum": sum_i L[i]        "mean": sum_i L[i] / sum_ic t[i, c] * w[c]

Without weights the mean divides by B, as rows of probabilities sum to 1. The loss is linear in the
target by construction: a mixed target costs what the mixture of the two hard targets costs, and an
index costs what its one-hot row costs. The divisor takes the target before smoothing, as
``torch.nn.functional.cross_entropy`` does for indices. For probabilities torch divides by B even
where there are weights, and so disagrees with itself; here both give one number. A batch whose
targets all weigh nothing, or that has no rows, has divisor 1 instead of 0.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range
from lowres_vision._numerics import at_least_float32

Outputs = Literal["logits", "cosines"]
Reduction = Literal["mean", "sum", "none"]

# torch skips rows labelled -100 unless told otherwise; here no label is skipped in silence.
_IGNORE_NOTHING = torch.iinfo(torch.int64).min


class ClassificationLoss(nn.Module):
    """What the loss Modules share: the three common arguments, ``logits`` and ``probabilities``."""

    outputs: ClassVar[Outputs] = "logits"
    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_range("label_smoothing", label_smoothing, 0, 1)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        if weight is not None:
            _check_weight(weight)
            if not bool(((weight >= 0) & weight.isfinite()).all()):
                raise ValueError(f"`weight` must be finite and >= 0, got {weight.tolist()}")
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` that this loss reads from ``outputs``."""
        return at_least_float32(outputs)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities ``(B, K)`` that this loss reads from ``outputs``."""
        return self.logits(outputs).softmax(1)

    def extra_repr(self) -> str:
        """Name the common settings."""
        weighted = "" if self.weight is None else f"weight=({len(self.weight)},), "
        return f"{weighted}label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def check_outputs(head: nn.Module, loss: nn.Module) -> None:
    """Refuse a head whose outputs are not what the loss reads.

    Both carry a class attribute ``outputs``, "logits" or "cosines"; a Module without one, such as
    ``nn.Linear``, counts as "logits". Cosines in a loss for logits train without complaint and
    badly: the softmax of K numbers in [-1, 1] is nearly flat.

    Args:
        head: The Module whose output goes into the loss.
        loss: The loss Module.

    Raises:
        ValueError: If the two differ.

    Example:
        >>> from lowres_vision.losses import ArcFaceLoss
        >>> check_outputs(nn.Linear(8, 3), ArcFaceLoss())
        Traceback (most recent call last):
        ValueError: `loss` must read what `head` gives: ArcFaceLoss reads cosines, ...
    """
    given = getattr(head, "outputs", "logits")
    wanted = getattr(loss, "outputs", "logits")
    if given != wanted:
        raise ValueError(
            f"`loss` must read what `head` gives: {type(loss).__name__} reads {wanted}, "
            f"{type(head).__name__} gives {given}"
        )


def check_arguments(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> None:
    """Raise unless the arguments fit the contract.

    Class indices are read only on the CPU, outside compilation and ``torch.func``, where it costs
    2 us: unlabelled rows are marked -1 in this package, and a loss must not train on them.
    Elsewhere the indexing itself refuses them (a device assertion on CUDA).
    """
    check_range("label_smoothing", label_smoothing, 0, 1)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if outputs.ndim != 2 or not outputs.is_floating_point():
        raise ValueError(f"outputs must be (B, K) of a floating dtype, got {_describe(outputs)}")
    B, K = outputs.shape
    if weight is not None:
        _check_weight(weight, K)
    if targets.shape == (B, K) and targets.is_floating_point():
        return
    integral = not (
        targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    )
    if targets.shape != (B,) or not integral:
        raise ValueError(
            f"`targets` must be class indices (B,) = ({B},) of an integer dtype or probabilities "
            f"(B, K) = ({B}, {K}) of a floating dtype, got {_describe(targets)}"
        )
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if targets.device.type == "cpu" and not traced and B > 0:
        lowest, highest = (int(bound) for bound in targets.long().aminmax())
        if lowest < 0 or highest >= K:
            raise ValueError(
                f"`targets` must be class indices from 0 to {K - 1}, got "
                f"{lowest if lowest < 0 else highest}; rows without a label have no loss"
            )


def one_class_suffices(targets: Tensor, label_smoothing: float) -> bool:
    """Tell whether only ``l[i, targets[i]]`` is needed, so that losses ``(B,)`` are enough."""
    return targets.ndim == 1 and label_smoothing == 0


def negative_log_likelihood(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return ``-log softmax(logits)``: ``(B,)`` of the target's class if it suffices, or all."""
    if one_class_suffices(targets, label_smoothing):
        # 27 us against 37 us for log_softmax and gather (B=64, K=25, with backward, one core).
        return F.cross_entropy(
            logits, targets.long(), reduction="none", ignore_index=_IGNORE_NOTHING
        )
    return -logits.log_softmax(1)


def reduce_losses(
    losses: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
) -> Tensor:
    """Weight, smooth and reduce ``l`` as the module's text defines.

    Args:
        losses: ``l`` as ``(B, K)``, or ``(B,)`` of the target's class where ``one_class_suffices``.
        targets: ``(B,)`` indices or ``(B, K)`` probabilities.
        weight: ``(K,)`` or None.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
    """
    if targets.ndim == 1:
        rows, mass = _expect_indices(losses, targets.long(), weight, label_smoothing)
    else:
        rows, mass = _expect_probabilities(losses, targets, weight, label_smoothing)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if mass is None:
        return mean_of_rows(rows)
    total = mass.sum()
    return rows.sum() / torch.where(total > 0, total, 1.0)


def mean_of_rows(rows: Tensor) -> Tensor:
    """Return the mean of ``(B,)`` losses, 0 where there are none."""
    return rows.mean() if rows.numel() > 0 else rows.sum()


def _expect_indices(
    losses: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """Return the losses ``(B,)`` and, where there are weights, what each row weighs ``(B,)``."""
    rows = losses if label_smoothing == 0 else losses.gather(1, targets[:, None])[:, 0]
    mass = None
    if weight is not None:
        weight = weight.to(losses.dtype)
        mass = weight[targets]
        rows = rows * mass
    if label_smoothing > 0:
        every = losses if weight is None else losses * weight  # (B, K)
        rows = (1 - label_smoothing) * rows + label_smoothing * every.mean(1)
    return rows, mass


def _expect_probabilities(
    losses: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor | None]:
    """Return the losses ``(B,)`` and, where there are weights, what each row weighs ``(B, K)``."""
    targets = targets.to(losses.dtype)
    smoothed = targets
    if label_smoothing > 0:
        smoothed = (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]
    if weight is None:
        return (losses * smoothed).sum(1), None
    weight = weight.to(losses.dtype)
    return (losses * smoothed * weight).sum(1), targets * weight


def _check_weight(weight: Tensor, num_classes: int | None = None) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"`weight` must be a Tensor (K,), got {type(weight).__name__}")
    num_classes = weight.numel() if num_classes is None else num_classes
    if weight.shape != (num_classes,) or not weight.is_floating_point():
        raise ValueError(
            f"`weight` must be (K,) = ({num_classes},) of a floating dtype, got {_describe(weight)}"
        )


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}"
