"""Cross-entropy under the target contract of this package."""

from torch import Tensor

from lowres_vision._numerics import at_least_float32
from lowres_vision.losses._contract import (
    ClassificationLoss,
    Reduction,
    check_arguments,
    negative_log_likelihood,
    reduce_losses,
)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy ``-sum_c t_c w_c log p_c`` with ``p = softmax(logits)``.

    For class indices this is ``torch.nn.functional.cross_entropy``, weights and label smoothing
    included. For probabilities it differs from it in two ways: the mean divides by ``sum(t * w)``
    and not by B, so that a one-hot row costs what its index costs; and no index is ignored.

    Args:
        logits: ``(B, K)``.
        targets: Class indices ``(B,)`` of an integer dtype in [0, K), or probabilities ``(B, K)``
            of a floating dtype whose rows sum to 1 (mixed labels, pseudo-labels). Rows without a
            label (-1) are refused: select the labelled ones first.
        weight: ``(K,)`` weights >= 0 of the classes.
        label_smoothing: Share e of each target spread evenly: ``(1 - e) * t + e / K``.
        reduction: "mean" (divides by ``sum(t * w)``), "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 logits, else float32, also
        under autocast.

    Raises:
        ValueError: If a shape, a dtype or an option does not fit; on the CPU outside compilation
            also if a class index is out of range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, 1]))
        tensor(0.3955)
        >>> cross_entropy(logits, torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]]))
        tensor(0.6955)

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
        https://arxiv.org/abs/1512.00567, section 7 (label smoothing).
        The divisor for weighted probabilities: https://github.com/pytorch/pytorch/pull/61044.
    """
    check_arguments(logits, targets, weight, label_smoothing, reduction)
    losses = negative_log_likelihood(at_least_float32(logits), targets, label_smoothing)
    return reduce_losses(
        losses, targets, weight=weight, label_smoothing=label_smoothing, reduction=reduction
    )


class CrossEntropyLoss(ClassificationLoss):
    """Module of :func:`cross_entropy`.

    Args:
        weight: ``(K,)`` weights >= 0 of the classes, kept as a buffer, or None.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of ``logits`` ``(B, K)`` for ``targets`` ``(B,)`` or ``(B, K)``."""
        return cross_entropy(
            logits,
            targets,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )
