"""The predictions of several runs as one: ledgers merged, test predictions by member."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.ensemble._ledger import OutOfFold
from lowres_vision.ensemble._ledger_entry import Member

Floats32 = npt.NDArray[np.float32]

_TEST = "test_probabilities.npz"


@dataclass(frozen=True, eq=False)
class Runs:
    """Predictions of some runs for the same rows.

    Attributes:
        ids: ``(N,)`` row ids.
        labels: ``(N,)`` class indices.
        fold_of: ``(N,)`` fold that held each row out.
        classes: ``(K,)`` class names.
        out_of_fold: ``(N, K)`` probabilities of each member.
        test_ids: ``(T,)`` ids of the test rows; empty without.
        test: ``(T, K)`` probabilities of each member, the mean of its folds; empty unless all
            members have them.
    """

    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    fold_of: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    out_of_fold: dict[Member, Floats32]
    test_ids: tuple[str, ...]
    test: dict[Member, Floats32]


def read_runs(
    runs: Sequence[str | os.PathLike[str]], *, merged: str | os.PathLike[str] | None = None
) -> Runs:
    """Read what ``cross_validate`` left in some folders.

    Args:
        runs: Folders with ledgers in them, at any depth, and beside a ledger perhaps a
            ``test_probabilities.npz`` of ``ids``, ``classes``, ``models``, ``seeds``, ``views`` and
            ``probabilities`` (members, folds, T, K).
        merged: Folder for the merged ledger; None keeps none.

    Raises:
        FileNotFoundError: If a folder has no ledger.
        ValueError: If the ledgers are not of the same data, folds and classes, disagree on an
            entry or lack folds, or the test predictions are of other rows or classes.
    """
    if not runs:
        raise ValueError("`runs` must name at least one folder, got none")
    folders = list(dict.fromkeys(found for run in runs for found in _ledgers_under(Path(run))))
    with tempfile.TemporaryDirectory() as scratch:
        first = OutOfFold(folders[0])
        ledger = OutOfFold.create(
            Path(scratch) / "ledger" if merged is None else merged,
            ids=first.ids,
            labels=first.labels,
            classes=first.classes,
            fold_of=first.fold_of,
            data_hash=first.data_hash,
        )
        for folder in folders:
            try:
                ledger.merge(folder)
            except ValueError as error:
                raise ValueError(f"{folder} does not fit {folders[0]}: {error}") from None
        members = ledger.members()
        out_of_fold = dict(zip(members, ledger.probabilities(members), strict=True))
    test_ids, test = _read_tests([folder.parent / _TEST for folder in folders], ledger.classes)
    complete = set(test) >= set(members)
    return Runs(
        ids=ledger.ids,
        labels=ledger.labels,
        fold_of=ledger.fold_of,
        classes=ledger.classes,
        out_of_fold=out_of_fold,
        test_ids=test_ids if complete else (),
        test={member: test[member] for member in members} if complete else {},
    )


def _ledgers_under(run: Path) -> list[Path]:
    found = sorted(path.parent for path in run.rglob("ledger.json"))
    if not found:
        raise FileNotFoundError(f"{run} holds no ledger; is it a folder that cross_validate wrote?")
    return found


def _read_tests(
    files: Sequence[Path], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[Member, Floats32]]:
    ids: tuple[str, ...] = ()
    test: dict[Member, Floats32] = {}
    for file in files:
        if not file.is_file():
            continue
        with np.load(file, allow_pickle=False) as arrays:
            found = tuple(arrays["ids"].tolist())
            if tuple(arrays["classes"].tolist()) != classes:
                raise ValueError(f"{file} has other classes than the ledger, or another order")
            if ids and found != ids:
                raise ValueError(f"{file} is of other test rows than those before, or in disorder")
            ids = found
            names = (arrays[name].tolist() for name in ("models", "seeds", "views"))
            for member, probabilities in zip(
                zip(*names, strict=True), arrays["probabilities"], strict=True
            ):
                test[Member(*member)] = probabilities.mean(axis=0, dtype=np.float32)
    return ids, test
