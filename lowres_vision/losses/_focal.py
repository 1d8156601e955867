"""Focal loss over the softmax of K classes."""

import torch
from torch import Tensor

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32
from lowres_vision.losses._contract import (
    ClassificationLoss,
    Reduction,
    check_arguments,
    negative_log_likelihood,
    reduce_losses,
)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focal loss ``-sum_c t_c w_c (1 - p_c)^gamma log p_c`` with ``p = softmax(logits)``.

    The focal factor is that of each sample and each class. Three neighbours are other losses: the
    factor of the batch's mean cross-entropy, the factor of the soft cross-entropy
    ``exp(sum_c t_c log p_c)``, which is not linear in the target, and a factor taken after the
    class weights, ``1 - p^w``.

    The paper's alpha is ``weight``, one value per class. Its scalar alpha of the binary case would
    only scale the loss here.

    Args:
        logits: ``(B, K)``.
        targets: Class indices ``(B,)`` in [0, K) or probabilities ``(B, K)``; see
            :func:`cross_entropy`.
        gamma: Focusing exponent >= 0; 0 is cross-entropy.
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
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> focal_loss(logits, torch.tensor([0, 1]))
        tensor(0.0550)

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
        https://arxiv.org/abs/1708.02002, equations 4 and 5. The paper has one sigmoid per class;
        this is the softmax form, for K = 2 the paper's on the difference of the two logits.
    """
    check_range("gamma", gamma, 0)
    check_arguments(logits, targets, weight, label_smoothing, reduction)
    losses = negative_log_likelihood(at_least_float32(logits), targets, label_smoothing)
    if gamma > 0:
        # Where p rounds to 1, x^gamma with gamma < 1 has an infinite slope. The floor lies below
        # every other value that 1 - p can take, and stops the gradient there.
        floor = torch.finfo(losses.dtype).eps ** 2
        losses = (-torch.expm1(-losses)).clamp(min=floor).pow(gamma) * losses
    return reduce_losses(
        losses, targets, weight=weight, label_smoothing=label_smoothing, reduction=reduction
    )


class FocalLoss(ClassificationLoss):
    """Module of :func:`focal_loss`.

    ``probabilities`` is the softmax of the logits. Its minimiser is less confident than the data
    where gamma > 0: calibrate before reading the numbers as chances.

    Args:
        gamma: Focusing exponent >= 0.
        weight: ``(K,)`` weights >= 0 of the classes, kept as a buffer, or None.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, label_smoothing=label_smoothing, reduction=reduction)
        check_range("gamma", gamma, 0)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of ``logits`` ``(B, K)`` for ``targets`` ``(B,)`` or ``(B, K)``."""
        return focal_loss(
            logits,
            targets,
            gamma=self.gamma,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"gamma={self.gamma}, {super().extra_repr()}"
