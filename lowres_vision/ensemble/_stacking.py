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
from lowres_vision.ensemble._select import convex_weights

# A member that is sure of a wrong class would otherwise move the fit by the logarithm of its error.
_FLOOR = 1e-6


class Stacking(nn.Module):
    """Multinomial logistic regression over the members' log-probabilities.

    ``softmax(log sum_m w_m p_m + W [log p_1 ... log p_M] + b)``: the soft vote with the weights of
    lowest log loss, and what the data add to it, so the limit of a large ``l2`` is that vote (but
    for the shares of the classes, which b corrects). Unlike weights it can learn that one model
    knows the finches and another the tits, but it has ``K (M K + 1)`` numbers to fit: with few rows
    :func:`select_ensemble` is the better choice. Score
    ``cross_fit(Stacking.fit, p, labels, folds=fold_of, dim=1)`` against its ``nested_score``.
    Probabilities below 1e-6 count as that.

    Args:
        vote: ``(M,)`` weights w, sum 1.
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

    vote: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, vote: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        shapes = tuple(vote.shape), tuple(weight.shape), tuple(bias.shape)
        if vote.ndim != 1 or bias.ndim != 1 or shapes[1] != (len(bias), len(vote) * len(bias)):
            raise ValueError(
                f"`vote` must be (M,), `weight` (K, M K) and `bias` (K,), got {shapes}"
            )
        self.register_buffer("vote", vote.detach().float())
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", bias.detach().float())

    def forward(self, probabilities: Tensor) -> Tensor:
        """Map members' probabilities ``(M, B, K)`` to those of the stack, ``(B, K)``."""
        p = at_least_float32(probabilities).clamp(min=_FLOOR)
        vote = torch.einsum("m,mbk->bk", self.vote.to(p.dtype), p).log()
        features = p.log().transpose(0, 1).flatten(1)  # (B, M K)
        return (vote + features @ self.weight.to(p.dtype).T + self.bias.to(p.dtype)).softmax(1)

    @classmethod
    def fit(
        cls,
        probabilities: npt.ArrayLike | Tensor,
        labels: npt.ArrayLike,
        *,
        l2: float | None = None,
    ) -> Self:
        """Return the stack with the lowest regularised log loss on these rows.

        Args:
            probabilities: ``(M, N, K)`` of rows that the members were not trained on.
            labels: ``(N,)`` class indices.
            l2: Weight of the penalty, > 0; default ``1000 / N``, as the loss is a mean over rows
                while what a penalty guards against shrinks with their number.

        Raises:
            ValueError: If shapes or values do not fit.
        """
        if l2 is not None:
            check_range("l2", l2, 0, open_low=True)
        if isinstance(probabilities, Tensor):
            probabilities = probabilities.detach().cpu().numpy()
        members = np.stack(check_members(probabilities))
        N = members.shape[1]
        truth = check_labels(labels, *members.shape[1:])
        p = np.maximum(members.astype(np.float64), _FLOOR)
        vote = convex_weights(p[:, np.arange(N), truth])
        features = torch.from_numpy(np.log(p)).transpose(0, 1).flatten(1)
        weight, bias = fit_logistic(
            features,
            torch.from_numpy(truth),
            offset=torch.from_numpy(np.log(np.einsum("m,mnk->nk", vote, p))),
            l2=1000 / N if l2 is None else l2,
        )
        return cls(torch.from_numpy(vote), weight, bias)
