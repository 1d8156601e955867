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
) -> tuple[np.ndarray, np.ndarray]:
    """Write ledger and test predictions of one model and its views; return both sets of labels.

    Labels and what all models make of an image are the same for every model; ``strengths`` says by
    view how much of the truth it sees; ``tilt`` is added to all its logits.
    """
    common = np.random.default_rng(7)
    labels = common.integers(0, 4, rows + test_rows)
    shared = common.normal(size=(rows + test_rows, 4))
    shared[np.arange(len(labels)), labels] += 1
    random = np.random.default_rng([seed, *map(ord, model)])
    ids = [f"row_{row:04d}" for row in range(rows)]
    ledger = OutOfFold.create(
        folder / "ledger",
        ids=ids,
        labels=labels[:rows],
        classes=CLASSES,
        fold_of=np.arange(rows) % folds,
        data_hash=data_hash,
    )
    test = []
    for view, strength in strengths.items():
        logits = shared + noise * random.normal(size=shared.shape)
        logits[np.arange(len(labels)), labels] += strength
        p = np.exp((logits + tilt) / temperature)
        p /= p.sum(axis=1, keepdims=True)
        for fold in range(folds):
            held_out = np.arange(rows) % folds == fold
            ledger.add(
                p[:rows][held_out],
                ids=[ids[row] for row in np.flatnonzero(held_out)],
                model=model,
                fold=fold,
                seed=seed,
                view=view,
                classes=CLASSES,
                data_hash=data_hash,
                fold_hash=ledger.fold_hash,
                checkpoint_hash=f"{model}-{seed}-{fold}",
            )
        test.append(np.tile(p[rows:], (folds, 1, 1)))
    if test_rows:
        np.savez(
            folder / "test_probabilities.npz",
            ids=np.array([f"test_{row}" for row in range(test_rows)]),
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
