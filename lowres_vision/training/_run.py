"""One model, one seed, one fold: trained, predicted and entered in the books, or found done.

The folder of a run has a book, ``run.json``. It says what the run is made of and how far it has
come: ``training``, then ``trained`` when the best weights are final, then ``done``, with the
SHA-256 of every file that the run leaves behind. It is replaced whole at each of these moments,
so a run that is killed is found at one of them.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_only

from lowres_vision._files import write_arrays, write_whole
from lowres_vision.data import BalancedSampler, Manifest, MultiResolutionDataset
from lowres_vision.ensemble import OutOfFold
from lowres_vision.training._advice import full_disk
from lowres_vision.training._best import Monitor
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._data import Collate, PairsDataModule
from lowres_vision.training._describe import commit, differences, file_sha256, versions
from lowres_vision.training._fold import FoldRun, Precision
from lowres_vision.training._lock import lock
from lowres_vision.training._pseudo_labels import join_labelled
from lowres_vision.training._ranks import is_first_process, rank_and_world
from lowres_vision.training._teacher import Fold, call_build

Arrays = dict[str, npt.NDArray[Any]]
Build = Callable[..., Classifier]
Sampling = Callable[..., BalancedSampler]


@dataclass(frozen=True)
class Settings:
    """What all runs of a cross-validation share; arguments of :func:`cross_validate`."""

    resolution: Literal["low", "high", "both", "pair"]
    held_out_resolution: Literal["low", "high"]
    collate: Collate
    sampler: Sampling | None
    samples_per_epoch: int | None
    batch_size: int
    accumulate: int
    epochs: int
    patience: int | None
    monitor: Monitor
    clip_norm: float | None
    keep: int
    precision: Precision
    checkpoint_every: int | None
    workers: int
    cache: str | os.PathLike[str] | None
    logger: str | Sequence[str]
    tags: Sequence[str]
    callbacks: Sequence[L.Callback]
    devices: int | str
    strategy: str
    num_nodes: int


@dataclass(frozen=True, eq=False)
class Run:
    """All that one run takes; it can be pickled where ``build`` and the settings can.

    Attributes:
        directory: Of this run.
        ledger: Folder of the out-of-fold predictions.
        model: Name.
        seed: Of weights, order, crops and the model's own randomness.
        fold: Number of the fold.
        fold_of: ``(N,)`` fold that holds each row out, -1 for none.
        build: Returns a fresh classifier.
        manifest: Labelled rows.
        test: Rows to predict besides.
        added: Rows of ``test`` with pseudo-labels, which are trained on besides.
        settings: Of all runs.
        made_of: Description of all of this that the outcome depends on.
    """

    directory: Path
    ledger: Path
    model: str
    seed: int
    fold: int
    fold_of: npt.NDArray[np.int64]
    build: Build
    manifest: Manifest
    test: Manifest | None
    added: Manifest | None
    settings: Settings
    made_of: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Return words for messages."""
        return f"{self.model}, seed {self.seed}, fold {self.fold}"

    @property
    def held_out(self) -> npt.NDArray[np.int64]:
        """Return the rows that this run is scored on."""
        return np.flatnonzero(self.fold_of == self.fold)


def check(run: Run) -> None:
    """Refuse a folder that holds another run than this.

    Raises:
        FileExistsError: If it does; what differs is named.
    """
    book = _read_book(run)
    if book is None:
        return
    found = list(differences(book["made_of"], run.made_of))
    if book["stage"] != "done":  # the outcome of a finished run no longer depends on them
        found += differences(book["versions"], versions(), "versions")
    if found:
        more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
        raise FileExistsError(
            f"{run.directory} holds a run with other settings: {'; '.join(found[:8])}{more}. "
            f"Name another `out`, or delete the folder"
        )


def ledger_hash(made_of: Mapping[str, Any]) -> str:
    """Return the ledger's hash of what a run trains on: its rows and any pseudo-labels."""
    rows, added = str(made_of["data_sha256"]), made_of.get("pseudo_labels_sha256")
    return rows if added is None else hashlib.sha256(f"{rows} {added}".encode()).hexdigest()


def finished(run: Run) -> bool:
    """Return whether the run is done and every file is what it wrote."""
    book = _read_book(run)
    return book is not None and book["stage"] == "done" and not _damaged(run, book)


def outcome(run: Run) -> tuple[dict[str, Any], Arrays]:
    """Return the book and the predictions of a finished run."""
    book = _read_book(run)
    assert book is not None
    with np.load(run.directory / "predictions.npz", allow_pickle=False) as stored:
        return book, {name: stored[name] for name in stored.files}


def execute(run: Run) -> None:
    """Bring a run to its end from wherever it stands.

    Raises:
        FileExistsError: If another process is at it, or the folder holds another run.
    """
    run.directory.mkdir(parents=True, exist_ok=True)
    with lock(run.directory / "run.lock") if is_first_process() else nullcontext():
        if is_first_process():
            check(run)
            # Of a process killed while it wrote; and what Lightning saves in the middle of a step
            # when SLURM ends a job, and would take for the start of a run without a checkpoint.
            for left in (*run.directory.glob("*.part"), *run.directory.glob("hpc_ckpt_*.ckpt")):
                left.unlink()
        book = _read_book(run) or {"stage": "training"}
        damaged = _damaged(run, book)
        if damaged:
            print(f"{run.directory}: {', '.join(damaged)} not as written; made again", flush=True)
            only_predictions = damaged == ["predictions.npz"]
            book = {**book, "stage": "trained" if only_predictions else "training"}
        if book["stage"] != "done":
            with full_disk(run.directory):
                _train_and_predict(run, book)


def _train_and_predict(run: Run, book: dict[str, Any]) -> None:
    start = time.monotonic()
    settings = run.settings
    about = {"made_of": dict(run.made_of), "versions": versions(), "commit": commit()}
    book = {**about, **book}
    if book["stage"] == "training":
        _write_book(run, {**about, "stage": "training"})
    entropy = np.random.SeedSequence((run.seed, run.fold))
    L.seed_everything(int(entropy.generate_state(1)[0]), verbose=False)
    fold = Fold(run.fold, run.held_out, run.manifest.digest())
    classifier = call_build(run.build, fold)
    classifier.seed = run.seed
    data = _data(run)
    trainer = FoldRun(
        run.directory,
        epochs=settings.epochs,
        monitor=settings.monitor,
        precision=settings.precision,
        classes=run.manifest.classes,
        seed=run.seed,
        about={"model": run.model, "seed": run.seed, "fold": fold.record()},
        conditions={**about, "host": socket.gethostname()},
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        patience=settings.patience,
        keep=settings.keep,
        checkpoint_every=settings.checkpoint_every,
        logger=settings.logger if book["stage"] == "training" else (),
        tags=settings.tags,
        callbacks=settings.callbacks,
        devices=settings.devices,
        strategy=settings.strategy,
        num_nodes=settings.num_nodes,
    )
    if book["stage"] == "training":
        best_epoch = trainer.fit(classifier, data)
        files = [*trainer.weights(), *(f"{name}.json" for name in trainer.weights())]
        book |= {"stage": "trained", "best_epoch": best_epoch}
        book |= {"seconds": round(time.monotonic() - start, 1)}
        book["files"] = {name: file_sha256(run.directory / name) for name in files}
        _write_book(run, book)
        _forget(trainer.checkpoint)
    else:
        trainer.load_best(classifier)

    arrays: Arrays = {"rows": run.held_out}
    arrays["probabilities"] = trainer.predict(classifier, data, data.val_dataloader(), run.held_out)
    if run.test is not None:
        rows = np.arange(len(run.test))
        arrays["test"] = trainer.predict(classifier, data, data.predict_dataloader(), rows)
    _enter(run, book, arrays)
    if rank_and_world()[1] > 1:
        trainer.wait()


@rank_zero_only
def _enter(run: Run, book: dict[str, Any], arrays: Arrays) -> None:
    """Write the predictions, enter them in the ledger, and close the book."""
    write_arrays(run.directory / "predictions.npz", arrays)
    ledger = OutOfFold(run.ledger)
    ledger.add(
        arrays["probabilities"],
        ids=[run.manifest.ids[row] for row in run.held_out],
        model=run.model,
        seed=run.seed,
        fold=run.fold,
        classes=run.manifest.classes,
        data_hash=ledger_hash(run.made_of),
        fold_hash=run.made_of["folds_sha256"],
        checkpoint_hash=book["files"]["best.safetensors"],
    )
    files = {**book["files"], "predictions.npz": file_sha256(run.directory / "predictions.npz")}
    _write_book(run, {**book, "stage": "done", "files": files})


def _data(run: Run) -> PairsDataModule:
    settings = run.settings
    known, train = run.manifest, np.flatnonzero(run.fold_of != run.fold)
    if run.added is not None and run.test is not None:
        known = join_labelled(known, run.test, run.added, high=settings.resolution != "low")
        labelled = np.flatnonzero(known.labels >= 0)
        train = np.append(train, labelled[labelled >= len(run.manifest)])
    cached = partial(MultiResolutionDataset, cache=settings.cache)
    samples = cached(known, rows=train, resolution=settings.resolution, seed=run.seed)
    sampler = None
    if settings.sampler is not None:
        labels = np.tile(known.labels[train], len(samples) // len(train))
        options: dict[str, Any] = {"seed": run.seed, "rank": 0, "num_replicas": 1, "keyed": True}
        if settings.samples_per_epoch is not None:
            options["num_samples"] = settings.samples_per_epoch
        sampler = settings.sampler(labels, **options)
    held_out = settings.held_out_resolution
    return PairsDataModule(
        samples,
        cached(run.manifest, rows=run.held_out, resolution=held_out),
        predict=None if run.test is None else cached(run.test, resolution=held_out),
        batch_size=settings.batch_size,
        collate=settings.collate,
        sampler=sampler,
        samples_per_epoch=None if sampler is not None else settings.samples_per_epoch,
        workers=settings.workers,
        seed=run.seed,
    )


def _damaged(run: Run, book: Mapping[str, Any]) -> list[str]:
    """Return the names of files that are not what the book says."""
    return [
        name
        for name, digest in book.get("files", {}).items()
        if not (run.directory / name).is_file() or file_sha256(run.directory / name) != digest
    ]


def _read_book(run: Run) -> dict[str, Any] | None:
    path = run.directory / "run.json"
    if not path.is_file():
        return None
    try:
        book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return book if {"stage", "made_of", "versions"} <= book.keys() else None
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged; delete {run.directory} to train it again") from None


@rank_zero_only
def _write_book(run: Run, book: Mapping[str, Any]) -> None:
    text = json.dumps(book, indent=2, ensure_ascii=False) + "\n"
    write_whole(run.directory / "run.json", text.encode())


@rank_zero_only
def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
