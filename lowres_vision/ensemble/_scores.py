"""Scores of pooled predictions: accuracy, macro-F1, log loss, calibration error.

They score all rows at once. The mean over batches or folds of a macro-F1 is another number, and
usually a flattering one.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_range
from lowres_vision.ensemble._inputs import Floats, Indices, check_labels, check_rows

Metric = Literal["accuracy", "macro_f1", "log_loss"]

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]

LOWEST = float(np.finfo(np.float64).eps)


def accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the share of rows whose likeliest class is the label.

    Args:
        probabilities: ``(N, K)``; of equal classes the first counts.
        labels: ``(N,)`` class indices.

    Example:
        >>> accuracy([[0.9, 0.1], [0.6, 0.4]], [0, 1])
        0.5
    """
    rows, truth = _checked(probabilities, labels)
    return float((rows.argmax(axis=1) == truth).mean())


def macro_f1(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean over classes of ``F1_k = 2 tp_k / (predicted_k + true_k)``.

    A class that is neither a label nor a prediction of any row has no F1 and is left out of the
    mean; a class that is predicted but never true counts 0.

    Args:
        probabilities: ``(N, K)``; of equal classes the first is the prediction.
        labels: ``(N,)`` class indices.

    Example:
        >>> macro_f1([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]], [0, 1])  # F1 is 2/3, 0 and undefined
        0.3333333333333333

    References:
        ``sklearn.metrics.f1_score(labels, predicted, average="macro")`` has the same rule.
    """
    rows, truth = _checked(probabilities, labels)
    return f1_of_classes(rows.argmax(axis=1), truth, rows.shape[1])


def log_loss(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean of ``-log p_label``, with probabilities below 2.2e-16 counting as that.

    Args:
        probabilities: ``(N, K)``.
        labels: ``(N,)`` class indices.

    Example:
        >>> round(log_loss([[0.5, 0.5], [1.0, 0.0]], [0, 0]), 4)
        0.3466
    """
    rows, truth = _checked(probabilities, labels)
    return mean_log_loss(rows[np.arange(len(rows)), truth])


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Return how far confidence is from accuracy, averaged over bins of equal width.

    ``sum_b |B_b| / N * |accuracy(B_b) - mean confidence(B_b)|``, where ``B_b`` are the rows whose
    highest probability is in ``(b / bins, (b + 1) / bins]``. It depends on the bins and is biased
    upwards on few rows; compare values of the same rows and bins only.

    Args:
        probabilities: ``(N, K)``.
        labels: ``(N,)`` class indices.
        bins: Number of bins, at least 1.

    Example:
        >>> round(expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1]), 4)
        0.3

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        https://arxiv.org/abs/1706.04599, section 2.
    """
    check_range("bins", bins, 1)
    rows, truth = _checked(probabilities, labels)
    confidence = rows.max(axis=1).astype(np.float64)
    hit = rows.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(index, weights=hit - confidence)).sum() / len(rows))


SCORES: dict[Metric, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "log_loss": log_loss,
}


def sign(metric: Metric) -> float:
    """Return by what to multiply a score so that more is better."""
    return -1.0 if metric == "log_loss" else 1.0


def f1_of_classes(predicted: Indices, truth: Indices, classes: int) -> float:
    """Return the macro-F1 of class indices."""
    hits = np.bincount(truth[predicted == truth], minlength=classes)
    return float(
        f1_of_counts(hits, np.bincount(predicted, minlength=classes), _counts(truth, classes))
    )


def f1_of_counts(hits: Counts, predicted: Counts, true: Counts) -> npt.NDArray[np.float64]:
    """Return macro-F1 ``(...)`` from the counts ``(..., K)`` of hits, predictions and labels."""
    total = predicted + true
    f1 = 2 * hits / np.maximum(total, 1)
    return np.asarray(f1.sum(axis=-1) / (total > 0).sum(axis=-1))


def mean_log_loss(of_label: Floats) -> float:
    """Return the log loss of the probabilities ``(N,)`` that the labels got."""
    return float(-np.log(np.maximum(of_label.astype(np.float64, copy=False), LOWEST)).mean())


def _counts(labels: Indices, classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(labels, minlength=classes)


def _checked(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Indices]:
    rows = check_rows("probabilities", probabilities)
    return rows, check_labels(labels, *rows.shape)
