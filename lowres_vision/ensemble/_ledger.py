"""A ledger of out-of-fold predictions that refuses what would make a score a lie.

On disk a ledger is a folder: ``ledger.json`` and ``rows.npz`` say which rows, labels, classes and
folds it is for; each entry, the predictions of one checkpoint for the rows its fold held out, is
``entries/NAME.npz`` with ``entries/NAME.json``. A file appears whole or not at all, and the JSON,
written last, holds the SHA-256 of the arrays: an entry without it was never finished and does not
count. Processes and machines may add to copies of one ledger and merge them later. Arrays are
numbers and strings; nothing is pickled.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_whole
from lowres_vision.ensemble._arrays import read_arrays, write_arrays
from lowres_vision.ensemble._inputs import Indices, check_labels, check_rows

_FORMAT = 1


class Member(NamedTuple):
    """One column of the ledger: a model with its seed, seen through one view of the images."""

    model: str
    seed: int
    view: str


@dataclass(frozen=True)
class _Entry:
    model: str
    seed: int
    view: str
    fold: int
    checkpoint_hash: str
    sha256: str = ""

    @property
    def member(self) -> Member:
        return Member(self.model, self.seed, self.view)

    @property
    def name(self) -> str:
        """Return a file name that reads well and that no other entry has."""
        key = json.dumps([self.model, self.seed, self.view, self.fold])
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.model}-{self.seed}-{self.view}")[:80]
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return f"{words}-fold{self.fold}-{digest}"


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
        header = self.folder / "ledger.json"
        if not header.is_file():
            raise FileNotFoundError(f"{self.folder} holds no ledger; make one with create()")
        about = _read_json(header)
        if about.get("format") != _FORMAT:
            raise ValueError(f"{header} has format {about.get('format')!r}, this reads {_FORMAT}")
        rows = read_arrays(self.folder / "rows.npz", sha256=about["rows_sha256"])
        self.ids: tuple[str, ...] = tuple(rows["ids"].tolist())
        self.labels: Indices = rows["labels"]
        self.fold_of: Indices = rows["fold_of"]
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.data_hash: str = about["data_hash"]
        self.fold_hash: str = about["fold_hash"]

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
        ids, classes = tuple(ids), tuple(classes)
        _refuse_repeated("ids", ids)
        _refuse_repeated("classes", classes)
        truth = check_labels(labels, len(ids), len(classes))
        folds = np.asarray(fold_of)
        used = np.unique(folds)
        if folds.shape != truth.shape or not np.array_equal(used, np.arange(len(used))):
            raise ValueError(
                f"`fold_of` must give each of the {len(ids)} rows a fold from 0 up, none "
                f"empty, got folds {used.tolist()[:10]} of shape {folds.shape}"
            )
        folds = folds.astype(np.int64)
        folder = Path(folder)
        fold_hash = cls.hash_folds(ids, folds)
        if (folder / "ledger.json").exists():
            ledger = cls(folder)
            ledger._refuse_foreign(data_hash=data_hash, fold_hash=fold_hash, classes=classes)
            if not np.array_equal(ledger.labels, truth) or ledger.ids != ids:
                raise ValueError(f"{folder} holds a ledger of other labels or another row order")
            return ledger
        (folder / "entries").mkdir(parents=True, exist_ok=True)
        rows = {"ids": np.array(ids, dtype=np.str_), "labels": truth, "fold_of": folds}
        digest = write_arrays(folder / "rows.npz", rows)
        about = {"data_hash": data_hash, "fold_hash": fold_hash, "classes": classes}
        _write_json(folder / "ledger.json", {"format": _FORMAT, **about, "rows_sha256": digest})
        return cls(folder)

    @staticmethod
    def hash_folds(ids: Sequence[str], fold_of: npt.ArrayLike) -> str:
        """Return a SHA-256 of which fold holds out which id: what a checkpoint should carry."""
        pairs = sorted(zip(ids, np.asarray(fold_of).tolist(), strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

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
                probabilities; a checkpoint that is in the ledger under another fold; an entry
                that is there already with other numbers.
        """
        self._refuse_foreign(data_hash=data_hash, fold_hash=fold_hash, classes=tuple(classes))
        self._refuse_other_rows(tuple(ids), fold)
        rows = np.asarray(check_rows("probabilities", probabilities), dtype=np.float32)
        if rows.shape != (len(ids), len(self.classes)):
            raise ValueError(
                f"`probabilities` must be ({len(ids)}, {len(self.classes)}), one row per id and "
                f"one column per class, got {rows.shape}"
            )
        if not checkpoint_hash:
            raise ValueError("`checkpoint_hash` must name the weights, got an empty string")
        entry = _Entry(model, int(seed), view, int(fold), checkpoint_hash)
        for other in self._entries():
            _refuse_reuse(entry, other)
            if other.name == entry.name:
                stored = self._read(other)
                same = other.checkpoint_hash == checkpoint_hash and np.array_equal(stored, rows)
                if same:
                    return
                raise ValueError(
                    f"{_words(entry)} is in the ledger with other numbers; a second prediction "
                    f"needs its own model name, seed or view"
                )
        path = self.folder / "entries" / f"{entry.name}.npz"
        digest = write_arrays(path, {"probabilities": rows})
        about = {**asdict(entry), "sha256": digest}
        _write_json(path.with_suffix(".json"), {**about, **self._header()})

    def merge(self, other: str | os.PathLike[str] | Self) -> int:
        """Take over the entries of another ledger of the same rows, and return how many were new.

        Raises:
            ValueError: If it is for other data, folds, labels or classes, or if an entry does not
                fit those here; entries before that one have been taken over.
        """
        other = other if isinstance(other, OutOfFold) else type(self)(other)
        self._refuse_foreign(**other._header())
        if not np.array_equal(self.labels, other.labels) or self.ids != other.ids:
            raise ValueError(f"{other.folder} is for other labels or another order of rows")
        before = sum(1 for _ in self._entries())
        for entry in other._entries():
            self.add(
                other._read(entry),
                ids=[self.ids[row] for row in self._rows_of(entry.fold)],
                model=entry.model,
                fold=entry.fold,
                seed=entry.seed,
                view=entry.view,
                checkpoint_hash=entry.checkpoint_hash,
                **other._header(),
            )
        return sum(1 for _ in self._entries()) - before

    def members(self) -> list[Member]:
        """Return every model, seed and view that has an entry, sorted; some may lack folds."""
        return sorted({entry.member for entry in self._entries()})

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
                values[self._rows_of(fold)] = self._read(entries[(*member, fold)])
        return stack

    def _header(self) -> dict[str, Any]:
        return {
            "data_hash": self.data_hash,
            "fold_hash": self.fold_hash,
            "classes": self.classes,
        }

    def _rows_of(self, fold: int) -> Indices:
        return np.flatnonzero(self.fold_of == fold)

    def _entries(self) -> Iterator[_Entry]:
        for path in sorted((self.folder / "entries").glob("*.json")):
            about = _read_json(path)
            try:
                entry = _Entry(**{name: about[name] for name in _Entry.__dataclass_fields__})
                self._refuse_foreign(**{name: about[name] for name in self._header()})
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} does not belong to this ledger: {error}") from None
            if path.stem != entry.name:
                raise ValueError(f"{path} is named as another entry than {_words(entry)}")
            yield entry

    def _read(self, entry: _Entry) -> npt.NDArray[np.float32]:
        path = self.folder / "entries" / f"{entry.name}.npz"
        return np.asarray(read_arrays(path, sha256=entry.sha256)["probabilities"])

    def _refuse_foreign(self, *, data_hash: str, fold_hash: str, classes: Sequence[str]) -> None:
        if data_hash != self.data_hash:
            raise ValueError(
                f"`data_hash` is of another data set: {data_hash!r}, the ledger's is "
                f"{self.data_hash!r}"
            )
        classes = tuple(classes)
        if classes != self.classes:
            if sorted(classes) == sorted(self.classes):
                raise ValueError(
                    f"`classes` are in another order: {_first_difference(classes, self.classes)}"
                )
            raise ValueError(
                f"`classes` are other classes: {len(classes)} of them, the ledger has "
                f"{len(self.classes)}; only one side has "
                f"{sorted(set(classes) ^ set(self.classes))[:5]}"
            )
        if fold_hash != self.fold_hash:
            raise ValueError(
                f"`fold_hash` is of other folds: {fold_hash!r}, the ledger's is "
                f"{self.fold_hash!r}; the model has seen rows that the ledger holds out"
            )

    def _refuse_other_rows(self, ids: tuple[str, ...], fold: int) -> None:
        _refuse_repeated("ids", ids)
        row_of = {name: row for row, name in enumerate(self.ids)}
        unknown = [name for name in ids if name not in row_of]
        if unknown:
            raise ValueError(f"`ids` has rows unknown to the ledger: {unknown[:5]}")
        expected = tuple(self.ids[row] for row in self._rows_of(fold))
        if not expected:
            raise ValueError(f"`fold` must be in 0..{self.fold_of.max()}, got {fold}")
        leaked = [name for name in ids if self.fold_of[row_of[name]] != fold]
        if leaked:
            raise ValueError(
                f"`ids` leak: {leaked[0]!r} is held out by fold {self.fold_of[row_of[leaked[0]]]}, "
                f"so the checkpoint of fold {fold} was trained on it ({len(leaked)} such rows)"
            )
        missing = sorted(set(expected) - set(ids))
        if missing:
            raise ValueError(
                f"`ids` lacks {len(missing)} rows of fold {fold}, the first is {missing[0]!r}"
            )
        if ids != expected:
            raise ValueError(f"`ids` are in another order: {_first_difference(ids, expected)}")


def _refuse_reuse(entry: _Entry, other: _Entry) -> None:
    if other.checkpoint_hash != entry.checkpoint_hash:
        return
    if (other.model, other.seed, other.fold) != (entry.model, entry.seed, entry.fold):
        raise ValueError(
            f"`checkpoint_hash` is in the ledger as {_words(other)}: the same weights cannot be "
            f"{_words(entry)} too, one of the two folds would be leaked or a model counted twice"
        )


def _refuse_repeated(name: str, values: Sequence[str]) -> None:
    repeated = [value for value, times in Counter(values).items() if times > 1]
    if repeated:
        raise ValueError(f"`{name}` must be unique, {repeated[:5]} stand more than once")


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    place, names = next(
        (i, pair) for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]
    )
    return f"place {place} has {names[0]!r}, the ledger {names[1]!r}"


def _words(entry: _Entry) -> str:
    return f"{entry.model!r}, seed {entry.seed}, view {entry.view!r}, fold {entry.fold}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return about


def _write_json(path: Path, about: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
