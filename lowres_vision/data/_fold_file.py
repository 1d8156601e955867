"""Folds on disk: what was dealt, from which rows and files, and what has changed since."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_whole
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._links import Digests, check_groups, file_digests
from lowres_vision.data._manifest import Manifest

Indices = npt.NDArray[np.int64]

_FORMAT = "lowres-vision folds"
_VERSION = 1
_ANEW = "put back what was there, or deal the folds anew"


class FoldRow(NamedTuple):
    """One row as it was when the folds were dealt; the columns of the file."""

    id: str
    label: str
    group: str | None
    low_sha256: str
    high_sha256: str | None
    fold: int


@dataclass(frozen=True)
class FoldRecord:
    """Folds with the settings that dealt them and the rows they were dealt to.

    The file is JSON with a line per row, the same bytes for the same seed and data. It holds the
    SHA-256 of each image file and of the rows as a whole. A record with a ``share`` is of one
    hold-out: fold 0 is what is held out, -1 what is trained on.
    """

    n_splits: int
    shuffle: bool
    seed: int
    rows: tuple[FoldRow, ...]
    share: float | None = None
    source: str = "folds"

    @classmethod
    def of(
        cls, manifest: Manifest, digests: Digests, fold_of: Indices, settings: dict[str, Any]
    ) -> Self:
        """Return the record of folds just dealt."""
        return cls(
            **settings,
            rows=tuple(
                row._replace(fold=int(fold))
                for row, fold in zip(_rows(manifest, digests), fold_of, strict=True)
            ),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once: a reader sees the old one or the new one, never half of it."""
        path = Path(path)
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "n_splits": self.n_splits,
            "shuffle": self.shuffle,
            "seed": self.seed,
            **({} if self.share is None else {"share": self.share}),
            "rows_sha256": _digest(self.rows),
            "columns": FoldRow._fields,
        }
        head = json.dumps(about, indent=1)[:-2]
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows)
        write_whole(path, f'{head},\n "rows": [\n{rows}\n]}}\n'.encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of :meth:`write`.

        Raises:
            FileNotFoundError: If ``path`` is not a file.
            DataError: If it is no such file, or is not as it was written.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; give the path of saved folds")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            if found["version"] != _VERSION:
                raise ValueError(f"its version is {found['version']!r}, not {_VERSION}")
            rows = tuple(FoldRow(*row) for row in found["rows"])
            if _digest(rows) != found["rows_sha256"]:
                raise ValueError("its rows are not those it was written with")
            _check_settings(found, {row.fold for row in rows})
            return cls(
                n_splits=found["n_splits"],
                shuffle=found["shuffle"],
                seed=found["seed"],
                rows=rows,
                share=found.get("share"),
                source=str(path),
            )
        except (ValueError, KeyError, TypeError) as error:
            told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            fault = Fault(f"is no file of saved folds: {told}", "deal and save the folds anew")
            raise DataError(path, [fault]) from None

    def check(self, manifest: Manifest, groups: Sequence[Hashable] | None = None) -> Indices:
        """Return the fold of each row of ``manifest``, once all is found to be as it was.

        Rows are known by their id, so they may stand in another order and files may have moved.

        Raises:
            DataError: With every row and file that is new, gone or changed, and every group of
                ``groups`` that is in several folds.
        """
        if groups is not None:
            check_groups(manifest, groups)
        manifest.require_labels()
        recorded = dict(zip(_keys(self.rows), self.rows, strict=True))
        faults, fold_of = [], []
        now = _rows(manifest, file_digests(manifest))
        for number, (key, row) in enumerate(zip(_keys(now), now, strict=True), 1):
            before = recorded.pop(key, None)
            if before is None:
                faults.append(Fault(f"id {row.id!r} is new", _ANEW, number))
                continue
            fold_of.append(before.fold)
            for name, old, new in zip(FoldRow._fields[1:5], before[1:5], row[1:5], strict=True):
                if old != new:
                    path = _path_of(manifest, number - 1, name)
                    faults.append(Fault(_change(name, old, new), _ANEW, number, path=path))
        faults += [Fault(f"id {row.id!r} is gone", _ANEW) for row in recorded.values()]
        if groups is not None and not faults:
            faults += _crossing(fold_of, groups)
        if faults:
            raise DataError(f"{manifest.source} against {self.source}", faults)
        return np.array(fold_of, dtype=np.int64)


def _check_settings(found: dict[str, Any], folds: set[int]) -> None:
    """Raise ``ValueError`` unless the settings could have dealt rows to these folds."""
    kinds: dict[str, type] = {"n_splits": int, "shuffle": bool, "seed": int, "share": float}
    settings: dict[str, Any] = {"share": 0.5, **found}
    for name, kind in kinds.items():
        value = settings[name]
        same_kind = type(value) is kind  # a bool is an int, but no number of folds
        if not same_kind or value < 0:
            raise ValueError(f"its {name} is {value!r}")
    first, last = (-1, 0) if "share" in found else (0, found["n_splits"] - 1)
    if (min(folds), max(folds), len(folds)) != (first, last, last - first + 1):
        raise ValueError(f"its rows are in folds {sorted(folds)}, not {first}..{last}")


def _rows(manifest: Manifest, digests: Digests) -> list[FoldRow]:
    low, high = digests
    return [
        FoldRow(
            id=manifest.ids[row],
            label=manifest.classes[manifest.labels[row]],
            group=None if manifest.groups is None else manifest.groups[row],
            low_sha256=low[row],
            high_sha256=None if high is None else high[row],
            fold=-1,
        )
        for row in range(len(manifest))
    ]


def _keys(rows: Iterable[FoldRow]) -> list[tuple[str, int]]:
    """Return each row's id with its number among the rows of that id: paths may stand twice."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        keys.append((row.id, seen[row.id]))
        seen[row.id] += 1
    return keys


def _change(name: str, old: str | None, new: str | None) -> str:
    if not name.endswith("_sha256"):
        return f"{name} was {old!r}, is {new!r}"
    what = f"{name.removesuffix('_sha256')}-resolution file"
    if old is None or new is None:
        return f"{what} is {'new' if old is None else 'gone'}"
    return f"{what} has changed"


def _path_of(manifest: Manifest, row: int, name: str) -> str | None:
    paths = {"low_sha256": manifest.low, "high_sha256": manifest.high}.get(name)
    return None if paths is None else paths[row]


def _crossing(fold_of: list[int], groups: Sequence[Hashable]) -> list[Fault]:
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    faults = []
    for rows in members.values():
        folds = sorted({fold_of[row] for row in rows})
        if len(folds) > 1:
            named = f"{', '.join(str(row + 1) for row in rows[:10])}{', ...' * (len(rows) > 10)}"
            reason = f"rows {named} are of one group and in folds {', '.join(map(str, folds))}"
            faults.append(Fault(reason, "deal the folds anew with `groups=`"))
    return faults


def _digest(rows: Iterable[FoldRow]) -> str:
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()
