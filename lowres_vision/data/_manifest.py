"""The rows of a data set, read from a CSV and checked once before anything is trained."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.data._cells import (
    check_paths,
    empty_cells,
    label_twins,
    missing_column,
    repeated_ids,
    unknown_labels,
)
from lowres_vision.data._errors import DataError, Fault, limited
from lowres_vision.data._table import read_table


@dataclass(frozen=True, eq=False)
class Manifest:
    """The rows of a data set: images at one or two resolutions, ids, labels and groups.

    One row is one picture. Its low- and high-resolution files, its label and its group travel
    together from here to the batch, and row numbers (0-based positions here) name it everywhere.
    Build one with :meth:`read_csv`.

    Attributes:
        source: The CSV it came from.
        root: The folder that paths are relative to.
        low: Relative path of each row's image.
        high: Relative path of each row's high-resolution image, or None without that column.
        ids: Each row's id; its image path where the CSV has no id column.
        labels: ``(N,)`` int64 class indices, -1 throughout without a label column.
        classes: Class names by index, sorted unless given; empty without labels.
        groups: Each row's group, or None without that column.
        nulls: Number of empty cells by column, for every column of the CSV.
        label_column: The name under which labels were looked for.
    """

    source: Path
    root: Path
    low: tuple[str, ...]
    high: tuple[str, ...] | None
    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None
    nulls: Mapping[str, int]
    label_column: str

    @classmethod
    def read_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        image: str = "img_path",
        high_resolution: str = "upscale_img_path",
        label: str = "label",
        id: str = "id",
        group: str | None = None,
        root: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> "Manifest":
        r"""Read a CSV of images and check every row of it.

        Args:
            path: The CSV: UTF-8 (with or without a byte-order mark) or CP949, separated by
                commas, semicolons or tabs.
            image: Column of image paths; must be there. ``./a.png`` and ``.\a.png`` are both read
                as relative to ``root``.
            high_resolution: Column of high-resolution paths. Where the default name is missing
                the rows are single images.
            label: Column of class names. Where the default name is missing the rows are
                unlabelled, as in a test set; :meth:`require_labels` refuses that later.
            id: Column of ids. Where the default name is missing the image paths serve.
            group: Column whose equal values must never be split across folds.
            root: Folder of the relative paths; default is the CSV's folder.
            classes: Class names in the order a model was trained with; default is the sorted
                names found. A label outside it is a fault.

        Raises:
            FileNotFoundError: If ``path`` is not a file.
            DataError: With every fault found: columns missing, cells empty, files missing,
                paths that leave ``root``, ids that repeat, labels that differ only in case,
                spaces or Unicode form.

        Example:
            >>> import tempfile
            >>> from lowres_vision.data import make_toy_pairs
            >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=3)
            >>> manifest = Manifest.read_csv(folder / "train.csv")
            >>> len(manifest), manifest.class_counts()
            (6, {'Amber Finch': 3, 'Azure Tit': 3})
        """
        manifest, faults = read_rows(
            path,
            image=image,
            high_resolution=high_resolution,
            label=label,
            id=id,
            group=group,
            root=root,
            classes=classes,
        )
        if manifest is None or faults:
            raise DataError(path, faults)
        return manifest

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.low)

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return bool(len(self)) and bool((self.labels >= 0).all())

    def require_labels(self) -> None:
        """Raise :class:`DataError` unless the rows have labels."""
        if not self.labelled:
            raise DataError(
                self.source,
                [
                    Fault(
                        reason=f"has no column `{self.label_column}`, so its rows are unlabelled",
                        remedy="name the column of class names with `label=`",
                    )
                ],
            )

    def class_counts(self) -> dict[str, int]:
        """Return the number of rows of each class, in class order."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def digest(self) -> str:
        """Return a SHA-256 of ids, paths, labels and classes: the identity of the data set."""
        columns = (self.ids, self.low, self.high or (), self.labels.tolist(), self.classes)
        return hashlib.sha256(repr(columns).encode()).hexdigest()


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
) -> tuple[Manifest | None, list[Fault]]:
    """Read a CSV as :meth:`Manifest.read_csv` does, but return the faults with what was read.

    In the manifest of a CSV with faults, an unusable path is empty and an unusable label -1. It is
    None where the file is no table or a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a CSV of images")
    root = Path(path.parent if root is None else root)
    try:
        header, rows = read_table(path)
    except DataError as error:
        return None, list(error.faults)
    optional = {"upscale_img_path": high_resolution, "label": label, "id": id}
    needed = [name for default, name in optional.items() if name != default]
    needed = [image, *needed, *([group] if group else [])]
    if missing := [missing_column(name, header) for name in needed if name not in header]:
        return None, missing

    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    used = [name for name in (image, high_resolution, label, id, group) if name in cells]
    faults: list[Fault] = []
    for name in used:
        faults += limited(empty_cells(name, cells[name]), name)
    low, bad = check_paths(image, cells[image], root)
    faults += limited(bad, image)
    high = None
    if high_resolution in cells:
        high, bad = check_paths(high_resolution, cells[high_resolution], root)
        faults += limited(bad, high_resolution)
    if id in cells:
        faults += limited(repeated_ids(id, cells[id]), id)
    names = cells.get(label)
    if names is not None:
        faults += limited(label_twins(label, names), label)
        found = {name for name in names if name.strip()}
        known = tuple(sorted(found) if classes is None else classes)
        index = {name: number for number, name in enumerate(known)}
        faults += limited(unknown_labels(label, names, index), label)
        labels = np.array([index.get(name, -1) for name in names], dtype=np.int64)
    else:
        known = tuple(classes or ())
        labels = np.full(len(rows), -1, dtype=np.int64)
    manifest = Manifest(
        source=path,
        root=root,
        low=tuple(low),
        high=tuple(high) if high is not None else None,
        ids=tuple(cells.get(id, low)),
        labels=labels,
        classes=known,
        groups=tuple(cells[group]) if group else None,
        nulls={name: sum(not cell.strip() for cell in cells[name]) for name in header},
        label_column=label,
    )
    return manifest, faults
