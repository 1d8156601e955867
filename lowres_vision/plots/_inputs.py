"""What pictures ask of class indices and of predictions."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


def class_indices(
    name: str, values: Any, classes: int, *, unknown: bool = False
) -> npt.NDArray[np.int64]:
    """Return ``(N,)`` class indices, among them -1 where ``unknown``, or raise ValueError."""
    found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    found = found.astype(np.int64) if found.size == 0 else found
    least = -1 if unknown else 0
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be (N,) class indices, got {found.dtype} of shape {found.shape}"
        )
    if len(found) and not least <= found.min() <= found.max() < classes:
        raise ValueError(
            f"`{name}` must be in {least}..{classes - 1}, got {found.min()}..{found.max()}"
        )
    return found.astype(np.int64)


def class_shares(name: str, values: Any, classes: int) -> npt.NDArray[np.float64]:
    """Return ``(N, K)`` finite numbers, one per class, or raise ValueError."""
    values = values.detach().cpu().double() if isinstance(values, Tensor) else values
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != classes:
        raise ValueError(
            f"`{name}` must be (N, {classes}), a number for each class, got {found.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"`{name}` must be finite, got {found[~np.isfinite(found)][0]}")
    return found
