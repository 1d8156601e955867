"""Runs as ``cross_validate`` leaves them, of simulated models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowres_vision.ensemble import OutOfFold

CLASSES = ["Finch", "Kite", "Tit", "Wren"]


def _make_run(
    folder: Path,
    *,
    model: str,
    strengths: dict[str, float],
    rows: int = 400,
    folds: int = 4,
    seed: int = 0,
    test_rows: int = 60,
    data_hash: str = "5d41",
    noise: float = 1.0,
    temperature: float = 1.0,
    tilt: tuple[float, ...] = (0, 0, 0, 0),
    fold_of: np.ndarray | None = None,
    shuffle: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Write ledger and test predictions of one model and its views; return both sets of labels.

    Labels and what all models make of an image are the same for every model; ``strengths`` says by
    view how much of the truth it sees; ``tilt`` is added to all its logits. ``fold_of`` is by row
    in place of ``folds`` in turn; ``shuffle`` seeds another order of the rows in the files.
    """
    common = np.random.default_rng(7)
    labels = common.integers(0, 4, rows + test_rows)
    shared = common.normal(size=(rows + test_rows, 4))
    shared[np.arange(len(labels)), labels] += 1
    random = np.random.default_rng([seed, *map(ord, model)])
    if fold_of is None:
        fold_of = np.arange(rows) % folds
    order, test_order = np.arange(rows), np.arange(test_rows)
    if shuffle is not None:
        order, test_order = map(np.random.default_rng(shuffle).permutation, (rows, test_rows))
    ids = np.array([f"row_{row:04d}" for row in range(rows)])[order]
    ledger = OutOfFold.create(
        folder / "ledger",
        ids=ids.tolist(),
        labels=labels[order],
        classes=CLASSES,
        fold_of=fold_of[order],
        data_hash=data_hash,
    )
    test = []
    for view, strength in strengths.items():
        logits = shared + noise * random.normal(size=shared.shape)
        logits[np.arange(len(labels)), labels] += strength
        p = np.exp((logits + tilt) / temperature)
        p /= p.sum(axis=1, keepdims=True)
        for fold in range(fold_of.max() + 1):
            held_out = fold_of[order] == fold
            ledger.add(
                p[order][held_out],
                ids=ids[held_out].tolist(),
                model=model,
                fold=fold,
                seed=seed,
                view=view,
                classes=CLASSES,
                data_hash=data_hash,
                fold_hash=ledger.fold_hash,
                checkpoint_hash=f"{model}-{seed}-{data_hash}-{ledger.fold_hash}-{fold}",
            )
        test.append(np.tile(p[rows + test_order], (fold_of.max() + 1, 1, 1)))
    if test_rows:
        np.savez(
            folder / "test_probabilities.npz",
            ids=np.array([f"test_{row}" for row in test_order]),
            classes=np.array(CLASSES),
            models=np.array([model] * len(strengths)),
            seeds=np.array([seed] * len(strengths)),
            views=np.array(list(strengths)),
            probabilities=np.array(test, dtype=np.float32),
        )
    return labels[:rows], labels[rows:]


@pytest.fixture
def make_run() -> Callable[..., Any]:
    """Return the function that writes a run."""
    return _make_run
