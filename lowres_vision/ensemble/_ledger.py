"""A ledger of out-of-fold predictions that refuses what would make a score a lie.

On disk a ledger is a folder: ``ledger.json`` and ``rows.npz`` say which rows, labels, classes and
folds it is for; each entry, the predictions of one checkpoint for the rows its fold held out, is
``entries/NAME.npz`` with ``entries/NAME.json``. A file appears whole or not at all, and the JSON,
written last, holds the SHA-256 of the arrays: an entry without it was never finished and does not
count. Processes and machines may add to copies of one ledger and merge them later. Arrays are
numbers and strings; nothing is pickled.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_arrays
from lowres_vision.ensemble._arrays import read_arrays, read_json, write_json
from lowres_vision.ensemble._inputs import Indices, check_rows
from lowres_vision.ensemble._ledger_entry import Entry, Member
from lowres_vision.ensemble._ledger_rows import LedgerRows, hash_folds


class OutOfFold:
    """Out-of-fold predictions by row id, model, fold, seed and view.

    Make one with :meth:`create`, or open one with ``OutOfFold(folder)``.

    Attributes:
        folder: Where it lies.
        ids: ``(N,)`` row ids, in the order of everything read from here.
        labels: ``(N,)`` class indices.
        classes: Class names by index.
        fold_of: ``(N,)`` fold that held each row out.
        data_hash: Of the data set, e.g. ``Manifest.digest()``.
        fold_hash: Of ids and folds, see :meth:`hash_folds`.

    Raises:
        FileNotFoundError: If there is no ledger in ``folder``.
        ValueError: If its files are not what was written.

    Example:
        >>> import tempfile
        >>> ledger = OutOfFold.create(
        ...     tempfile.mkdtemp(), ids=["a", "b", "c", "d"], labels=[0, 1, 0, 1],
        ...     classes=["Finch", "Tit"], fold_of=[0, 0, 1, 1], data_hash="5d41")
        >>> for fold, ids in enumerate([["a", "b"], ["c", "d"]]):
        ...     ledger.add([[0.9, 0.1], [0.2, 0.8]], ids=ids, model="resnet18", fold=fold,
        ...                classes=["Finch", "Tit"], data_hash="5d41",
        ...                fold_hash=ledger.fold_hash, checkpoint_hash=f"c{fold}")
        >>> ledger.members()
        [Member(model='resnet18', seed=0, view='plain')]
        >>> ledger.probabilities().shape
        (1, 4, 2)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._rows = rows = LedgerRows.read(self.folder)
        self.ids: tuple[str, ...] = rows.ids
        self.labels: Indices = rows.labels
        self.classes: tuple[str, ...] = rows.classes
        self.fold_of: Indices = rows.fold_of
        self.data_hash: str = rows.data_hash
        self.fold_hash: str = rows.fold_hash

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        ids: Sequence[str],
        labels: npt.ArrayLike,
        classes: Sequence[str],
        fold_of: npt.ArrayLike,
        data_hash: str,
    ) -> Self:
        """Start a ledger in ``folder``, or open the one that is there if it is for the same rows.

        Args:
            folder: Is made if it is missing.
            ids: ``(N,)`` unique row ids.
            labels: ``(N,)`` class indices.
            classes: ``(K,)`` unique class names by index.
            fold_of: ``(N,)`` fold that holds each row out, 0 to F - 1, each of them used; all 0
                for one hold-out.
            data_hash: Of the data set, e.g. ``Manifest.digest()``.

        Raises:
            ValueError: If the arguments do not fit each other, or another ledger is there.
        """
        rows = LedgerRows.checked(ids, labels, classes, fold_of, data_hash)
        folder = Path(folder)
        if (folder / "ledger.json").exists():
            ledger = cls(folder)
            try:
                ledger._rows.refuse_foreign(**rows.header())
            except ValueError as error:
                raise ValueError(
                    f"{folder} holds another ledger: {error}; name another folder, or delete it"
                ) from None
            if not ledger._rows.same_rows(rows):
                raise ValueError(f"{folder} holds a ledger of other labels or another row order")
            return ledger
        rows.write(folder)
        return cls(folder)

    @staticmethod
    def hash_folds(ids: Sequence[str], fold_of: npt.ArrayLike) -> str:
        """Return a SHA-256 of which fold holds out which id: what a checkpoint should carry."""
        return hash_folds(ids, fold_of)

    def add(
        self,
        probabilities: npt.ArrayLike,
        *,
        ids: Sequence[str],
        model: str,
        fold: int,
        seed: int = 0,
        view: str = "plain",
        classes: Sequence[str],
        data_hash: str,
        fold_hash: str,
        checkpoint_hash: str,
    ) -> None:
        """Enter what one checkpoint predicts for the rows that its fold held out.

        The last four arguments are what the checkpoint knows of itself, not what the ledger
        says: comparing the two finds the mistake. Adding the same entry again changes nothing.

        Args:
            probabilities: ``(n, K)``, kept as float32.
            ids: ``(n,)`` ids of the predicted rows: all of the fold, in the ledger's order.
            model: Name of the model.
            fold: Fold that the checkpoint was not trained on.
            seed: Seed it was trained with.
            view: Name of the test-time view; ``"plain"`` for the image as it is.
            classes: ``(K,)`` class names in the order of the model's outputs.
            data_hash: Of the data set it was trained on.
            fold_hash: :meth:`hash_folds` of the folds it was trained with.
            checkpoint_hash: Of its weights.

        Raises:
            ValueError: If anything does not fit: other data, folds or classes; ids that repeat,
                are unknown, missing, of another fold or in another order; values that are no
                probabilities; a checkpoint that is in the ledger under another fold or model; a
                view of other weights than the model's other views; an entry that is there already
                with other numbers.
        """
        self._rows.refuse_foreign(data_hash=data_hash, fold_hash=fold_hash, classes=classes)
        self._rows.refuse_other_rows(tuple(ids), fold)
        entry = Entry(model, int(seed), view, int(fold), checkpoint_hash)
        self._enter(entry, probabilities, {known.name: known for known in self._entries()})

    def merge(self, other: str | os.PathLike[str] | Self) -> int:
        """Take over the entries of another ledger of the same rows, and return how many were new.

        Raises:
            ValueError: If it is for other data, folds, labels or classes, or if an entry does not
                fit those here; entries before that one have been taken over.
        """
        other = other if isinstance(other, OutOfFold) else type(self)(other)
        self._rows.refuse_foreign(**other._rows.header())
        if not self._rows.same_rows(other._rows):
            raise ValueError(f"{other.folder} is for other labels or another order of rows")
        known = {entry.name: entry for entry in self._entries()}
        return sum(self._enter(entry, other._read(entry), known) for entry in other._entries())

    def members(self) -> list[Member]:
        """Return every model, seed and view that has an entry, sorted; some may lack folds."""
        return sorted({entry.member for entry in self._entries()})

    def checkpoint_hashes(self) -> set[str]:
        """Return the hashes of all weights that have an entry."""
        return {entry.checkpoint_hash for entry in self._entries()}

    def probabilities(self, members: Sequence[Member] | None = None) -> npt.NDArray[np.float32]:
        """Return the predictions ``(M, N, K)`` of ``members``, by default all, rows as ``ids``.

        Raises:
            ValueError: If there are none, a member is unknown or lacks a fold, or a file is not
                what was written.
        """
        wanted = self.members() if members is None else [Member(*member) for member in members]
        if not wanted:
            raise ValueError(f"{self.folder} has no entries yet")
        entries = {(*entry.member, entry.fold): entry for entry in self._entries()}
        folds = range(int(self.fold_of.max()) + 1)
        stack = np.empty((len(wanted), len(self.ids), len(self.classes)), dtype=np.float32)
        for values, member in zip(stack, wanted, strict=True):
            missing = [fold for fold in folds if (*member, fold) not in entries]
            if missing:
                raise ValueError(
                    f"{member.model!r}, seed {member.seed}, view {member.view!r} has no "
                    f"predictions for fold {', '.join(map(str, missing))}"
                )
            for fold in folds:
                values[self._rows.of_fold(fold)] = self._read(entries[(*member, fold)])
        return stack

    def _enter(self, entry: Entry, probabilities: npt.ArrayLike, known: dict[str, Entry]) -> bool:
        """Write an entry, add it to those ``known`` by name, and tell whether it was new."""
        rows = np.asarray(check_rows("probabilities", probabilities), dtype=np.float32)
        shape = (len(self._rows.of_fold(entry.fold)), len(self.classes))
        if rows.shape != shape:
            raise ValueError(
                f"`probabilities` must be {shape}, one row per id and one column per class, "
                f"got {rows.shape}"
            )
        if not entry.checkpoint_hash:
            raise ValueError("`checkpoint_hash` must name the weights, got an empty string")
        stored = known.get(entry.name)
        if stored is not None:
            same = stored.checkpoint_hash == entry.checkpoint_hash
            if same and np.array_equal(self._read(stored), rows):
                return False
            raise ValueError(
                f"{entry} is in the ledger with other numbers; a second prediction needs its own "
                f"model name, seed or view"
            )
        for other in known.values():
            entry.refuse_weights_of(other)
        path = self.folder / "entries" / f"{entry.name}.npz"
        entry = replace(entry, sha256=write_arrays(path, {"probabilities": rows}))
        write_json(path.with_suffix(".json"), {**asdict(entry), **self._rows.header()})
        known[entry.name] = entry
        return True

    def _entries(self) -> Iterator[Entry]:
        for path in sorted((self.folder / "entries").glob("*.json")):
            about = read_json(path)
            try:
                entry = Entry(**{name: about[name] for name in Entry.__dataclass_fields__})
                self._rows.refuse_foreign(**{name: about[name] for name in self._rows.header()})
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} does not belong to this ledger: {error}") from None
            if path.stem != entry.name:
                raise ValueError(f"{path} is named as another entry than {entry}")
            yield entry

    def _read(self, entry: Entry) -> npt.NDArray[np.float32]:
        path = self.folder / "entries" / f"{entry.name}.npz"
        return np.asarray(read_arrays(path, sha256=entry.sha256)["probabilities"])
