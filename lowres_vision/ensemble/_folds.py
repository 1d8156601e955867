"""The rows that an estimate must not have seen: folds given, or dealt by class."""

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_range
from lowres_vision.ensemble._inputs import Indices


def fold_numbers(folds: int | npt.ArrayLike, truth: Indices, seed: int) -> Indices:
    """Return the fold ``(N,)`` of each row, from 0: those given, or that many dealt by class."""
    if not isinstance(folds, int):
        given = np.asarray(folds)
        if given.shape != truth.shape or len(np.unique(given)) < 2:
            raise ValueError(
                f"`folds` must be one fold per row, of at least two folds, got "
                f"{len(np.unique(given))} folds of shape {given.shape}"
            )
        return np.unique(given, return_inverse=True)[1].astype(np.int64)
    check_range("folds", folds, 2, len(truth))
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    by_class = shuffled[np.argsort(truth[shuffled], kind="stable")]
    fold_of = np.empty(len(truth), dtype=np.int64)
    fold_of[by_class] = np.arange(len(truth)) % folds
    return fold_of
