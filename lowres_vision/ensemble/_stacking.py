"""Stacking: a logistic regression over what several models say."""

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32
from lowres_vision.ensemble._inputs import check_labels, check_members
from lowres_vision.ensemble._logistic import fit_logistic

# A member that is sure of a wrong class would otherwise move the fit by the logarithm of its error.
_FLOOR = 1e-6


class Stacking(nn.Module):
    """Multinomial logistic regression over the members' log-probabilities.

    ``softmax(1 / M sum_m log p_m + W [log p_1 ... log p_M] + b)``: a geometric mean vote and what
    the data add to it, so ``W = 0, b = 0``, the limit of a large ``l2``, is that vote. Unlike
    weights it can learn that one model knows the finches and another the tits, but it has
    ``K (M K + 1)`` numbers to fit: with few rows :func:`select_ensemble` is the better choice.
    Compare the two by scoring ``cross_fit(Stacking.fit, p, labels, folds=fold_of, dim=1)`` and
    ``nested_score``. Probabilities below 1e-6 count as that.

    Args:
        weight: ``(K, M K)``.
        bias: ``(K,)``.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> p = torch.tensor([[[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]],
        ...                   [[0.2, 0.8], [0.9, 0.1], [0.1, 0.9]]])
        >>> stack = Stacking.fit(p, [0, 0, 1], l2=0.1)
        >>> stack(p).argmax(1)
        tensor([0, 0, 1])

    References:
        Wolpert, "Stacked Generalization", Neural Networks 5, 1992. The vote as the starting point
        that the penalty holds to is ours.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        K = len(bias)
        if bias.ndim != 1 or weight.ndim != 2 or weight.shape[0] != K or weight.shape[1] % K:
            raise ValueError(
                f"`weight` must be (K, M K) and `bias` (K,), got {tuple(weight.shape)} and "
                f"{tuple(bias.shape)}"
            )
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", bias.detach().float())

    def forward(self, probabilities: Tensor) -> Tensor:
        """Map members' probabilities ``(M, B, K)`` to those of the stack, ``(B, K)``."""
        logs = at_least_float32(probabilities).clamp(min=_FLOOR).log()
        features = logs.transpose(0, 1).flatten(1)  # (B, M K)
        linear = features @ self.weight.to(logs.dtype).T + self.bias.to(logs.dtype)
        return (logs.mean(dim=0) + linear).softmax(1)

    @classmethod
    def fit(
        cls, probabilities: npt.ArrayLike | Tensor, labels: npt.ArrayLike, *, l2: float = 1e-2
    ) -> Self:
        """Return the stack with the lowest regularised log loss on these rows.

        Args:
            probabilities: ``(M, N, K)`` of rows that the members were not trained on.
            labels: ``(N,)`` class indices.
            l2: Weight of the penalty, > 0.

        Raises:
            ValueError: If shapes or values do not fit.
        """
        check_range("l2", l2, 0, open_low=True)
        if isinstance(probabilities, Tensor):
            probabilities = probabilities.detach().cpu().numpy()
        members = np.stack(check_members(probabilities))
        truth = torch.from_numpy(check_labels(labels, *members.shape[1:]))
        logs = torch.from_numpy(np.log(np.maximum(members.astype(np.float64), _FLOOR)))
        features = logs.transpose(0, 1).flatten(1)
        return cls(*fit_logistic(features, truth, offset=logs.mean(dim=0), l2=l2))
