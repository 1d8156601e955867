"""Calibration of one model or a blend: a temperature fitted by log loss."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range
from lowres_vision._numerics import at_least_float32
from lowres_vision.ensemble._folds import fold_numbers
from lowres_vision.ensemble._inputs import Indices, check_labels, check_rows
from lowres_vision.ensemble._scores import expected_calibration_error, log_loss

Reads = Literal["logits", "probabilities"]

_FLOOR = float(torch.finfo(torch.float32).tiny)
_LIMIT = 1000.0  # predictions that are all right, or all wrong, would ask for 0 or infinity


@dataclass(frozen=True)
class Calibration:
    """What a temperature changes, with 15 bins for the calibration error.

    Attributes:
        log_loss_before: Mean of ``-log p_label`` at temperature 1.
        log_loss_after: The same, each row at a temperature fitted without its fold.
        error_before: Expected calibration error at temperature 1.
        error_after: The same, each row at a temperature fitted without its fold.
    """

    log_loss_before: float
    log_loss_after: float
    error_before: float
    error_after: float


class Temperature(nn.Module):
    """Divide logits by a temperature: ``softmax(z / T)``, or ``p^(1 / T) / sum p^(1 / T)``.

    The order of the classes, and so the accuracy of one model, stays as it is; what changes is
    how sure it is, and with that its say in a soft vote. Use :meth:`fit` on predictions for rows
    that the model was not trained on.

    Args:
        temperature: In [0.001, 1000]; above 1 makes predictions less sure.
        reads: ``"logits"`` or ``"probabilities"``: what goes in.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> calibrate = Temperature.fit(logits, [0, 1, 1])
        >>> round(float(calibrate.temperature), 4)  # a chance of 2/3 needs a difference of log 2
        2.8854
        >>> calibrate(logits).round(decimals=4)[0]
        tensor([0.6667, 0.3333])

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        https://arxiv.org/abs/1706.04599, section 4.2. The loss is convex in 1 / T, so we find its
        minimum by bisection, to 1e-12, where they use L-BFGS.
    """

    temperature: Tensor

    def __init__(self, temperature: float = 1.0, *, reads: Reads = "logits") -> None:
        super().__init__()
        check_range("temperature", temperature, 1 / _LIMIT, _LIMIT)
        check_choice("reads", reads, ("logits", "probabilities"))
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.reads: Reads = reads

    def forward(self, outputs: Tensor) -> Tensor:
        """Map logits or probabilities ``(B, K)`` to probabilities, float32 or better."""
        logits = at_least_float32(outputs)
        if self.reads == "probabilities":
            logits = logits.clamp(min=_FLOOR).log()
        return (logits / self.temperature.to(logits.dtype)).softmax(1)

    @classmethod
    def fit(
        cls, outputs: npt.ArrayLike | Tensor, labels: npt.ArrayLike, *, reads: Reads = "logits"
    ) -> Self:
        """Return the temperature with the lowest log loss.

        Args:
            outputs: ``(N, K)`` logits or probabilities of rows that were not trained on.
            labels: ``(N,)`` class indices.
            reads: ``"logits"`` or ``"probabilities"``.

        Raises:
            ValueError: If shapes or values do not fit.
        """
        logits, truth = _checked(outputs, labels, reads)
        return cls(_best_temperature(logits, truth), reads=reads)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{float(self.temperature):.4g}, reads={self.reads!r}"


def assess_temperature(
    outputs: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike,
    *,
    reads: Reads = "logits",
    folds: int | npt.ArrayLike = 5,
    seed: int = 0,
) -> Calibration:
    """Tell what :class:`Temperature` will do to new rows, by fitting it without each fold in turn.

    Args:
        outputs: ``(N, K)`` logits or probabilities of rows that were not trained on.
        labels: ``(N,)`` class indices.
        reads: ``"logits"`` or ``"probabilities"``.
        folds: ``(N,)`` fold of each row, or a number of stratified folds.
        seed: Of the folds.

    Returns:
        :class:`Calibration`.

    Raises:
        ValueError: If shapes, values or options do not fit.

    Example:
        >>> random = np.random.default_rng(0)
        >>> labels = random.integers(0, 3, 600)
        >>> logits = random.normal(size=(600, 3)) + 2 * np.eye(3)[labels]
        >>> report = assess_temperature(4 * logits, labels)  # four times too sure
        >>> report.error_before > 3 * report.error_after
        True
    """
    logits, truth = _checked(outputs, labels, reads)
    fold_of = fold_numbers(folds, truth, seed)
    before, after = _softmax(logits), np.empty_like(logits)
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        temperature = _best_temperature(logits[~held_out], truth[~held_out])
        after[held_out] = _softmax(logits[held_out] / temperature)
    return Calibration(
        log_loss_before=log_loss(before, truth),
        log_loss_after=log_loss(after, truth),
        error_before=expected_calibration_error(before, truth),
        error_after=expected_calibration_error(after, truth),
    )


def _checked(
    outputs: npt.ArrayLike | Tensor, labels: npt.ArrayLike, reads: Reads
) -> tuple[npt.NDArray[np.float64], Indices]:
    check_choice("reads", reads, ("logits", "probabilities"))
    if isinstance(outputs, Tensor):
        outputs = outputs.detach().cpu().double().numpy()
    if reads == "probabilities":
        rows = np.log(np.maximum(check_rows("outputs", outputs).astype(np.float64), _FLOOR))
    else:
        rows = np.asarray(outputs, dtype=np.float64)
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"`outputs` must be (rows, classes), got shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("`outputs` must be finite, found NaN or inf")
    return rows, check_labels(labels, *rows.shape)


def _best_temperature(logits: npt.NDArray[np.float64], truth: Indices) -> float:
    """Bisect the slope in b = 1 / T, ``mean(sum_k p_k z_k - z_label)``, which only ever rises."""
    of_label = logits[np.arange(len(logits)), truth].mean()
    low, high = np.log(1 / _LIMIT), np.log(_LIMIT)
    while high - low > 1e-12:
        middle = (low + high) / 2
        expected = (_softmax(logits * np.exp(middle)) * logits).sum(axis=1).mean()
        low, high = (middle, high) if expected < of_label else (low, middle)
    return float(np.clip(np.exp(-(low + high) / 2), 1 / _LIMIT, _LIMIT))


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
