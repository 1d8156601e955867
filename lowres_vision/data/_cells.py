"""What can be wrong with the cells of one column."""

import difflib
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from lowres_vision.data._errors import Fault


def missing_column(name: str, header: list[str]) -> Fault:
    near = difflib.get_close_matches(name, header, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    return Fault(
        reason=f"column `{name}` is missing{hint}",
        remedy=f"it has {', '.join(f'`{column}`' for column in header)}: rename one or name yours",
    )


def empty_cells(name: str, cells: list[str]) -> Iterator[Fault]:
    for row, cell in enumerate(cells, 1):
        if not cell.strip():
            yield Fault("cell is empty", "fill it or drop the row", row=row, column=name)


def check_paths(column: str, cells: list[str], root: Path) -> tuple[list[str], list[Fault]]:
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


def repeated_ids(column: str, ids: list[str]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for row, value in enumerate(ids, 1):
        if first.setdefault(value, row) != row:
            reason = f"id {value!r} stands in row {first[value]} too"
            yield Fault(reason, "make ids unique", row, column)


def label_twins(column: str, names: list[str]) -> Iterator[Fault]:
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


def unknown_labels(column: str, names: list[str], index: Mapping[str, int]) -> Iterator[Fault]:
    for name in sorted({name for name in names if name.strip() and name not in index}):
        near = difflib.get_close_matches(name, index, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        reason = f"class {name!r} is not among the {len(index)} known classes{hint}"
        yield Fault(reason, "mend the label or the class list", names.index(name) + 1, column)
