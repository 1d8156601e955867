"""Cosine loss: one minus the cosine between the outputs and the one-hot target.

It helps where there are few images per class and no pretraining, and wants a higher learning rate
than cross-entropy does (0.5 against 0.05 in the paper). It comes with cross-entropy in two forms:

* the one-output form, :func:`cosine_loss` with ``cross_entropy=0.1``: the cross-entropy reads the
  same normalised outputs. Their softmax is that of numbers in [-1, 1], so this term never comes
  near 0 (0.84 at best for 5 classes, 3.62 for 100).
* the paper's combined form: the cross-entropy reads a second head on top of the outputs,
  :class:`lowres_vision.heads.CosineHead`. Its parameters go into the optimizer with the model's::

      z = model(images)  # (B, K)
      loss = cosine_loss(z, targets) + 0.1 * cross_entropy(head(z), targets)
"""

from torch import Tensor

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32, unit_vectors
from lowres_vision.losses._contract import (
    ClassificationLoss,
    Reduction,
    check_arguments,
    negative_log_likelihood,
    one_class_suffices,
    reduce_losses,
)


def cosine_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    cross_entropy: float = 0.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cosine loss ``1 - sum_c t_c u_c`` with ``u = z / |z|`` and ``z`` the logits.

    With ``cross_entropy`` = lambda the loss of class c is ``1 - u_c - lambda * log softmax(u)_c``.
    The target is not normalised: that would be another loss, not linear in the target. A mixed or
    smoothed target therefore has a floor above 0, ``1 - |t|``.

    A vector shorter than 1e-6 has no direction: its loss is 1 and its gradient that of ``1 - t.z``.

    Args:
        logits: ``(B, K)``; only their direction counts. The prediction is their argmax.
        targets: Class indices ``(B,)`` in [0, K) or probabilities ``(B, K)``; see
            :func:`cross_entropy`.
        cross_entropy: Share >= 0 of the cross-entropy of ``softmax(u)``, the one-output form. The
            paper's form, with its own head, is :class:`lowres_vision.heads.CosineHead`.
        weight: ``(K,)`` weights >= 0 of the classes.
        label_smoothing: Share e of each target spread evenly: ``(1 - e) * t + e / K``.
        reduction: "mean" (divides by ``sum(t * w)``), "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 logits, else float32, also
        under autocast. Each unweighted value lies in [0, 2] where ``cross_entropy`` is 0.

    Raises:
        ValueError: If a shape, a dtype or an option does not fit; on the CPU outside compilation
            also if a class index is out of range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> cosine_loss(logits, torch.tensor([0, 1]), reduction="none")
        tensor([0.4000, 0.0000])
        >>> cosine_loss(logits, torch.tensor([[0.5, 0.5], [0.0, 1.0]]), reduction="none")
        tensor([0.3000, 0.0000])

    References:
        Barz and Denzler, "Deep Learning on Small Datasets without Pre-Training using Cosine Loss",
        WACV 2020, https://arxiv.org/abs/1901.09054. Their extra head is
        :class:`lowres_vision.heads.CosineHead`.
    """
    check_range("cross_entropy", cross_entropy, 0)
    check_arguments(logits, targets, weight, label_smoothing, reduction)
    cosines = unit_vectors(at_least_float32(logits))  # (B, K)
    if one_class_suffices(targets, label_smoothing):
        losses = 1 - cosines.gather(1, targets.long()[:, None])[:, 0]  # (B,)
    else:
        losses = 1 - cosines
    if cross_entropy > 0:
        nll = negative_log_likelihood(cosines, targets, label_smoothing)
        losses = losses + cross_entropy * nll
    return reduce_losses(
        losses, targets, weight=weight, label_smoothing=label_smoothing, reduction=reduction
    )


class CosineLoss(ClassificationLoss):
    """Module of :func:`cosine_loss`.

    The loss fixes directions, not probabilities. ``probabilities`` is therefore
    ``softmax(temperature * z / |z|)`` with a temperature to be fitted on predictions for images
    that were not trained on; ``loss.temperature = fitted`` sets it. It multiplies, as ArcFace's
    scale does, and the loss itself does not use it. The default 10 lets a perfect output reach
    0.999 for 25 classes and 0.957 for 1,000; at 1 it could not pass 0.104 for 25.

    Args:
        cross_entropy: Share >= 0 of the cross-entropy of the normalised outputs.
        temperature: Factor > 0 on the cosines in ``probabilities``.
        weight: ``(K,)`` weights >= 0 of the classes, kept as a buffer, or None.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 0.0,
        temperature: float = 10.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, label_smoothing=label_smoothing, reduction=reduction)
        check_range("cross_entropy", cross_entropy, 0)
        check_range("temperature", temperature, 0, open_low=True)
        self.cross_entropy = cross_entropy
        self.temperature = temperature

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of ``logits`` ``(B, K)`` for ``targets`` ``(B,)`` or ``(B, K)``."""
        return cosine_loss(
            logits,
            targets,
            cross_entropy=self.cross_entropy,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def logits(self, outputs: Tensor) -> Tensor:
        """Return ``temperature * z / |z|`` ``(B, K)`` of the outputs ``z``."""
        return self.temperature * unit_vectors(at_least_float32(outputs))

    def extra_repr(self) -> str:
        """Name the settings."""
        own = f"cross_entropy={self.cross_entropy}, temperature={self.temperature}"
        return f"{own}, {super().extra_repr()}"
