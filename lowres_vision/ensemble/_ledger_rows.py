"""What a ledger is for: its rows, classes and folds, and the refusal of all that is of others."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_arrays
from lowres_vision.ensemble._arrays import read_arrays, read_json, write_json
from lowres_vision.ensemble._inputs import Indices, check_labels

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class LedgerRows:
    """Rows, labels, classes and folds, as :class:`OutOfFold` documents them."""

    ids: tuple[str, ...]
    labels: Indices
    classes: tuple[str, ...]
    fold_of: Indices
    data_hash: str
    fold_hash: str

    @classmethod
    def checked(
        cls,
        ids: Sequence[str],
        labels: npt.ArrayLike,
        classes: Sequence[str],
        fold_of: npt.ArrayLike,
        data_hash: str,
    ) -> Self:
        """Return the rows, or raise ValueError if the arguments do not fit each other."""
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
        return cls(ids, truth, classes, folds, data_hash, hash_folds(ids, folds))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the rows of the ledger in ``folder``."""
        header = folder / "ledger.json"
        if not header.is_file():
            raise FileNotFoundError(f"{folder} holds no ledger; make one with create()")
        about = read_json(header)
        if about.get("format") != _FORMAT:
            raise ValueError(f"{header} has format {about.get('format')!r}, this reads {_FORMAT}")
        if lacking := {"rows_sha256", "classes", "data_hash", "fold_hash"} - set(about):
            raise ValueError(f"{header} is damaged: it lacks {', '.join(sorted(lacking))}")
        rows = read_arrays(folder / "rows.npz", sha256=about["rows_sha256"])
        return cls(
            ids=tuple(rows["ids"].tolist()),
            labels=rows["labels"],
            classes=tuple(about["classes"]),
            fold_of=rows["fold_of"],
            data_hash=about["data_hash"],
            fold_hash=about["fold_hash"],
        )

    def write(self, folder: Path) -> None:
        """Start a ledger of these rows in ``folder``."""
        (folder / "entries").mkdir(parents=True, exist_ok=True)
        ids = np.array(self.ids, dtype=np.str_)
        rows = {"ids": ids, "labels": self.labels, "fold_of": self.fold_of}
        digest = write_arrays(folder / "rows.npz", rows)
        about = {"format": _FORMAT, **self.header(), "rows_sha256": digest}
        write_json(folder / "ledger.json", about)

    def header(self) -> dict[str, Any]:
        """Return what each entry must agree with."""
        return {
            "data_hash": self.data_hash,
            "fold_hash": self.fold_hash,
            "classes": self.classes,
        }

    def of_fold(self, fold: int) -> Indices:
        """Return the rows that a fold holds out."""
        return np.flatnonzero(self.fold_of == fold)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def same_rows(self, other: "LedgerRows") -> bool:
        """Tell whether ids and labels are the same, in the same order."""
        return self.ids == other.ids and np.array_equal(self.labels, other.labels)

    def places_in(self, other: "LedgerRows") -> Indices:
        """Return where each of these rows stands in ``other``, whatever its files and folds are.

        Raises:
            ValueError: Unless ids, their labels and the classes are the same.
        """
        self._refuse_other_classes(other.classes)
        if self.same_rows(other):
            return np.arange(len(self.ids))
        if missing := [name for name in self.ids if name not in other._row_of]:
            raise ValueError(f"it lacks {len(missing)} rows, the first is {missing[0]!r}")
        if unknown := [name for name in other.ids if name not in self._row_of]:
            raise ValueError(f"it has {len(unknown)} rows more, the first is {unknown[0]!r}")
        places = np.array([other._row_of[name] for name in self.ids])
        wrong = np.flatnonzero(other.labels[places] != self.labels)
        if len(wrong):
            row = wrong[0]
            raise ValueError(
                f"it labels {self.ids[row]!r} {self.classes[other.labels[places[row]]]!r}, not "
                f"{self.classes[self.labels[row]]!r} ({len(wrong)} such rows)"
            )
        return places

    def refuse_foreign(self, *, data_hash: str, fold_hash: str, classes: Sequence[str]) -> None:
        """Raise ValueError unless data, folds and classes are those of the ledger."""
        if data_hash != self.data_hash:
            raise ValueError(
                f"`data_hash` is of another data set: {data_hash!r}, the ledger's is "
                f"{self.data_hash!r}"
            )
        self._refuse_other_classes(tuple(classes))
        if fold_hash != self.fold_hash:
            raise ValueError(
                f"`fold_hash` is of other folds: {fold_hash!r}, the ledger's is "
                f"{self.fold_hash!r}; the model has seen rows that the ledger holds out"
            )

    def refuse_other_rows(self, ids: tuple[str, ...], fold: int) -> None:
        """Raise ValueError unless ``ids`` are those that ``fold`` holds out, in order."""
        _refuse_repeated("ids", ids)
        row_of = self._row_of
        unknown = [name for name in ids if name not in row_of]
        if unknown:
            raise ValueError(f"`ids` has rows unknown to the ledger: {unknown[:5]}")
        expected = tuple(self.ids[row] for row in self.of_fold(fold))
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

    def _refuse_other_classes(self, classes: tuple[str, ...]) -> None:
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


def hash_folds(ids: Sequence[str], fold_of: npt.ArrayLike) -> str:
    """Return a SHA-256 of which fold holds out which id."""
    pairs = sorted(zip(ids, np.asarray(fold_of).tolist(), strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _refuse_repeated(name: str, values: Sequence[str]) -> None:
    repeated = [value for value, times in Counter(values).items() if times > 1]
    if repeated:
        raise ValueError(f"`{name}` must be unique, {repeated[:5]} stand more than once")


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    place, names = next(
        (i, pair) for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]
    )
    return f"place {place} has {names[0]!r}, the ledger {names[1]!r}"
