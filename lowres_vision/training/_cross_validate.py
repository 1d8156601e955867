"""Train one model per fold; predict every row by the model that has not seen it."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from lowres_vision._batch import collate
from lowres_vision._checks import check_choice, check_range
from lowres_vision.data import Manifest, MultiResolutionDataset, StratifiedFolds
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._data import Collate, PairsDataModule
from lowres_vision.training._fold import Floats, FoldRun, Monitor, Precision

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a cross-validation learned.

    Attributes:
        fold_of: ``(N,)`` fold that held each training row out.
        probabilities: ``(N, K)`` prediction of each row by the model that had not seen it.
        test_probabilities: ``(folds, M, K)`` predictions of the test rows, or None.
        accuracy: Share of training rows whose out-of-fold prediction is right.
        macro_f1: Mean over classes of F1, on all out-of-fold predictions at once.
        best_epochs: Epoch whose weights each fold kept, from 0.
        seconds: Time taken.
    """

    fold_of: npt.NDArray[np.int64]
    probabilities: Floats
    test_probabilities: Floats | None
    accuracy: float
    macro_f1: float
    best_epochs: tuple[int, ...]
    seconds: float


def cross_validate(
    manifest: Manifest,
    build: Callable[[], Classifier],
    *,
    out: str | os.PathLike[str],
    folds: StratifiedFolds | None = None,
    test: Manifest | None = None,
    resolution: Literal["low", "high", "both"] = "low",
    held_out_resolution: Literal["low", "high"] = "low",
    collate: Collate = collate,
    batch_size: int = 32,
    epochs: int = 5,
    monitor: Monitor = "val_macro_f1",
    precision: Precision = "32-true",
    workers: int = 0,
    seed: int = 0,
) -> CrossValidation:
    """Train ``build()`` once per fold and predict what each model has not seen.

    Each fold has a directory in ``out``: ``metrics.csv`` (scores by epoch),
    ``best.safetensors`` with its ``.json`` (epoch, scores, classes, checksum) and
    ``predictions.npz``. ``out`` itself gets ``out_of_fold.npz`` (rows' folds, labels and
    probabilities, test probabilities) and ``summary.json`` (scores, settings, versions, data hash).

    The epoch is chosen on the rows that are then scored, so the out-of-fold score is a little
    optimistic; ``metrics.csv`` has the last epoch's scores for comparison.

    Args:
        manifest: Labelled rows.
        build: Returns a fresh :class:`Classifier`; PyTorch is seeded before each call.
        out: New directory for the results.
        folds: How to split; default five stratified folds shuffled by ``seed``.
        test: Unlabelled rows to predict with every fold's model.
        resolution: What the models train on; ``"both"`` takes each row twice.
        held_out_resolution: What they are scored on and predict the test rows from.
        collate: From training samples to a batch, e.g. a collator of :mod:`lowres_vision.mixing`.
        batch_size: Most samples in a batch.
        epochs: Passes over the training rows of a fold.
        monitor: Score that chooses the epoch; ties keep the earlier one.
        precision: Lightning's name of the arithmetic.
        workers: Loader processes.
        seed: Seed of weights, order, crops and folds.

    Raises:
        DataError: If rows are unlabelled, a class is too rare for the folds, or a resolution is
            missing; told before training starts.
        FileExistsError: If ``out`` already holds a run.
    """
    check_range("epochs", epochs, 1)
    check_choice("resolution", resolution, ("low", "high", "both"))
    check_choice("held_out_resolution", held_out_resolution, ("low", "high"))
    check_choice("monitor", monitor, get_args(Monitor))
    check_choice("precision", precision, get_args(Precision))
    settings = {
        "n_splits": (folds := folds or StratifiedFolds(seed=seed)).n_splits,
        "folds_seed": folds.seed,
        "resolution": resolution,
        "held_out_resolution": held_out_resolution,
        "batch_size": batch_size,
        "epochs": epochs,
        "monitor": monitor,
        "precision": precision,
        "seed": seed,
    }
    fold_of = folds.assign(manifest)
    # A resolution that is missing is told here, not when the first fold is done.
    MultiResolutionDataset(manifest, resolution=resolution)
    MultiResolutionDataset(manifest, resolution=held_out_resolution)
    unseen = None if test is None else MultiResolutionDataset(test, resolution=held_out_resolution)
    out = _new_directory(Path(out))

    start = time.monotonic()
    probabilities = np.zeros((len(manifest), len(manifest.classes)), dtype=np.float32)
    test_probabilities, best_epochs = [], []
    for fold in range(folds.n_splits):
        print(f"fold {fold + 1} of {folds.n_splits}", flush=True)
        L.seed_everything(seed + fold, verbose=False)
        train, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        data = PairsDataModule(
            MultiResolutionDataset(manifest, rows=train, resolution=resolution),
            MultiResolutionDataset(manifest, rows=held_out, resolution=held_out_resolution),
            predict=unseen,
            batch_size=batch_size,
            collate=collate,
            workers=workers,
            seed=seed,
        )
        run = FoldRun(
            out / f"fold_{fold}",
            epochs=epochs,
            monitor=monitor,
            precision=precision,
            classes=manifest.classes,
        )
        classifier = build()
        best_epochs.append(run.fit(classifier, data))
        found: Arrays = {"rows": held_out}
        found["probabilities"] = run.predict(classifier, data.val_dataloader(), held_out)
        probabilities[held_out] = found["probabilities"]
        if test is not None:
            rows = np.arange(len(test))
            found["test"] = run.predict(classifier, data.predict_dataloader(), rows)
            test_probabilities.append(found["test"])
        _save_arrays(out / f"fold_{fold}" / "predictions.npz", found)

    predicted = probabilities.argmax(axis=1)
    result = CrossValidation(
        fold_of=fold_of,
        probabilities=probabilities,
        test_probabilities=np.stack(test_probabilities) if test is not None else None,
        accuracy=float((predicted == manifest.labels).mean()),
        macro_f1=float(f1_score(manifest.labels, predicted, average="macro")),
        best_epochs=tuple(best_epochs),
        seconds=time.monotonic() - start,
    )
    _save(result, manifest, settings, out)
    return result


def _new_directory(out: Path) -> Path:
    if (out / "fold_0").exists() or (out / "summary.json").exists():
        raise FileExistsError(f"`out` {out} already holds a run; name another directory")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _save(result: CrossValidation, manifest: Manifest, settings: dict[str, Any], out: Path) -> None:
    arrays: Arrays = {
        "fold_of": result.fold_of,
        "labels": manifest.labels,
        "probabilities": result.probabilities,
    }
    if result.test_probabilities is not None:
        arrays["test_probabilities"] = result.test_probabilities
    _save_arrays(out / "out_of_fold.npz", arrays)
    correct = result.probabilities.argmax(axis=1) == manifest.labels
    summary = {
        "accuracy": result.accuracy,
        "macro_f1": result.macro_f1,
        "accuracy_by_fold": [
            float(correct[result.fold_of == fold].mean()) for fold in range(settings["n_splits"])
        ],
        "best_epochs": result.best_epochs,
        "seconds": round(result.seconds, 1),
        "classes": manifest.classes,
        "data_sha256": manifest.digest(),
        "settings": settings,
        "versions": {
            name: version(name) for name in ("lowres-vision", "torch", "timm", "lightning")
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _save_arrays(path: Path, arrays: Arrays) -> None:
    np.savez(path, allow_pickle=False, **arrays)
