"""What every function here asks of probabilities, labels and weights, in one wording."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

_TOLERANCE = 1e-3  # bf16 softmax rows are this far from 1, logits are not


def check_rows(name: str, values: npt.ArrayLike, *, model: int | None = None) -> Floats:
    """Return ``(N, K)`` probabilities as they are (float32 stays float32), or raise ValueError."""
    rows = np.asarray(values)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"`{name}` must be (rows, classes), got shape {rows.shape}")
    rows = rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)
    # A NaN fails both comparisons, so no array of bools is needed to find it.
    if not (rows.min() >= 0 and rows.max() <= 1 + _TOLERANCE):
        raise ValueError(
            f"`{name}` must be finite and in [0, 1]; are these logits? apply a softmax first"
        )
    sums = rows.sum(axis=1, dtype=np.float64)
    off = np.abs(sums - 1)
    if off.max() > _TOLERANCE:
        row = int(off.argmax())
        where = f"row {row}" if model is None else f"model {model} row {row}"
        raise ValueError(f"`{name}` of each row must sum to 1, {where} sums to {sums[row]:.4f}")
    return rows


def check_members(
    probabilities: npt.ArrayLike | Sequence[npt.ArrayLike], *, name: str = "probabilities"
) -> list[Floats]:
    """Return ``(M, N, K)`` probabilities as M arrays ``(N, K)``, without a copy of float arrays."""
    if not isinstance(probabilities, list | tuple):
        probabilities = np.asarray(probabilities)
        if probabilities.ndim != 3 or 0 in probabilities.shape:
            raise ValueError(
                f"`{name}` must be (models, rows, classes), got shape {probabilities.shape}"
            )
    members = [check_rows(name, rows, model=model) for model, rows in enumerate(probabilities)]
    shapes = sorted({rows.shape for rows in members})
    if len(shapes) != 1:
        raise ValueError(f"`{name}` must be (models, rows, classes), got members of {shapes}")
    return members


def check_labels(labels: npt.ArrayLike, rows: int, classes: int) -> Indices:
    """Return ``(N,)`` class indices as int64, or raise ValueError."""
    values = np.asarray(labels)
    if values.shape != (rows,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"`labels` must be ({rows},) class indices, got {values.dtype} of shape {values.shape}"
        )
    if rows and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"`labels` must be class indices in 0..{classes - 1}, "
            f"got {values.min()}..{values.max()}"
        )
    return values.astype(np.int64, copy=False)


def check_weights(weights: Sequence[float] | npt.ArrayLike | None, models: int) -> list[float]:
    """Return one non-negative weight per model, by default 1, or raise ValueError."""
    if weights is None:
        return [1.0] * models
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (models,) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"`weights` must be {models} non-negative numbers, not all 0, got {weights}"
        )
    return [float(share) for share in shares]
