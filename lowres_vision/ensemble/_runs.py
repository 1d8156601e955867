"""The predictions of several runs as one: ledgers merged or joined, test predictions by member."""

import io
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.ensemble._inputs import Indices, check_rows
from lowres_vision.ensemble._ledger import OutOfFold
from lowres_vision.ensemble._ledger_entry import Member
from lowres_vision.ensemble._ledger_rows import LedgerRows

Floats32 = npt.NDArray[np.float32]

TEST_FILE = "test_probabilities.npz"


@dataclass(frozen=True, eq=False)
class Runs:
    """Predictions of some runs for the same rows.

    Attributes:
        differ: What the runs do not share: ``"files"``, ``"folds"``, both or nothing.
        ids: ``(N,)`` row ids.
        labels: ``(N,)`` class indices.
        fold_of: ``(N,)`` fold that held each row out in the first run.
        classes: ``(K,)`` class names.
        out_of_fold: ``(N, K)`` probabilities of each member.
        test_ids: ``(T,)`` ids of the test rows; empty without.
        test: ``(T, K)`` probabilities of each member, the mean of its folds; empty unless all
            members have them.
        untested: Members that do not.
    """

    differ: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Indices
    fold_of: Indices
    classes: tuple[str, ...]
    out_of_fold: dict[Member, Floats32]
    test_ids: tuple[str, ...]
    test: dict[Member, Floats32]
    untested: tuple[Member, ...]


def read_runs(
    runs: Sequence[str | os.PathLike[str]], *, merged: str | os.PathLike[str] | None = None
) -> Runs:
    """Read what ``cross_validate`` left in some folders.

    Ledgers of the same files and folds may be parts of one run: they are merged by all rules of
    :class:`OutOfFold`. Those of other files or folds are joined to them by row id. Where a model
    and seed then stand for two, the folder becomes part of the name.

    Args:
        runs: Folders with ledgers in them, at any depth, and beside a ledger perhaps a
            ``test_probabilities.npz`` of ``ids``, ``classes``, ``models``, ``seeds``, ``views`` and
            ``probabilities`` (members, folds, T, K).
        merged: Folder for the merged ledger; None keeps none.

    Raises:
        FileNotFoundError: If a folder has no ledger.
        ValueError: If the ledgers are not of the same rows, labels and classes, disagree on an
            entry, have none, lack folds or share weights; if the test predictions are of other rows
            or classes, or damaged; if ``merged`` is given and files or folds differ.
    """
    if not runs:
        raise ValueError("`runs` must name at least one folder, got none")
    folders = dict.fromkeys(found for run in runs for found in _ledgers_under(Path(run)))
    rows = {folder: LedgerRows.read(folder) for folder in folders}
    by_hashes: dict[tuple[str, str], list[Path]] = {}
    for folder, found in rows.items():
        by_hashes.setdefault((found.data_hash, found.fold_hash), []).append(folder)
    alike = list(by_hashes.values())
    kinds = zip(("files", "folds"), zip(*by_hashes, strict=True), strict=True)
    differ = tuple(kind for kind, hashes in kinds if len(set(hashes)) > 1)
    if merged is not None and differ:
        raise ValueError(
            f"`merged` is one ledger, and the runs are of different {' and '.join(differ)}; "
            f"leave it out, or merge those that are alike"
        )
    first = rows[alike[0][0]]
    places = [_places(first, alike[0][0], rows[group[0]], group[0]) for group in alike]
    out_of_fold: dict[Member, Floats32] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ledgers = [
            _merge(group, rows[group[0]], merged or Path(scratch) / str(number))
            for number, group in enumerate(alike)
        ]
        _refuse_shared_weights(ledgers, alike)
        names = _names(ledgers, alike)
        for ledger, place, named in zip(ledgers, places, names, strict=True):
            stack = ledger.probabilities(list(named))
            stack = stack if ledger.ids == first.ids else stack[:, place]
            out_of_fold |= dict(zip(named.values(), stack, strict=True))
    test_ids, test = _read_tests(alike, names, first.classes)
    untested = tuple(member for member in out_of_fold if member not in test)
    return Runs(
        differ=differ,
        ids=first.ids,
        labels=first.labels,
        fold_of=first.fold_of,
        classes=first.classes,
        out_of_fold=out_of_fold,
        test_ids=() if untested else test_ids,
        test={} if untested else test,
        untested=untested,
    )


def _ledgers_under(run: Path) -> list[Path]:
    found = sorted(path.parent for path in run.rglob("ledger.json"))
    if not found:
        raise FileNotFoundError(f"{run} holds no ledger; is it a folder that cross_validate wrote?")
    return found


def _places(first: LedgerRows, folder: Path, other: LedgerRows, other_folder: Path) -> Indices:
    try:
        return first.places_in(other)
    except ValueError as error:
        raise ValueError(f"{other_folder} does not fit {folder}: {error}") from None


def _merge(folders: Sequence[Path], rows: LedgerRows, merged: str | os.PathLike[str]) -> OutOfFold:
    """Return a new ledger in ``merged`` of what those in ``folders``, of the same rows, hold."""
    ledger = OutOfFold.create(
        merged,
        ids=rows.ids,
        labels=rows.labels,
        classes=rows.classes,
        fold_of=rows.fold_of,
        data_hash=rows.data_hash,
    )
    for folder in folders:
        other = OutOfFold(folder)
        if not other.members():
            raise ValueError(f"{folder} has no entries yet; finish the run, or leave it out")
        try:
            ledger.merge(other)
        except ValueError as error:
            raise ValueError(f"{folder} does not fit {folders[0]}: {error}") from None
    return ledger


def _refuse_shared_weights(ledgers: Sequence[OutOfFold], alike: Sequence[Sequence[Path]]) -> None:
    """Raise ValueError if weights are entered for different files or folds: a leak, or a copy."""
    seen: dict[str, Path] = {}
    for ledger, folders in zip(ledgers, alike, strict=True):
        hashes = ledger.checkpoint_hashes()
        if shared := hashes & set(seen):
            raise ValueError(
                f"{folders[0]} does not fit {seen[min(shared)]}: {len(shared)} checkpoints are in "
                f"both, under different files or folds; one of the two is leaked, or a copy"
            )
        seen |= dict.fromkeys(hashes, folders[0])


def _names(
    ledgers: Sequence[OutOfFold], alike: Sequence[Sequence[Path]]
) -> list[dict[Member, Member]]:
    """Return by ledger what to call each member: as it is, but for a model in several ledgers."""
    models = [{member[:2] for member in ledger.members()} for ledger in ledgers]
    times = Counter(model for found in models for model in found)
    names = []
    for ledger, folders in zip(ledgers, alike, strict=True):
        run_of = {m[:2]: folder.parent for folder in folders for m in OutOfFold(folder).members()}
        names.append(
            {
                m: m if times[m[:2]] == 1 else m._replace(model=f"{m.model} of {run_of[m[:2]]}")
                for m in ledger.members()
            }
        )
    return names


def read_test_votes(
    runs: Sequence[str | os.PathLike[str]], *, classes: Sequence[str], fold_hash: str
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the test ids and what each fold's models of all runs vote, ``(F, T, K)``.

    All members count equally; one that is found twice, in a copy of its run, say, counts once. A
    fold's models have not seen the rows that it holds out; those of the other folds have, and are
    not mixed in.

    Raises:
        FileNotFoundError: If a folder has no ledger or no test predictions.
        ValueError: If a run is of other folds than ``fold_hash``, other classes or other test rows,
            or its test predictions are damaged.
    """
    ids: tuple[str, ...] = ()
    votes: list[Floats32] = []
    for folder in dict.fromkeys(found for run in runs for found in _ledgers_under(Path(run))):
        if LedgerRows.read(folder).fold_hash != fold_hash:
            raise ValueError(
                f"{folder} is of other folds or rows: its models may have seen what is held out "
                f"here; name runs of the same folds"
            )
        file = folder.parent / TEST_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing; give `test` to the run that writes it, and let it finish"
            )
        ids, found = _read_checked(file, tuple(classes), ids)
        votes += [p for p in found.values() if not any(np.array_equal(p, q) for q in votes)]
    return ids, np.mean(votes, axis=0, dtype=np.float64)


def _read_tests(
    alike: Sequence[Sequence[Path]], names: Sequence[dict[Member, Member]], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[Member, Floats32]]:
    ids: tuple[str, ...] = ()
    test: dict[Member, Floats32] = {}
    files = [
        (folder.parent / TEST_FILE, n) for f, n in zip(alike, names, strict=True) for folder in f
    ]
    for file, named in files:
        if file.is_file():
            ids, found = _read_checked(file, classes, ids)
            test |= {named[m]: p.mean(0, dtype=np.float32) for m, p in found.items() if m in named}
    return ids, test


def _read_checked(
    file: Path, classes: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[Member, Floats32]]:
    """Return the ids, those given if any, and each member's ``(F, T, K)`` in their order."""
    found, named, stacks = read_test(file)
    if named != classes:
        raise ValueError(f"{file} has other classes than the ledger, or another order")
    ids = ids or found
    row_of = {name: row for row, name in enumerate(found)}
    if len(row_of) < len(found):
        raise ValueError(f"{file} has an id more than once")
    if unlike := sorted(set(ids) ^ set(row_of)):
        raise ValueError(
            f"{file} is of other test rows than those before: {len(unlike)} stand in one "
            f"alone, the first is {unlike[0]!r}"
        )
    for fold in (p for stack in stacks.values() for p in stack):
        check_rows(str(file), fold)
    order = np.array([row_of[name] for name in ids], dtype=np.int64)
    return ids, {member: stack[:, order] for member, stack in stacks.items()}


def read_test(file: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[Member, Floats32]]:
    """Return ids, classes and each member's ``(F, T, K)`` of a ``test_probabilities.npz``.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            columns = (arrays[name].tolist() for name in ("models", "seeds", "views"))
            members = [Member(*member) for member in zip(*columns, strict=True)]
            ids, classes = (tuple(arrays[name].tolist()) for name in ("ids", "classes"))
            return ids, classes, dict(zip(members, arrays["probabilities"], strict=True))
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete it and call cross_validate again"
        ) from None
