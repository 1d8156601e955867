"""Images in a folder per class: found, put in order, paired with a second tree, and checked.

Every file gets a verdict: it is a row, or a fault, or a note says why it is neither.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lowres_vision.data._cells import DataFolder, fold_name, fold_stem, label_twins, unknown_class
from lowres_vision.data._errors import DataError, Fault, limited
from lowres_vision.data._open import FORMATS, open_image

SPLITS = ("train", "val", "test")

# What systems leave in folders of their own accord.
_DROPPINGS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r")
# Pictures that are not read, whether Pillow knows of them or not.
_PICTURES = (
    ".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raw", ".svg",
)  # fmt: skip


class Tree:
    """A folder of class folders, or of images alone, with a verdict on all that is in it.

    Attributes:
        folders: Class folder, as a path below the root, by class name (NFC).
        files: Class name and path of each image, class by class; the name is empty where there
            are no class folders.
        faults: What must be mended.
        notes: What was left out, and what is odd.
    """

    def __init__(self, top: Path, root: Path) -> None:
        self.top = top
        self.folders: dict[str, str] = {}
        self.files: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.notes: list[Fault] = []
        self._root = DataFolder(root)
        start = Path(os.path.relpath(top, root)).as_posix()
        folders, loose = self._list("" if start == "." else f"{start}/")
        for path in folders:
            name = unicodedata.normalize("NFC", path.rpartition("/")[2])
            if name in self.folders:
                self._fault(path, "is another folder's name in another Unicode form", "merge them")
            elif not self._root.is_inside(path):
                remedy = "copy the folder under it, or give `root=`"
                self._fault(path, "leaves the data folder through a link", remedy)
            else:
                self.folders[name] = path
        for name, path in self.folders.items():
            nested, files = self._list(f"{path}/")
            for folder in nested:
                remedy = "move its images up, or give the folder above the class folders"
                if name in SPLITS:
                    remedy = "for folders train, val and test use `Manifest.read_splits`"
                self._fault(folder, "is a folder within a class folder", remedy)
            self._take(name, files)
        if not self.folders:
            self._take("", loose)
        else:
            for path in loose:
                if not self._is_stray(path):
                    remedy = "put it into the folder of its class"
                    self._fault(path, "lies beside the class folders", remedy)

    def count_images(self) -> Counter[str]:
        """Return the number of images by class name."""
        return Counter(name for name, _ in self.files)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the folders and the files in a folder, in order, less what systems leave there."""
        found: tuple[list[str], list[str]] = [], []
        try:
            with os.scandir(f"{self._root.root}/{folder}") as entries:
                listed = [(entry.name, entry.is_dir()) for entry in entries]
        except OSError as error:
            self._fault(folder, f"cannot be read ({error.strerror})", "mend its permissions")
            return found
        for name, is_folder in sorted(listed, key=lambda entry: _order(entry[0])):
            if (shown := name.encode(errors="backslashreplace").decode()) != name:
                self._fault(folder + shown, "has a name that is no UTF-8 text", "rename it")
            elif _is_dropping(name):
                self._note(folder + name, "is hidden" if name[0] == "." else "is a system's own")
            else:
                found[0 if is_folder else 1].append(folder + name)
        return found

    def _take(self, name: str, paths: Iterable[str]) -> None:
        seen: dict[str, str] = {}
        for path in paths:
            if self._is_stray(path):
                continue
            if problem := self._root.problem_with(path):
                self._fault(path, *problem)
                continue
            if (other := seen.setdefault(fold_name(path), path)) != path:
                reason = f"differs from {other} in case or Unicode form only"
                remedy = "rename one; not every system can tell them apart"
                self.notes.append(Fault(reason, remedy, path=path))
            self.files.append((name, path))

    def _is_stray(self, path: str) -> bool:
        """Tell whether a file is no row, with the reason in the notes or the faults."""
        suffix = Path(path).suffix.lower()
        kind = Image.registered_extensions().get(suffix)
        if kind in FORMATS:
            return False
        if suffix in _PICTURES or kind in Image.OPEN:
            reason = f"is a picture of a kind that is not read ({suffix})"
            self._fault(path, reason, "convert it to PNG or remove it")
        elif self._holds_image(path):
            self._fault(path, "is an image by content but not by name", "give it its suffix")
        else:
            self._note(path, "is no image")
        return True

    def _holds_image(self, path: str) -> bool:
        if self._root.problem_with(path):
            return False
        try:
            with open_image(f"{self._root.root}/{path}"):
                return True
        except DataError as error:
            return "no image format" not in error.faults[0].reason

    def _fault(self, path: str, reason: str, remedy: str) -> None:
        self.faults.append(Fault(reason, remedy, path=path))

    def _note(self, path: str, reason: str) -> None:
        self.notes.append(Fault(f"was left out: {reason}", "nothing to do", path=path))


class FolderRows(NamedTuple):
    """The rows of a tree or of a pair of trees."""

    low: list[str]
    high: list[str] | None
    labels: list[int]
    classes: tuple[str, ...]
    notes: list[Fault]


def read_tree(
    images: Path, high_resolution: Path | None, root: Path, classes: Sequence[str] | None
) -> tuple[FolderRows, list[Fault]]:
    """Find the images of a tree, as :meth:`Manifest.read_folders` does, and all that is wrong."""
    tree = Tree(images, root)
    faults, notes = tree.faults, tree.notes
    counts = tree.count_images()
    if not tree.files and not faults:
        faults.append(Fault("holds no image", "give the folder that holds a folder per class"))
    faults += label_twins(None, tree.folders)
    known = tuple(sorted(tree.folders) if classes is None else classes)
    for name, path in tree.folders.items():
        if name not in known:
            images_here = f"{counts[name]} image{'' if counts[name] == 1 else 's'}"
            reason = f"{unknown_class(name, known)}; {images_here} here"
            remedy = "rename the folder, or add the class to what is trained on"
            faults.append(Fault(reason, remedy, path=path))
        elif not counts[name]:
            fault = Fault("class folder holds no image", "add images or remove it", path=path)
            (faults if classes is None else notes).append(fault)
    high = None
    if high_resolution is not None:
        high_tree = Tree(high_resolution, root)
        high, unpaired = _pair(tree, high_tree)
        faults += high_tree.faults + unpaired
        notes += high_tree.notes
    index = {name: number for number, name in enumerate(known)}
    rows = FolderRows(
        low=[path for _, path in tree.files],
        high=high,
        labels=[index.get(name, -1) for name, _ in tree.files],
        classes=known,
        notes=limited(notes),
    )
    return rows, limited(faults)


def beside_splits(
    top: Path, splits: Sequence[str], *, named: bool
) -> tuple[list[Fault], list[Fault]]:
    """Return faults and notes on what lies beside the folders of the splits.

    Another folder is a fault unless the user has ``named`` the splits: it may be one.
    """
    faults, notes = [], []
    for entry in sorted(top.iterdir(), key=lambda entry: _order(entry.name)):
        if entry.name in splits:
            continue
        if named or _is_dropping(entry.name) or not entry.is_dir():
            reason = "was left out: is none of the splits"
            notes.append(Fault(reason, "nothing to do", path=entry.name))
        else:
            reason = f"is none of {', '.join(SPLITS)}"
            faults.append(Fault(reason, "name the splits with `splits=`", path=entry.name))
    return faults, notes


def _pair(low: Tree, high: Tree) -> tuple[list[str], list[Fault]]:
    """Return each low image's high one, and the images of either tree that are without."""
    pairs: dict[str, str] = {}
    lows, highs = low.files, high.files
    # The same name, then whatever the suffix, then whatever the case: only what is one to one.
    for key in (_name, _stem, lambda path: fold_stem(_name(path))):
        groups: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
        for side, files in enumerate((lows, highs)):
            for name, path in files:
                groups.setdefault((name, key(path)), ([], []))[side].append(path)
        pairs |= {a[0]: b[0] for a, b in groups.values() if len(a) == len(b) == 1}
        taken = set(pairs.values())
        lows = [file for file in lows if file[1] not in pairs]
        highs = [file for file in highs if file[1] not in taken]
    faults = [
        Fault(f"has no counterpart in {other.top}", "add it, or remove this one", path=path)
        for files, other in ((lows, high), (highs, low))
        for _, path in files
    ]
    return [pairs.get(path, "") for _, path in low.files], faults


def _is_dropping(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _DROPPINGS


def _name(path: str) -> str:
    return unicodedata.normalize("NFC", path.rpartition("/")[2])


def _stem(path: str) -> str:
    name = _name(path)
    return name.rpartition(".")[0] or name


def _order(name: str) -> tuple[str, str]:
    """Sort key under which a name has its place whatever its Unicode form."""
    return unicodedata.normalize("NFC", name), name
