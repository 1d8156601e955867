"""Votes over the class probabilities of several models.

Every vote is a weighted mean of something each model says of a row, so one loop serves stored
predictions here and live models in :class:`VotingEnsemble`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lowres_vision._numerics import at_least_float32
from lowres_vision.ensemble._inputs import Indices, check_members, check_weights

Vote = Literal["soft", "hard", "geometric", "rank"]
VOTES: tuple[Vote, ...] = ("soft", "hard", "geometric", "rank")

Members = npt.ArrayLike | Sequence[npt.ArrayLike]

# The smallest normal float32, for every dtype: a float32 softmax that underflowed to 0 then
# weighs the same in a stored float64 copy of it.
_FLOOR = float(torch.finfo(torch.float32).tiny)


def soft_vote(
    probabilities: Members, *, weights: Sequence[float] | npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Average class probabilities over models.

    ``p_nk = sum_m w_m p_mnk / sum_m w_m``

    Args:
        probabilities: ``(M, N, K)``, or M arrays ``(N, K)``: models, rows, classes. Every row sums
            to 1.
        weights: ``(M,)`` non-negative weights; default equal.

    Returns:
        ``(N, K)`` float64 probabilities.

    Raises:
        ValueError: If the shape is another, a value is NaN or outside [0, 1], or a row does not
            sum to 1: averaging logits is a geometric mean, another vote.

    Example:
        >>> soft_vote([[[0.75, 0.25]], [[0.25, 0.75]]], weights=[3, 1]).tolist()
        [[0.625, 0.375]]

    References:
        scikit-learn's ``VotingClassifier(voting="soft")`` gives the same values.
    """
    return _vote_stored(probabilities, weights, "soft")


def hard_vote(
    predictions: Members, *, weights: Sequence[float] | npt.ArrayLike | None = None
) -> Indices:
    """Return the class that most models, or the heaviest, put first.

    ``class_n = argmax_k sum_m w_m [argmax_j p_mnj = k]``, ties to the smallest class index.

    Args:
        predictions: ``(M, N, K)`` probabilities, or ``(M, N)`` class indices.
        weights: ``(M,)`` non-negative weights; default equal. Whole numbers tie exactly; 0.1 + 0.2
            is a little more than 0.3.

    Returns:
        ``(N,)`` class indices. :func:`tied_rows` tells which of them the tie rule decided.

    Raises:
        ValueError: If shape or values are those of neither, or weights do not fit.

    Example:
        >>> hard_vote([[2, 1], [0, 1], [2, 0]])
        array([2, 1])

    References:
        scikit-learn's ``VotingClassifier(voting="hard")`` gives the same classes.
    """
    return np.asarray(_vote_shares(predictions, weights).argmax(axis=1), dtype=np.int64)


def tied_rows(
    predictions: Members, *, weights: Sequence[float] | npt.ArrayLike | None = None
) -> npt.NDArray[np.bool_]:
    """Tell which rows of a :func:`hard_vote` have two or more classes with the most votes.

    Args:
        predictions: As for :func:`hard_vote`.
        weights: As for :func:`hard_vote`.

    Returns:
        ``(N,)`` bool; its sum counts the tied rows.

    Example:
        >>> tied_rows([[2, 1], [0, 1]]).tolist()
        [True, False]
    """
    shares = _vote_shares(predictions, weights)
    tied: npt.NDArray[np.bool_] = (shares == shares.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return tied


def geometric_mean_vote(
    probabilities: Members, *, weights: Sequence[float] | npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Average log-probabilities over models and normalise, as averaging logits does.

    ``p_nk = prod_m p_mnk^(w_m / sum w) / sum_j prod_m p_mnj^(w_m / sum w)``

    One model that is sure a class is wrong can veto it. Probabilities below 1.2e-38, the smallest
    normal float32, count as that.

    Args:
        probabilities: As for :func:`soft_vote`.
        weights: As for :func:`soft_vote`.

    Returns:
        ``(N, K)`` float64 probabilities.

    Raises:
        ValueError: As :func:`soft_vote`.

    Example:
        >>> geometric_mean_vote([[[0.5, 0.5]], [[0.9, 0.1]]]).round(6).tolist()
        [[0.75, 0.25]]
    """
    return _vote_stored(probabilities, weights, "geometric")


def rank_mean_vote(
    probabilities: Members, *, weights: Sequence[float] | npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Average the rank that each model gives a class within its row (the Borda count).

    ``s_nk = sum_m w_m rank_mnk / (sum_m w_m * K (K + 1) / 2)``, the least likely class having rank
    1, the likeliest K, equal probabilities their mean rank. How sure a model is does not count,
    so a badly calibrated one cannot shout the others down.

    Args:
        probabilities: As for :func:`soft_vote`.
        weights: As for :func:`soft_vote`.

    Returns:
        ``(N, K)`` float64 scores whose rows sum to 1. They order classes; they are no
        probabilities.

    Raises:
        ValueError: As :func:`soft_vote`.

    Example:
        >>> (6 * rank_mean_vote([[[0.6, 0.3, 0.1]], [[0.1, 0.45, 0.45]]])).tolist()
        [[2.0, 2.25, 1.75]]

    References:
        Contest solutions also rank the rows of one class against each other, which needs all rows
        at once and pulls the predicted class shares together: another vote, for ranking metrics.
    """
    return _vote_stored(probabilities, weights, "rank")


def combine(members: Iterable[Tensor], weights: Sequence[float], vote: Vote) -> Tensor:
    """Return the ``(N, K)`` vote over members ``(N, K)``; members are read one at a time."""
    total: Tensor | float = 0.0
    for weight, member in zip(weights, members, strict=True):
        total = total + weight * _opinion(at_least_float32(member), vote)
    assert isinstance(total, Tensor)
    # Ranks are added as whole numbers: their shares would decide ties by rounding.
    unit = total.shape[1] * (total.shape[1] + 1) if vote == "rank" else 1
    mean = total / (sum(weights) * unit)
    return mean.softmax(1) if vote == "geometric" else mean


def _opinion(member: Tensor, vote: Vote) -> Tensor:
    """Return what a vote averages: probabilities, a one-hot row, logarithms or ranks."""
    K = member.shape[1]
    if vote == "hard":
        return F.one_hot(member.argmax(1), K).to(member.dtype)
    if vote == "geometric":
        return member.clamp(min=_FLOOR).log()
    if vote == "rank":
        ordered = member.sort(1).values
        below = torch.searchsorted(ordered, member.contiguous())
        up_to = torch.searchsorted(ordered, member.contiguous(), right=True)
        return (below + up_to + 1).to(member.dtype)  # twice the mean rank
    return member


def _vote_stored(
    probabilities: Members, weights: Sequence[float] | npt.ArrayLike | None, vote: Vote
) -> npt.NDArray[np.float64]:
    members = check_members(probabilities)
    shares = check_weights(weights, len(members))
    tensors = (torch.from_numpy(rows.astype(np.float64)) for rows in members)
    return np.asarray(combine(tensors, shares, vote).numpy(), dtype=np.float64)


def _vote_shares(
    predictions: Members, weights: Sequence[float] | npt.ArrayLike | None
) -> npt.NDArray[np.float64]:
    """Return the ``(N, K)`` share of votes that each class got."""
    values = np.asarray(predictions)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        return _vote_stored(values, weights, "hard")
    if not values.size or values.min() < 0:
        raise ValueError("`predictions` must be class indices >= 0 of at least one row")
    shares = check_weights(weights, len(values))
    counts = np.zeros((values.shape[1], int(values.max()) + 1))
    for share, classes in zip(shares, values, strict=True):
        counts[np.arange(len(classes)), classes] += share
    return counts / sum(shares)
