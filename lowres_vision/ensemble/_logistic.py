"""Multinomial logistic regression with an offset, for linear classifiers and stacking."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_logistic(
    features: Tensor, truth: Tensor, *, offset: Tensor, l2: float
) -> tuple[Tensor, Tensor]:
    """Return ``W (K, D)`` and ``b (K,)`` of the lowest regularised log loss.

    ``mean_n -log softmax(offset_n + W x_n + b)_label + l2 / 2 |W|^2``

    Args:
        features: ``(N, D)`` float64.
        truth: ``(N,)`` int64.
        offset: ``(N, K)`` float64, added to the logits.
        l2: Weight of the penalty, > 0, which makes the minimum unique but for a constant in b.
    """
    K = offset.shape[1]
    # Centred features make the unpenalised bias nearly orthogonal to the weights.
    centre = features.mean(dim=0)
    centred = features - centre
    weight = features.new_zeros(K, features.shape[1], requires_grad=True)
    bias = features.new_zeros(K, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = offset + F.linear(centred, weight, bias)
        loss = F.cross_entropy(logits, truth) + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight, bias = weight.detach(), bias.detach()
    return weight, bias - weight @ centre
