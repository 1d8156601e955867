"""Whether two models differ in accuracy, on the rows that only one of them has right."""

import math
from dataclasses import dataclass

import numpy.typing as npt

from lowres_vision.ensemble._inputs import check_labels, check_rows


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
