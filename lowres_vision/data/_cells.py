"""What can be wrong with the cells of one column."""

import difflib
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from lowres_vision.data._errors import Fault

_HINTED = 100


def missing_column(argument: str, name: str, header: list[str]) -> Fault:
    near = difflib.get_close_matches(name, header, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    listed = ", ".join(f"`{column}`" for column in header)
    if any(column.lower().endswith(tuple(Image.registered_extensions())) for column in header):
        remedy = f"its first line, {listed}, is a row already: put the columns' names above it"
    else:
        remedy = f"it has {listed}: rename one, or name yours with `{argument}=`"
    return Fault(f"column `{name}` is missing{hint}", remedy)


def empty_cells(name: str, cells: list[str]) -> Iterator[Fault]:
    for row, cell in enumerate(cells, 1):
        if not cell.strip():
            yield Fault("cell is empty", "fill it or drop the row", row=row, column=name)


def check_paths(column: str, cells: list[str], root: Path) -> tuple[list[str], list[Fault]]:
    """Return the cells as relative POSIX paths, empty where they name no file in root, and why."""
    folder = DataFolder(root)
    paths = []
    faults = []
    for row, cell in enumerate(cells, 1):
        path = normal_path(cell)
        if path and (problem := folder.problem_with(path)):
            path = ""
            faults.append(Fault(*problem, row=row, column=column, path=cell))
        paths.append(path)
    return paths, faults


def normal_path(cell: str) -> str:
    """Return a cell as a POSIX path without ``.`` and ``..`` on the way; empty if it is blank."""
    path = cell.strip().replace("\\", "/")
    if path.startswith("./") and not _UNUSUAL.search(path, 1):
        return path[2:]
    return posixpath.normpath(path) if path and _UNUSUAL.search(path) else path


# An empty part, or one that starts with a dot: all that `normpath`, slow as it is, could change.
_UNUSUAL = re.compile(r"(?:^|/)(?:\.|/|$)")
_SCHEME_OR_DRIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class DataFolder:
    """Tells what is wrong with paths into a folder; folders on the way are looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.real_root = os.path.realpath(root)
        self._inside: dict[str, bool] = {}
        self._names: dict[str, dict[str, str]] = {}

    def problem_with(self, path: str) -> tuple[str, str] | None:
        """Return (reason, remedy) unless the relative ``path`` is a file under the root."""
        if path.startswith("/") or _SCHEME_OR_DRIVE.match(path):
            remedy = "write paths relative to the CSV's folder, or to one given as `root=`"
            return "is not a relative path", remedy
        if path == ".." or path.startswith("../"):
            return "leaves the data folder", "move the file under it, or give `root=`"
        full = f"{self.root}/{path}"
        try:
            # Strings and `os`: pathlib takes twice the time, and there may be a million rows.
            mode = os.lstat(full).st_mode
        except FileNotFoundError:
            hint = self._near(path)
            return f"file is missing{hint}", f"expected at {full}: add the file or drop the row"
        except (OSError, ValueError) as error:
            return f"cannot be read ({error})", "mend the path or drop the row"
        folder = path.rpartition("/")[0]
        if folder not in self._inside:
            self._inside[folder] = self.is_inside(folder)
        inside = self._inside[folder]
        if stat.S_ISLNK(mode):
            try:
                mode = os.stat(full).st_mode  # noqa: PTH116
            except OSError as error:
                return f"is a broken link ({error})", "mend the link or drop the row"
            inside = self.is_inside(path)
        if not inside:
            return "leaves the data folder through a link", "copy it under it, or give `root=`"
        if not stat.S_ISREG(mode):
            return "is not a file", "give the path of an image file"
        return None

    def is_inside(self, path: str) -> bool:
        """Tell whether the relative ``path``, its links followed, is under the root."""
        real = os.path.realpath(f"{self.root}/{path}")
        return os.path.commonpath([real, self.real_root]) == self.real_root

    def _near(self, path: str) -> str:
        """Name the file there that a reader, or another system, would take for the missing one."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            try:
                found = sorted(os.listdir(f"{self.root}/{folder}"))  # noqa: PTH208
            except OSError:
                found = []
            self._names[folder] = {fold_stem(other): other for other in reversed(found)} | {
                fold_name(other): other for other in reversed(found)
            }
        names = self._names[folder]
        near = names.get(fold_name(name)) or names.get(fold_stem(name))
        if near is None:
            return ""
        if unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name):
            return " (the same name in another Unicode form is there)"
        return f" (did you mean `{near}`?)"


def fold_name(name: str) -> str:
    """Return what stays of a name where neither case nor Unicode form count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def fold_stem(name: str) -> str:
    """As :func:`fold_name`, without the suffix."""
    return fold_name(name.rpartition(".")[0] or name)


def repeated_ids(column: str, ids: list[str]) -> Iterator[Fault]:
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, value in enumerate(ids, 1):
        if first.setdefault(value, row) != row:
            reason = f"id {value!r} stands in row {first[value]} too"
            yield Fault(reason, "make ids unique", row, column)


def label_twins(column: str | None, names: Iterable[str]) -> Iterator[Fault]:
    """Yield a fault for labels that are one to a reader and two to a computer."""
    spellings: dict[str, set[str]] = {}
    for name in set(names):
        if folded := fold_label(name):
            spellings.setdefault(folded, set()).add(name)
    for twins in spellings.values():
        if len(twins) > 1:
            listed = " and ".join(repr(name) for name in sorted(twins))
            yield Fault(f"{listed} differ only in form", "write one spelling", column=column)
        elif (name := next(iter(twins))) != name.strip():
            yield Fault(f"{name!r} has spaces around it", "take them off", column=column)


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names given in order; raise unless each is a string and another."""
    names = tuple(classes)
    if isinstance(classes, str) or len(set(names)) < len(names):
        raise ValueError(f"`classes` must be different names in order, got {classes!r}")
    if any(not isinstance(name, str) for name in names):
        raise TypeError(f"`classes` must be names, each a string, got {classes!r}")
    return names


def unknown_labels(column: str, names: list[str], known: Sequence[str]) -> Iterator[Fault]:
    """Yield a fault for each label that is not among the known classes, at its first row."""
    first: dict[str, int] = {}
    for row, name in enumerate(names, 1):
        first.setdefault(name, row)
    unknown = sorted(name for name in first.keys() - set(known) if name.strip())
    for number, name in enumerate(unknown):
        # A column taken for labels by mistake may hold a million names, too many to compare.
        reason = unknown_class(name, known, hint=number < _HINTED)
        yield Fault(reason, "mend the label or the class list", first[name], column)


def unknown_class(name: str, known: Sequence[str], *, hint: bool = True) -> str:
    """Say that a class is not known, and which known one may have been meant."""
    reason = f"class {name!r} is not among the {len(known)} known classes"
    if not hint:
        return reason
    folded = fold_label(name)
    if twin := next((other for other in known if fold_label(other) == folded), None):
        return f"{reason} (it differs from {twin!r} only in case, spaces or Unicode form)"
    if near := difflib.get_close_matches(name, known, n=1):
        return f"{reason} (did you mean {near[0]!r}?)"
    return reason


def fold_label(name: str) -> str:
    """As :func:`fold_name`, with the spaces of a label evened out."""
    return " ".join(fold_name(name).split())
