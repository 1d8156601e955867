"""The rows of a data set, read from a CSV and checked once before anything is trained."""

import csv
import difflib
import hashlib
import io
import itertools
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.data._errors import DataError, Fault

_MAX_FAULTS = 1000


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
        header, rows = _read_table(path)
    except DataError as error:
        return None, list(error.faults)
    optional = {"upscale_img_path": high_resolution, "label": label, "id": id}
    needed = [name for default, name in optional.items() if name != default]
    needed = [image, *needed, *([group] if group else [])]
    if missing := [_missing_column(name, header) for name in needed if name not in header]:
        return None, missing

    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    used = [name for name in (image, high_resolution, label, id, group) if name in cells]
    faults: list[Fault] = []
    for name in used:
        faults += limited(_empty_cells(name, cells[name]), name)
    low, bad = _check_paths(image, cells[image], root)
    faults += limited(bad, image)
    high = None
    if high_resolution in cells:
        high, bad = _check_paths(high_resolution, cells[high_resolution], root)
        faults += limited(bad, high_resolution)
    if id in cells:
        faults += limited(_repeated_ids(id, cells[id]), id)
    names = cells.get(label)
    if names is not None:
        faults += limited(_label_twins(label, names), label)
        found = {name for name in names if name.strip()}
        known = tuple(sorted(found) if classes is None else classes)
        index = {name: number for number, name in enumerate(known)}
        faults += limited(_unknown_labels(label, names, index), label)
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


def limited(faults: Iterable[Fault], column: str | None = None) -> list[Fault]:
    """Return the first 1,000 faults, and one that counts the rest."""
    remaining = iter(faults)
    shown = list(itertools.islice(remaining, _MAX_FAULTS))
    if rest := sum(1 for _ in remaining):
        reason = f"has {rest:,} more such faults"
        shown.append(Fault(reason, "mend the first and look again", column=column))
    return shown


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and data rows of a CSV, each row as wide as the header."""
    text = _decode_text(path)
    # Not str.splitlines, which also splits at form feeds and other signs that a name may hold.
    first = io.StringIO(text, newline="").readline()
    if not first.strip():
        raise DataError(path, [Fault("is empty", "give a CSV with a header and a row per image")])
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        rows = [row for row in reader if row]
    except csv.Error as error:
        fault = Fault(f"is no valid CSV: {error}", f"mend line {reader.line_num}")
        raise DataError(path, [fault]) from None
    faults = [
        Fault("header stands twice", "rename one of the two columns", column=name)
        for name, times in Counter(header).items()
        if times > 1
    ]
    if not rows:
        faults.append(Fault("has a header but no rows", "give a row per image"))
    faults += limited(
        Fault(f"has {len(row)} cells, the header has {len(header)}", "mend the row", row=number)
        for number, row in enumerate(rows, 1)
        if len(row) != len(header)
    )
    if faults:
        raise DataError(path, faults)
    return header, rows


def _decode_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp949"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    fault = Fault("is neither UTF-8 nor CP949 text", "save it as CSV in UTF-8")
    raise DataError(path, [fault])


def _missing_column(name: str, header: list[str]) -> Fault:
    near = difflib.get_close_matches(name, header, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    return Fault(
        reason=f"column `{name}` is missing{hint}",
        remedy=f"it has {', '.join(f'`{column}`' for column in header)}: rename one or name yours",
    )


def _empty_cells(name: str, cells: list[str]) -> Iterator[Fault]:
    for row, cell in enumerate(cells, 1):
        if not cell.strip():
            yield Fault("cell is empty", "fill it or drop the row", row=row, column=name)


def _check_paths(column: str, cells: list[str], root: Path) -> tuple[list[str], list[Fault]]:
    """Return the cells as relative POSIX paths, empty where they name no file in root, and why."""
    real_root = os.path.realpath(root)
    real_folders: dict[str, str] = {}
    paths = []
    faults = []
    for row, cell in enumerate(cells, 1):
        path = posixpath.normpath(cell.strip().replace("\\", "/"))
        if not cell.strip():
            path = ""
        elif problem := _path_problem(path, root, real_root, real_folders):
            path = ""
            faults.append(Fault(*problem, row=row, column=column, path=cell))
        paths.append(path)
    return paths, faults


def _path_problem(
    path: str, root: Path, real_root: str, real_folders: dict[str, str]
) -> tuple[str, str] | None:
    """Return (reason, remedy) unless ``path`` is a file under ``root``."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path) or path.startswith("/"):
        return "is not a relative path", "write paths relative to the CSV's folder, or give `root=`"
    if path == ".." or path.startswith("../"):
        return "leaves the data folder", "move the file under it, or give `root=`"
    full = root / path
    try:
        mode = full.lstat().st_mode
    except FileNotFoundError:
        return "file is missing", f"expected at {full}: add the file or drop the row"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})", "mend the path or drop the row"
    folder = str(full.parent)
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    real = os.path.join(real_folders[folder], full.name)  # noqa: PTH118
    if stat.S_ISLNK(mode):
        real = os.path.realpath(full)
        try:
            mode = os.stat(real).st_mode  # noqa: PTH116
        except OSError as error:
            return f"is a broken link ({error})", "mend the link or drop the row"
    if os.path.commonpath([real, real_root]) != real_root:
        return "leaves the data folder through a link", "copy the file under it, or give `root=`"
    if not stat.S_ISREG(mode):
        return "is not a file", "give the path of an image file"
    return None


def _repeated_ids(column: str, ids: list[str]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for row, value in enumerate(ids, 1):
        if first.setdefault(value, row) != row:
            reason = f"id {value!r} stands in row {first[value]} too"
            yield Fault(reason, "make ids unique", row, column)


def _label_twins(column: str, names: list[str]) -> Iterator[Fault]:
    """Yield a fault for labels that are one to a reader and two to a computer."""
    spellings: dict[str, set[str]] = {}
    for name in set(names):
        folded = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        if folded:
            spellings.setdefault(folded, set()).add(name)
    for twins in spellings.values():
        if len(twins) > 1:
            listed = " and ".join(repr(name) for name in sorted(twins))
            yield Fault(f"{listed} differ only in form", "write one spelling", column=column)
        elif (name := next(iter(twins))) != name.strip():
            yield Fault(f"{name!r} has spaces around it", "take them off", column=column)


def _unknown_labels(column: str, names: list[str], index: Mapping[str, int]) -> Iterator[Fault]:
    for name in sorted({name for name in names if name.strip() and name not in index}):
        near = difflib.get_close_matches(name, index, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        reason = f"class {name!r} is not among the {len(index)} known classes{hint}"
        yield Fault(reason, "mend the label or the class list", names.index(name) + 1, column)
