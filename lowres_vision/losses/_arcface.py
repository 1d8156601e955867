"""ArcFace: an angular margin on the target's class, for cosines from a cosine classifier.

The loss needs cosines: ``lowres_vision.heads.CosineClassifier`` gives them, and its parameters
belong in the optimizer. Accuracy is that of the cosines, ``cosines.argmax(1)``; the margin lives
only inside the loss, so the loss is far higher than the accuracy suggests.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32
from lowres_vision.losses._contract import (
    ClassificationLoss,
    Outputs,
    Reduction,
    check_arguments,
    negative_log_likelihood,
    one_class_suffices,
    reduce_losses,
)


def arcface_loss(
    cosines: Tensor,
    targets: Tensor,
    *,
    scale: float = 30.0,
    margin: float | Tensor = 0.5,
    easy_margin: bool = False,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ArcFace loss, the cross-entropy after a margin m on the angle of the target's class.

    With ``theta_c = acos(cosines_c)`` the loss of class c is

        l_c = -log( exp(s phi_c) / (exp(s phi_c) + sum_{j != c} exp(s cos theta_j)) )

        phi_c = cos(theta_c + m)        if theta_c < pi - m, else cos(theta_c) - m sin(m)
        phi_c = cos(theta_c + m)        if theta_c < pi / 2, else cos(theta_c)     (``easy_margin``)

    and a target t costs ``sum_c t_c w_c l_c``: each class that has a share gets its own margin in
    its own term. One softmax over cosines that each carry a share of the margin is another, smaller
    loss and not linear in t. Soft targets take O(B K) memory.

    The gradient is the exact one, with the factor ``sin(theta + m) / sin(theta)``; the variant that
    edits the logits without telling autograd drops it. At cosines of 1 and of -1, and beyond by
    rounding, ``sin(theta)`` is taken as 0 and its gradient too, so value and gradient are finite.

    Args:
        cosines: ``(B, K)`` in [-1, 1] up to rounding, without a margin or a scale.
        targets: Class indices ``(B,)`` in [0, K) or probabilities ``(B, K)``; see
            :func:`cross_entropy`. With label smoothing every class gets a share, and its margin.
        scale: Factor s > 0. A start for K classes is ``sqrt(2) * log(K - 1)`` (AdaCos).
        margin: m in [0, pi] **radians**, one for all or ``(K,)`` as from ``adaptive_margins``.
        easy_margin: Apply the margin only below 90 degrees.
        weight: ``(K,)`` weights >= 0 of the classes.
        label_smoothing: Share e of each target spread evenly: ``(1 - e) * t + e / K``.
        reduction: "mean" (divides by ``sum(t * w)``), "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 cosines, else float32, also
        under autocast.

    Raises:
        ValueError: If a shape, a dtype or an option does not fit; on the CPU outside compilation
            also if a class index is out of range.

    Example:
        >>> cosines = torch.tensor([[0.8, 0.1, -0.2], [0.3, 0.4, 0.0]])
        >>> arcface_loss(cosines, torch.tensor([0, 1]), scale=10.0)
        tensor(1.9980)
        >>> arcface_loss(cosines, torch.tensor([0, 1]), scale=10.0, margin=0.0)
        tensor(0.1638)

    References:
        Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
        https://arxiv.org/abs/1801.07698, equation 3. The branch beyond ``pi - m`` keeps the loss
        monotone in the angle; it is not in the paper and common in implementations.
        Zhang et al., "AdaCos", CVPR 2019, https://arxiv.org/abs/1905.00292 (the fixed scale).
    """
    check_range("scale", scale, 0, open_low=True)
    check_arguments(cosines, targets, weight, label_smoothing, reduction)
    _check_margin(margin, cosines.shape[1])
    cosines = at_least_float32(cosines)
    if isinstance(margin, Tensor):
        margin = margin.to(cosines.dtype)
    if one_class_suffices(targets, label_smoothing):
        index = targets.long()[:, None]  # (B, 1)
        if isinstance(margin, Tensor):
            margin = margin[index]
        with_margin = _add_margin(cosines.gather(1, index), margin, easy_margin)
        logits = scale * cosines.scatter(1, index, with_margin)
        losses = negative_log_likelihood(logits, targets, label_smoothing)
    else:
        with_margin = _add_margin(cosines, margin, easy_margin)
        losses = _losses_of_all_classes(scale * cosines, scale * with_margin)
    return reduce_losses(
        losses, targets, weight=weight, label_smoothing=label_smoothing, reduction=reduction
    )


class ArcFaceLoss(ClassificationLoss):
    """Module of :func:`arcface_loss`.

    ``probabilities`` is ``softmax(scale * cosines)``, without the margin.

    Args:
        scale: Factor > 0 on the cosines.
        margin: In [0, pi] radians: a float, or ``(K,)``, which is kept as a buffer.
        easy_margin: Apply the margin only below 90 degrees.
        weight: ``(K,)`` weights >= 0 of the classes, kept as a buffer, or None.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
    """

    outputs: ClassVar[Outputs] = "cosines"
    margin: float | Tensor

    def __init__(
        self,
        *,
        scale: float = 30.0,
        margin: float | Tensor = 0.5,
        easy_margin: bool = False,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, label_smoothing=label_smoothing, reduction=reduction)
        check_range("scale", scale, 0, open_low=True)
        self.scale = scale
        self.easy_margin = easy_margin
        if isinstance(margin, Tensor):
            _check_margin(margin, margin.numel())
            for bound in margin.aminmax():
                _check_margin(float(bound), 1)
            self.register_buffer("margin", margin)
        else:
            _check_margin(margin, 1)
            self.margin = margin

    def forward(self, cosines: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of ``cosines`` ``(B, K)`` for ``targets`` ``(B,)`` or ``(B, K)``."""
        return arcface_loss(
            cosines,
            targets,
            scale=self.scale,
            margin=self.margin,
            easy_margin=self.easy_margin,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def logits(self, outputs: Tensor) -> Tensor:
        """Return ``scale * cosines`` ``(B, K)``, without the margin."""
        return self.scale * at_least_float32(outputs)

    def extra_repr(self) -> str:
        """Name the settings."""
        margin = f"({len(self.margin)},)" if isinstance(self.margin, Tensor) else self.margin
        own = f"scale={self.scale}, margin={margin}, easy_margin={self.easy_margin}"
        return f"{own}, {super().extra_repr()}"


def adaptive_margins(
    counts: Tensor | Sequence[int], *, low: float = 0.05, high: float = 0.5
) -> Tensor:
    """Return a margin per class, larger for rarer classes, from the number of images of each.

    With ``u_c = n_c^(-1/4)`` the margin of a class is
    ``low + (high - low) * (u_c - min u) / (max u - min u)``: ``high`` for the rarest class, ``low``
    for the most common. Where all counts are equal no class is rarer than another, and every class
    gets the midpoint.

    Args:
        counts: ``(K,)`` images of each class, all >= 1, in the order of the class indices. Count
            with ``torch.bincount(labels, minlength=K)``: a table without its empty classes shifts
            every later class.
        low: Margin of the most common class, in radians.
        high: Margin of the rarest class, in radians, ``low <= high <= pi``.

    Returns:
        ``(K,)`` margins in radians, of the default dtype and on the device of ``counts``.

    Raises:
        ValueError: If a class has no image, or the bounds are not in order.

    Example:
        >>> adaptive_margins([10_000, 625, 16])
        tensor([0.0500, 0.1625, 0.5000])
        >>> adaptive_margins([500, 500])
        tensor([0.2750, 0.2750])

    References:
        Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution",
        https://arxiv.org/abs/2010.05350 (dynamic margins). Equal counts are 0 / 0 there.
    """
    check_range("low", low, 0, math.pi)
    check_range("high", high, low, math.pi)
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"`counts` must be (K,) with K > 0, got {tuple(counts.shape)}")
    empty = (~(counts >= 1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"`counts` must be >= 1 for every class, got less for classes {empty}")
    rarity = counts.pow(-0.25)
    least, most = rarity.aminmax()
    share = (rarity - least) / (most - least) if most > least else torch.full_like(rarity, 0.5)
    return (low + (high - low) * share).to(torch.get_default_dtype())


def _check_margin(margin: float | Tensor, num_classes: int) -> None:
    if not isinstance(margin, Tensor):
        if not isinstance(margin, (int, float)):
            kind = type(margin).__name__
            raise TypeError(f"`margin` must be a float or a Tensor (K,) of radians, got {kind}")
        if not 0 <= margin <= math.pi:
            raise ValueError(f"`margin` must be in [0, pi] radians, got {margin!r}")
    elif margin.shape != (num_classes,) or not margin.is_floating_point():
        raise ValueError(
            f"`margin` must be a float or (K,) = ({num_classes},) of a floating dtype, "
            f"got {tuple(margin.shape)} {margin.dtype}"
        )


def _add_margin(cosines: Tensor, margin: float | Tensor, easy_margin: bool) -> Tensor:
    """Return the cosines of the angles with the margin added, where the rule adds it."""
    cos_m = margin.cos() if isinstance(margin, Tensor) else math.cos(margin)
    sin_m = margin.sin() if isinstance(margin, Tensor) else math.sin(margin)
    # acos and sqrt have an infinite slope at cosines of +-1. The floor lies below every other value
    # that the product can take, and stops the gradient there and beyond.
    floor = torch.finfo(cosines.dtype).eps ** 2
    sines = ((1 - cosines) * (1 + cosines)).clamp(min=floor).sqrt()
    shifted = cosines * cos_m - sines * sin_m
    if easy_margin:
        return torch.where(cosines > 0, shifted, cosines)
    return torch.where(cosines > -cos_m, shifted, cosines - margin * sin_m)


def _losses_of_all_classes(logits: Tensor, with_margin: Tensor) -> Tensor:
    """Return ``log(exp(m_c) + sum_{j != c} exp(z_j)) - m_c`` for every class c, ``(B, K)``.

    Here z are the scaled cosines and m those with the margin, so ``m_c <= z_c``. One sum serves all
    classes, each of which takes its own term off it. That is safe for every class but the largest:
    the sum holds the largest term too, so what is left is at least 1 in units of it. The largest
    class gets the sum of the others, formed without it.
    """
    largest, top = logits.max(1, keepdim=True)  # (B, 1)
    others = logits.scatter(1, top, torch.finfo(logits.dtype).min)
    second = others.amax(1, keepdim=True).detach()  # a shift: it drops out of every result
    shares = (others - second).exp()  # 0 at the largest class
    total = shares.sum(1, keepdim=True)
    rest = (total - shares) * (second - largest).exp() + (with_margin - largest).exp()
    losses = largest - with_margin + rest.log1p()
    of_largest = -F.logsigmoid(with_margin.gather(1, top) - second - total.log())
    return losses.scatter(1, top, of_largest)
