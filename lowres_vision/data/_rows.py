"""The rows of a data set as they are read, from a CSV or from folders, with all their faults."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowres_vision.data._cells import (
    check_classes,
    check_paths,
    empty_cells,
    label_twins,
    missing_column,
    repeated_ids,
    unknown_labels,
)
from lowres_vision.data._errors import DataError, Fault, limited
from lowres_vision.data._folders import read_tree
from lowres_vision.data._table import read_table


@dataclass(frozen=True, eq=False)
class Rows:
    """What a :class:`Manifest` holds, which says what each field is."""

    source: Path
    root: Path
    low: tuple[str, ...]
    high: tuple[str, ...] | None
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None
    nulls: Mapping[str, int]
    label_column: str | None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[Fault, ...] = ()


def read_rows(
    path: str | os.PathLike[str],
    *,
    image: str,
    high_resolution: str,
    label: str,
    id: str,
    group: str | None,
    root: str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
) -> tuple[Rows | None, list[Fault]]:
    """Read a CSV as :meth:`Manifest.read_csv` does, but return the faults with what was read.

    Of a CSV with faults, an unusable path is empty and an unusable label -1. The rows are
    None where the file is no table or a column is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} is a folder; give the path of a CSV of images, or read a folder per class "
            f"with `Manifest.read_folders`"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a CSV of images")
    root = Path(path.parent if root is None else root)
    try:
        cells = read_table(path)
    except DataError as error:
        return None, list(error.faults)
    named = {"image": image, "high_resolution": high_resolution, "label": label, "id": id}
    optional = {"high_resolution": "upscale_img_path", "label": "label", "id": "id"}
    needed = {key: name for key, name in named.items() if name != optional.get(key)}
    needed |= {"group": group} if group else {}
    if missing := {key: name for key, name in needed.items() if name not in cells}:
        return None, [missing_column(key, name, [*cells]) for key, name in missing.items()]

    faults: list[Fault] = []
    used = [name for name in (image, high_resolution, label, id, group) if name in cells]
    for name in used:
        faults += limited(empty_cells(name, cells[name]), name)
    nulls = {name: sum(not cell.strip() for cell in column) for name, column in cells.items()}
    others = {name: tuple(column) for name, column in cells.items() if name not in used}
    names = cells.get(label)
    known = check_classes(classes or ())
    if names is not None:
        faults += limited(label_twins(label, names), label)
        if classes is None:
            known = tuple(sorted(name for name in set(names) if name.strip()))
        faults += limited(unknown_labels(label, names, known), label)
    index = {name: number for number, name in enumerate(known)}
    labels = np.array([index.get(name, -1) for name in names or ()], dtype=np.int64)
    ids = cells.get(id)
    if ids is not None:
        faults += limited(repeated_ids(id, ids), id)
    groups = tuple(cells[group]) if group else None
    # A column's cells as they stood go as soon as it is checked: there may be a million.
    paths: dict[str, tuple[str, ...]] = {}
    for name in (image, high_resolution):
        if name in cells:
            checked, bad = check_paths(name, cells.pop(name), root)
            faults += limited(bad, name)
            paths[name] = tuple(checked)
    low = paths[image]
    found = Rows(
        source=path,
        root=root,
        low=low,
        high=None if high_resolution == image else paths.get(high_resolution),
        ids=low if ids is None else tuple(ids),
        labels=labels if names is not None else np.full(len(low), -1, dtype=np.int64),
        classes=known,
        groups=groups,
        nulls=nulls,
        label_column=label,
        columns=others,
    )
    return found, faults


def read_folder_rows(
    images: str | os.PathLike[str],
    *,
    high_resolution: str | os.PathLike[str] | None,
    root: str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
) -> tuple[Rows, list[Fault]]:
    """Read folders as :meth:`Manifest.read_folders` does, but return faults with what was read."""
    top = Path(images)
    high = None if high_resolution is None else Path(high_resolution)
    for folder in (top,) if high is None else (top, high):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; give one with a folder per class")
    if root is None:
        root = top if high is None else common_folder(top, high)
    for folder in (top,) if high is None else (top, high):
        if common_folder(folder, Path(root)) != common_folder(Path(root), Path(root)):
            raise ValueError(f"`root` must hold {folder}, got {root}")
    classes = None if classes is None else check_classes(classes)
    tree, faults = read_tree(top, high, Path(root), classes)
    found = Rows(
        source=top,
        root=Path(root),
        low=tuple(tree.low),
        high=None if tree.high is None else tuple(tree.high),
        ids=tuple(tree.low),
        labels=np.array(tree.labels, dtype=np.int64),
        classes=tree.classes,
        groups=None,
        nulls={},
        label_column=None,
        notes=tuple(tree.notes),
    )
    return found, faults


def row_numbers(rows: Sequence[int] | npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Return row numbers as ``(n,)`` int64.

    Raises:
        TypeError: If they are something else, a mask say, which would read as rows 0 and 1.
        IndexError: If one is not in ``0..count - 1``.
    """
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(
            f"`rows` must be (n,) row numbers, got {numbers.dtype} of shape {numbers.shape}; "
            f"of a mask give `numpy.flatnonzero(mask)`"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
        raise IndexError(f"`rows` must be in 0..{count - 1}, got {numbers.min()}..{numbers.max()}")
    return numbers.astype(np.int64)


def common_folder(one: Path, other: Path) -> Path:
    """Return the folder that holds both."""
    return Path(os.path.commonpath([os.path.abspath(one), os.path.abspath(other)]))  # noqa: PTH100
