"""Train models over folds and seeds; predict every row by models that have not seen it."""

import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import numpy.typing as npt
from torch import nn

from lowres_vision._batch import collate
from lowres_vision._checks import check_choice, check_range
from lowres_vision.data import Manifest, MultiResolutionDataset, StratifiedFolds
from lowres_vision.ensemble import OutOfFold
from lowres_vision.training._best import Monitor
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._data import Collate
from lowres_vision.training._describe import describe, describe_classifier
from lowres_vision.training._fold import Precision
from lowres_vision.training._isolate import in_own_process
from lowres_vision.training._outcome import collect, save
from lowres_vision.training._pseudo_labels import PseudoLabels, labels_sha256
from lowres_vision.training._ranks import is_first_process, wait_for_all_processes
from lowres_vision.training._result import CrossValidation
from lowres_vision.training._run import (
    Build,
    Run,
    Sampling,
    Settings,
    check,
    execute,
    finished,
    ledger_hash,
)
from lowres_vision.training._teacher import Fold, call_build

# Settings that change how long a run takes, or what it shows, but not what comes out.
_WITHOUT_EFFECT = (
    "cache", "callbacks", "checkpoint_every", "devices", "logger", "num_nodes", "strategy", "tags",
    "workers",
)  # fmt: skip
# A model's name is a folder beside the results: no separators, no file of ours, and nothing that
# Windows reads as more or as less.
_NAME = (
    r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))(?!(ledger|.*\.(json|npz))$)"
    r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"
)


def cross_validate(
    manifest: Manifest,
    build: Callable[..., Classifier] | Mapping[str, Callable[..., Classifier]],
    *,
    out: str | os.PathLike[str],
    folds: StratifiedFolds | npt.ArrayLike | None = None,
    test: Manifest | None = None,
    pseudo_labels: PseudoLabels | None = None,
    resolution: Literal["low", "high", "both", "pair"] = "low",
    held_out_resolution: Literal["low", "high"] = "low",
    collate: Collate = collate,
    sampler: Sampling | None = None,
    samples_per_epoch: int | None = None,
    batch_size: int = 32,
    accumulate: int = 1,
    epochs: int = 5,
    patience: int | None = None,
    monitor: Monitor = "val_macro_f1",
    clip_norm: float | None = None,
    keep: int = 1,
    precision: Precision = "32-true",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    checkpoint_every: int | None = None,
    isolate: bool = False,
    workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    logger: str | Sequence[str] = "csv",
    tags: Sequence[str] = (),
    callbacks: Sequence[L.Callback] = (),
    devices: int | str = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
) -> CrossValidation:
    """Train every model once per seed and fold, and predict what each run has not seen.

    **Starting again.** Each run has a folder: ``out/fold_0`` for one model and ``seed``, with
    ``seeds`` ``out/seed_1/fold_0``, and with several models ``out/resnet18/seed_1/fold_0``. Called
    again with the same ``out``, finished runs are verified by checksum and skipped, an interrupted
    one goes on from its last checkpoint, and the rest is trained; on a CPU the outcome is bit for
    bit that of a call that was never interrupted. Models, and seeds, may be added. Anything else
    that differs is refused by name: settings, classes, rows, folds, what ``build`` builds.

    **Files.** A run's folder gets ``run.json`` (what it is made of, versions, commit, checksums),
    ``metrics.csv`` (scores by epoch), ``best.safetensors`` with its ``.json`` (epoch, scores,
    classes, fold) and ``predictions.npz``; while it runs ``training.checkpoint`` and a lock file.
    ``out`` gets ``ledger/`` (an :class:`~lowres_vision.ensemble.OutOfFold`),
    ``out_of_fold.npz``, ``test_probabilities.npz`` and ``summary.json``.

    **Optimism.** The epoch is chosen on the rows that are then scored, so the out-of-fold score is
    a little optimistic; ``monitor="last"`` chooses none.

    **Several devices.** Start the script with ``torchrun`` or SLURM's ``srun``, say ``devices``,
    ``num_nodes`` and ``strategy="ddp"``, and every process calls this function; the first one
    writes the files, in a folder that all can read.

    Args:
        manifest: Labelled rows.
        build: Returns a fresh :class:`Classifier`, or a mapping of names to such functions. It is
            called as ``build(fold=fold)`` where it has a parameter of that name. PyTorch, NumPy
            and Python are seeded before each call, and the classifier takes the run's seed.
        out: Folder of the results.
        folds: How to split; default five stratified folds shuffled by the first seed. Or the
            ``(N,)`` fold that holds each row out, -1 for rows that are always trained on: one
            fold is a hold-out.
        test: Unlabelled rows to predict with every run.
        pseudo_labels: Trains on the rows of ``test`` too, with labels voted by earlier runs.
        resolution: What the models train on; ``"both"`` takes each row twice, ``"pair"`` gives
            the two images of a row together.
        held_out_resolution: What they are scored on and predict the test rows from.
        collate: From training samples to a batch, e.g. a collator of :mod:`lowres_vision.mixing`.
        sampler: Makes what draws the training samples, e.g.
            ``partial(BalancedSampler, scheme="sqrt")``; called with the samples' labels and the
            keywords ``seed``, ``rank``, ``num_replicas``, ``keyed`` and, if given, ``num_samples``.
        samples_per_epoch: Samples that an epoch takes; default all.
        batch_size: Most samples in a batch, over all devices together.
        accumulate: Batches whose gradients make one step.
        epochs: Passes over the training rows of a fold.
        patience: Epochs without a better ``monitor`` after which a run stops; None never stops.
        monitor: Score that chooses the epoch whose weights are kept and predict; ties keep the
            earlier one. ``"last"`` keeps the last epoch, whatever its score.
        clip_norm: Longest gradient that a step takes; None for no limit.
        keep: Number of best epochs whose weights are kept.
        precision: Lightning's name of the arithmetic.
        seed: Seed of weights, order, crops and folds.
        seeds: Several of them, in place of ``seed``.
        checkpoint_every: Optimiser steps between checkpoints; one is written after every epoch
            anyway.
        isolate: Give each run a process of its own, which returns all memory at its end and
            cannot take the others with it. ``build`` must then be picklable, and the script needs
            its ``if __name__ == "__main__"``. The default is this process: functions written in
            a notebook cannot be sent to another, and a new process takes seconds to start. It
            does not go with several devices.
        workers: Loader processes of a run. Their number does not change the outcome.
        cache: Folder for decoded images, which all runs then share; see
            :class:`~lowres_vision.data.MultiResolutionDataset`.
        logger: A name of :func:`make_loggers`, or several; ``"csv"`` is ``metrics.csv``.
        tags: Words that the loggers find the runs by.
        callbacks: Further Lightning callbacks; each run takes a copy.
        devices: Devices of each node, as Lightning reads it.
        strategy: How they share the work, as Lightning names it; ``"fsdp"`` shares the weights
            out too.
        num_nodes: Machines.

    Raises:
        DataError: If rows are unlabelled, a class is too rare for the folds, or a resolution is
            missing; told before training starts.
        FileExistsError: If ``out`` holds runs with other settings, or another process is at one.
        ValueError: If an argument is out of range, ``build`` makes a model of another number of
            classes, ``out`` lies within the runs of ``pseudo_labels``, or its ledger is for other
            rows.
        TypeError: If an argument is of another kind, or ``isolate`` cannot send it to another
            process.
    """
    for name, given in {"manifest": manifest, **({} if test is None else {"test": test})}.items():
        if not isinstance(given, Manifest):
            raise TypeError(
                f"`{name}` must be a Manifest, as Manifest.read_csv returns it, got {given!r}"
            )
    epochs = _count("epochs", epochs)
    accumulate = _count("accumulate", accumulate)
    batch_size = _count("batch_size", batch_size)
    keep = _count("keep", keep)
    check_choice("resolution", resolution, ("low", "high", "both", "pair"))
    check_choice("held_out_resolution", held_out_resolution, ("low", "high"))
    check_choice("monitor", monitor, get_args(Monitor))
    if monitor == "last" and patience is not None:
        raise ValueError(
            f"`patience` must be None with monitor='last', which watches no score, got {patience}"
        )
    check_choice("precision", precision, get_args(Precision))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if isolate and (devices not in (1, "1", "auto") or num_nodes > 1 or launched > 1):
        raise ValueError(
            f"`isolate` must be False with several devices, whose processes could not find each "
            f"other again in the second run, got devices={devices!r}, num_nodes={num_nodes} and "
            f"{launched} processes"
        )
    models = _models(build)
    every_seed = _seeds(seed, seeds)
    arguments = locals()
    settings = Settings(**{entry.name: arguments[entry.name] for entry in fields(Settings)})
    fold_of, folding = _fold_numbers(manifest, folds, every_seed[0])
    # A resolution that is missing is told here, not when the first fold is done.
    MultiResolutionDataset(manifest, resolution=resolution)
    for rows in (manifest, test):
        if rows is not None:
            MultiResolutionDataset(rows, resolution=held_out_resolution)
    out = Path(out)
    if pseudo_labels is not None:
        if not isinstance(pseudo_labels, PseudoLabels):
            raise TypeError(f"`pseudo_labels` must be a PseudoLabels, got {pseudo_labels!r}")
        if test is None:
            raise ValueError("`test` must be given with `pseudo_labels`, which label its rows")
        MultiResolutionDataset(test, resolution=resolution)
        if any(out.resolve().is_relative_to(Path(run).resolve()) for run in pseudo_labels.runs):
            raise ValueError(
                f"`out` must lie outside of the runs of `pseudo_labels`, whose votes its own would "
                f"join when it is called again, got {out}"
            )
    scored = np.flatnonzero(fold_of >= 0)
    ids = [manifest.ids[row] for row in scored]
    data = {
        "data_sha256": manifest.digest(),
        "folds_sha256": OutOfFold.hash_folds(ids, fold_of[scored]),
        "test_sha256": None if test is None else test.digest(),
        "classes": list(manifest.classes),
        "folds": folding,
        "settings": {
            entry.name: describe(getattr(settings, entry.name))
            for entry in fields(Settings)
            if entry.name not in _WITHOUT_EFFECT
        },
    }
    added: list[Manifest] = []
    if pseudo_labels is not None and test is not None:
        folds_sha256 = str(data["folds_sha256"])
        added = pseudo_labels.label(test, classes=manifest.classes, fold_hash=folds_sha256)
        data["pseudo_labels_sha256"] = labels_sha256(added)
        if is_first_process():
            numbers = ", ".join(str(len(rows)) for rows in added)
            print(f"pseudo-labels: {numbers} of {len(test)} test rows, by fold", flush=True)
    runs = []
    for model, make in models.items():
        built = _built(make, fold_of, manifest, every_seed[0])
        for number in every_seed:
            folder = out / (model if isinstance(build, Mapping) else "")
            folder /= f"seed_{number}" if seeds is not None else ""
            for fold in range(int(fold_of.max()) + 1):
                made_of = {"model": model, "seed": number, "fold": fold, **data, "build": built}
                runs.append(
                    Run(
                        folder / f"fold_{fold}", out / "ledger", model, number, fold, fold_of,
                        make, manifest, test, added[fold] if added else None, settings, made_of,
                    )
                )  # fmt: skip
    for run in runs:
        check(run)
    if is_first_process():
        OutOfFold.create(
            out / "ledger",
            ids=ids,
            labels=manifest.labels[scored],
            classes=manifest.classes,
            fold_of=fold_of[scored],
            data_hash=ledger_hash(data),
        )
    for number, run in enumerate(runs, start=1):
        if finished(run):
            continue
        print(f"{run.name}: run {number} of {len(runs)}", flush=True)
        if isolate:
            in_own_process(execute, run, name=run.name)
        else:
            execute(run)
    result = collect(runs, manifest, fold_of)
    if is_first_process():
        save(result, manifest, test, data, out)
    wait_for_all_processes()  # none goes on, to what reads these files, say, before they are there
    return result


def _count(name: str, value: Any) -> int:
    check_range(name, value, 1)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}") from None


def _models(build: Build | Mapping[str, Build]) -> dict[str, Build]:
    if not isinstance(build, Mapping):
        build = {"model": build}
    for make in build.values():
        if isinstance(make, nn.Module) or not callable(make):
            raise TypeError(
                f"`build` must be a function that returns a Classifier, so that each run starts "
                f"anew, got a {type(make).__name__}"
            )
    wrong = [name for name in build if not re.fullmatch(_NAME, name)]
    if wrong or not build:
        raise ValueError(
            f"`build` must name at least one model, with letters, digits, '.', '_', '+' and '-' "
            f"that make a folder of its own on every system, got {wrong or 'none'}"
        )
    if len({name.lower() for name in build}) < len(build):
        raise ValueError(
            f"`build` must name models that differ in more than case, as some systems read both "
            f"as one folder, got {sorted(build)}"
        )
    return dict(build)


def _seeds(seed: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    every = tuple(operator.index(number) for number in ((seed,) if seeds is None else seeds))
    if not every or len(set(every)) != len(every):
        raise ValueError(f"`seeds` must be different ints, at least one, got {every}")
    for number in every:
        check_range("seed" if seeds is None else "seeds", number, 0)
    return every


def _fold_numbers(
    manifest: Manifest, folds: StratifiedFolds | npt.ArrayLike | None, seed: int
) -> tuple[npt.NDArray[np.int64], Any]:
    """Return the fold of each row, and words for how it was found."""
    if folds is None or isinstance(folds, StratifiedFolds):
        folds = folds or StratifiedFolds(seed=seed)
        return folds.assign(manifest), {"n_splits": folds.n_splits, "seed": folds.seed}
    if isinstance(folds, int):
        raise TypeError(
            f"`folds` must be a StratifiedFolds or an array of fold numbers, got {folds}; for "
            f"{folds} folds give StratifiedFolds({folds}, seed={seed})"
        )
    manifest.require_labels()
    given = np.asarray(folds)
    used = np.unique(given[given >= 0]) if given.dtype.kind in "iu" else np.empty(0)
    if (
        given.shape != (len(manifest),)
        or not used.size
        or given.min() < -1
        or not np.array_equal(used, np.arange(len(used)))
        or (len(used) == 1 and given.min() == 0)
    ):
        raise ValueError(
            f"`folds` must give each of {len(manifest)} rows a fold from 0 up, none left out, or "
            f"-1 to train on it always, and leave every fold rows to train on; got "
            f"{given.dtype} of shape {given.shape} with {np.unique(given)[:10].tolist()}"
        )
    return given.astype(np.int64), "given"


def _built(
    make: Build, fold_of: npt.NDArray[np.int64], manifest: Manifest, seed: int
) -> dict[str, Any]:
    """Describe what ``make`` builds, its first weights included, for the first fold."""
    L.seed_everything(seed, verbose=False)
    fold = Fold(0, np.flatnonzero(fold_of == 0), manifest.digest())
    classifier = call_build(make, fold)
    K = getattr(classifier.model, "num_classes", None)
    if K not in (None, len(manifest.classes)):
        raise ValueError(
            f"`build` must make a model of {len(manifest.classes)} classes, those of "
            f"{manifest.source}, got one of {K}"
        )
    return describe_classifier(classifier)
