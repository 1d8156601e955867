"""How sure a score is, and whether two models differ."""

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_choice, check_range
from lowres_vision.ensemble._inputs import check_labels, check_rows
from lowres_vision.ensemble._scores import SCORES, Metric


@dataclass(frozen=True)
class McNemar:
    """Rows that only one of two models has right, and how likely so uneven a count is by chance.

    Attributes:
        only_first: Rows that only the first model has right.
        only_second: Rows that only the second model has right.
        p_value: Two-sided, of equally good models.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar_test(first: npt.ArrayLike, second: npt.ArrayLike, labels: npt.ArrayLike) -> McNemar:
    """Test whether two models differ in accuracy, on the rows that only one of them has right.

    If both are equally good, each of these n rows is a fair coin throw, so the p-value is the
    exact two-sided binomial one, ``min(1, 2 P(X <= min))`` with X ~ Binomial(n, 1/2).

    Args:
        first: ``(N, K)`` probabilities of one model.
        second: ``(N, K)`` probabilities of the other, for the same rows.
        labels: ``(N,)`` class indices.

    Raises:
        ValueError: If shapes or values do not fit.

    Example:
        >>> right, wrong = [[0.9, 0.1]] * 6, [[0.1, 0.9]] * 6
        >>> mcnemar_test(right, wrong, [0] * 6)
        McNemar(only_first=6, only_second=0, p_value=0.03125)

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or
        percentages", Psychometrika 12, 1947; exact, not by the chi-squared approximation.
    """
    one, other = check_rows("first", first), check_rows("second", second)
    if one.shape != other.shape:
        raise ValueError(f"`second` must have the shape of `first`, {one.shape}, got {other.shape}")
    truth = check_labels(labels, *one.shape)
    one_right, other_right = one.argmax(axis=1) == truth, other.argmax(axis=1) == truth
    only_first = int((one_right & ~other_right).sum())
    only_second = int((other_right & ~one_right).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(fewer + 1)
    ]
    p_value = min(1.0, 2 * math.fsum(map(math.exp, logs))) if n else 1.0
    return McNemar(only_first, only_second, round(p_value, 15))


def bootstrap_interval(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    metric: Metric = "macro_f1",
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval in which the score lies when the rows are drawn anew.

    Percentiles of the score over ``draws`` samples of N rows with replacement. It covers the
    choice of rows only: not that of seeds, folds or ensemble weights, nor rows that come in groups.

    Args:
        probabilities: ``(N, K)``.
        labels: ``(N,)`` class indices.
        metric: ``"accuracy"``, ``"macro_f1"`` or ``"log_loss"``.
        level: Share of the draws inside, in (0, 1].
        draws: Number of samples.
        seed: Of the samples.

    Returns:
        ``(low, high)``.

    Raises:
        ValueError: If shapes, values or options do not fit.

    Example:
        >>> p = np.tile([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], (25, 1))
        >>> bootstrap_interval(p, [0, 1, 1, 1] * 25, metric="accuracy")
        (0.67, 0.84)
    """
    check_choice("metric", metric, get_args(Metric))
    check_range("level", level, 0, 1, open_low=True)
    check_range("draws", draws, 1)
    rows = check_rows("probabilities", probabilities)
    truth = check_labels(labels, *rows.shape)
    random = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        drawn = random.integers(0, len(truth), len(truth))
        scores.append(SCORES[metric](rows[drawn], truth[drawn]))
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
