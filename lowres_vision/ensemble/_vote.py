"""Votes over the class probabilities of several models."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_TOLERANCE = 1e-3  # bf16 softmax rows are this far from 1, logits are not


def soft_vote(
    probabilities: npt.ArrayLike, *, weights: Sequence[float] | None = None
) -> npt.NDArray[np.float64]:
    """Average class probabilities over models.

    ``p_nk = sum_m w_m p_mnk / sum_m w_m``

    Args:
        probabilities: ``(M, N, K)``: models, rows, classes. Every row sums to 1.
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
    votes = np.asarray(probabilities, dtype=np.float64)
    if votes.ndim != 3 or 0 in votes.shape:
        raise ValueError(
            f"`probabilities` must be (models, rows, classes), got shape {votes.shape}"
        )
    if not (np.isfinite(votes).all() and votes.min() >= 0 and votes.max() <= 1 + _TOLERANCE):
        raise ValueError(
            "`probabilities` must be finite and in [0, 1]; are these logits? apply a softmax first"
        )
    off = np.abs(votes.sum(axis=2) - 1)
    if off.max() > _TOLERANCE:
        model, row = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"`probabilities` of each row must sum to 1, model {model} row {row} sums to "
            f"{votes[model, row].sum():.4f}"
        )
    if weights is not None:
        shares = np.asarray(weights, dtype=np.float64)
        if shares.shape != (len(votes),) or not (shares >= 0).all() or not shares.sum() > 0:
            raise ValueError(
                f"`weights` must be {len(votes)} non-negative numbers, not all 0, got {weights}"
            )
    return np.average(votes, axis=0, weights=weights)
