"""How sure a score is, and whether one model scores higher than another, by the bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_choice, check_range
from lowres_vision.ensemble._inputs import Floats, Indices, check_labels, check_rows
from lowres_vision.ensemble._scores import LOWEST, SCORES, Metric, f1_of_counts

Doubles = npt.NDArray[np.float64]

_CHUNK = 2**22  # counts held at once


@dataclass(frozen=True)
class PairedDifference:
    """How much better one model scores than another on the same rows.

    Attributes:
        difference: Score of the first less that of the second; positive is in the first's favour,
            for the log loss too, whose sign is turned.
        low: Lower end of the interval of the difference.
        high: Upper end.
        p_value: Two-sided: how likely a difference this far from 0 is for equally good models.
    """

    difference: float
    low: float
    high: float
    p_value: float


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
        >>> low, high = bootstrap_interval(p, [0, 1, 1, 1] * 25, metric="accuracy")
        >>> low < 0.75 < high, round(high - low, 1)
        (True, 0.2)
    """
    _check_options(metric, level, draws)
    rows = check_rows("probabilities", probabilities)
    truth = check_labels(labels, *rows.shape)
    scores = drawn_scores([rows], truth, metric, draws, seed)[0]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    metric: Metric = "macro_f1",
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models on the same rows, drawn anew for both at once.

    Rows that are hard are hard for both, so the difference is known far better than either score:
    two overlapping :func:`bootstrap_interval` do not mean that the models are equal. The p-value
    is ``2 min(share of differences <= 0, share >= 0)``, each share with one draw added to both
    counts, so that it is never 0. For accuracy :func:`mcnemar_test` is exact.

    Args:
        first: ``(N, K)`` probabilities of one model.
        second: ``(N, K)`` probabilities of the other, for the same rows.
        labels: ``(N,)`` class indices.
        metric: ``"accuracy"``, ``"macro_f1"`` or ``"log_loss"``.
        level: Share of the drawn differences inside the interval, in (0, 1].
        draws: Number of samples.
        seed: Of the samples.

    Returns:
        :class:`PairedDifference`.

    Raises:
        ValueError: If shapes, values or options do not fit.

    Example:
        >>> right, wrong = [[0.9, 0.1]], [[0.1, 0.9]]
        >>> result = paired_bootstrap(right * 9 + wrong * 91, wrong * 100, [0] * 100,
        ...                           metric="accuracy")
        >>> round(result.difference, 9), result.low > 0, result.p_value < 0.01
        (0.09, True, True)

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sections 13.3 and 15.4;
        Berg-Kirkpatrick et al., "An Empirical Investigation of Statistical Significance in NLP",
        EMNLP 2012, https://aclanthology.org/D12-1091, for the pairing.
    """
    _check_options(metric, level, draws)
    one, other = check_rows("first", first), check_rows("second", second)
    if one.shape != other.shape:
        raise ValueError(f"`second` must have the shape of `first`, {one.shape}, got {other.shape}")
    truth = check_labels(labels, *one.shape)
    sign = -1.0 if metric == "log_loss" else 1.0
    drawn = drawn_scores([one, other], truth, metric, draws, seed)
    gains = sign * (drawn[0] - drawn[1])
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    # A draw that repeats a tie may be off by a rounding error: it is a tie.
    tail = min((gains <= 1e-12).sum(), (gains >= -1e-12).sum())
    return PairedDifference(
        difference=sign * (SCORES[metric](one, truth) - SCORES[metric](other, truth)),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (tail + 1) / (draws + 1))),
    )


def drawn_scores(
    members: Sequence[Floats], truth: Indices, metric: Metric, draws: int, seed: int
) -> Doubles:
    """Return the scores ``(models, draws)`` on samples of the rows with replacement."""
    random = np.random.default_rng(seed)
    N = len(truth)
    if metric == "log_loss":
        p = np.stack([member[np.arange(N), truth] for member in members]).astype(np.float64)
        losses = -np.log(np.maximum(p, LOWEST))
        means = [losses[:, random.integers(0, N, N)].mean(axis=1) for _ in range(draws)]
        return np.stack(means, axis=1)
    # Rows of one label and one prediction per model count alike. How often each such kind is drawn
    # is multinomial, and kinds are few: 1,000 samples of 15,834 rows of 25 classes take 0.03 s
    # instead of 4.
    columns = [truth, *(member.argmax(axis=1) for member in members)]
    kinds, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    scores = []
    for start in range(0, draws, step := max(1, _CHUNK // len(counts))):
        size = min(step, draws - start)
        drawn = random.multinomial(N, counts / N, size=size).astype(np.float64)
        scores.append(_scores_of_counts(kinds, drawn, metric, members[0].shape[1]))
    return np.concatenate(scores, axis=1)


def _scores_of_counts(kinds: Indices, drawn: Doubles, metric: Metric, K: int) -> Doubles:
    """Return the scores ``(models, draws)`` of rows of some kinds, drawn ``(draws, kinds)`` times.

    ``kinds`` is ``(kinds, 1 + models)``: the label, then each model's prediction.
    """
    one_hot = np.eye(K)
    label = kinds[:, 0]
    true = drawn @ one_hot[label]  # (draws, K)
    scores = []
    for predicted in kinds[:, 1:].T:
        hits = drawn @ (one_hot[label] * (predicted == label)[:, None])
        if metric == "accuracy":
            scores.append(hits.sum(axis=1) / true.sum(axis=1))
        else:
            scores.append(f1_of_counts(hits, drawn @ one_hot[predicted], true))
    return np.stack(scores)


def _check_options(metric: Metric, level: float, draws: int) -> None:
    check_choice("metric", metric, get_args(Metric))
    check_range("level", level, 0, 1, open_low=True)
    check_range("draws", draws, 1)
