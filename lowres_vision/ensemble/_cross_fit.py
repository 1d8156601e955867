"""Outputs for each row from a fit that has not seen it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowres_vision.ensemble._folds import fold_numbers
from lowres_vision.ensemble._inputs import Indices, check_labels

Fit = Callable[[Tensor, Indices], Callable[[Tensor], Tensor]]


def cross_fit(
    fit: Fit,
    features: Tensor,
    labels: npt.ArrayLike,
    *,
    folds: int | npt.ArrayLike = 5,
    seed: int = 0,
    dim: int = 0,
) -> Tensor:
    """Fit without each fold in turn, and return what each fit says of the rows it has not seen.

    Args:
        fit: From ``(features, labels)`` of some rows to a callable from features to outputs, e.g.
            ``NearestCentroid.fit`` or ``Stacking.fit``.
        features: Tensor with N rows along ``dim``. Not embeddings that a fold's own model made:
            models of different folds have different spaces.
        labels: ``(N,)`` class indices.
        folds: ``(N,)`` fold of each row, e.g. the ledger's ``fold_of``, or a number of stratified
            folds.
        seed: Of the folds.
        dim: Dimension of the rows in ``features``: 1 for predictions ``(M, N, K)``.

    Returns:
        ``(N, K)`` outputs.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> from lowres_vision.ensemble import NearestCentroid
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> cosines = cross_fit(NearestCentroid.fit, embeddings, [0, 0, 1, 1], folds=2)
        >>> cosines.argmax(1)
        tensor([0, 0, 1, 1])
    """
    N = features.shape[dim]
    truth = check_labels(labels, N, 2**31)
    fold_of = fold_numbers(folds, truth, seed)
    outputs: Tensor | None = None
    for fold in np.unique(fold_of):
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        fitted = fit(_rows(features, seen, dim), truth[seen])
        found = fitted(_rows(features, unseen, dim))
        if outputs is None:
            outputs = found.new_empty(N, found.shape[1])
        if found.shape[1] != outputs.shape[1]:
            raise ValueError(
                f"`fit` gave {outputs.shape[1]} classes without one fold and {found.shape[1]} "
                f"without another; give it the number of classes"
            )
        outputs[torch.from_numpy(unseen).to(outputs.device)] = found
    assert outputs is not None
    return outputs


def _rows(features: Tensor, rows: Indices, dim: int) -> Tensor:
    return features.index_select(dim, torch.from_numpy(rows).to(features.device))
