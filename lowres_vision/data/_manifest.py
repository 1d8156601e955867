"""The rows of a data set, checked once before anything is trained."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.data._cells import normal_path
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._folders import SPLITS, beside_splits
from lowres_vision.data._rows import Rows, common_folder, read_folder_rows, read_rows, row_numbers
from lowres_vision.data._table import write_table

_BLOCK = 2**16


@dataclass(frozen=True, eq=False)
class Manifest(Rows):
    """The rows of a data set: images at one or two resolutions, ids, labels and groups.

    One row is one picture. Its low- and high-resolution files, its label and its group travel
    together from here to the batch, and row numbers (0-based positions here) name it everywhere.
    Build one with :meth:`read_csv`, :meth:`read_folders` or :meth:`read_splits`.

    Attributes:
        source: The CSV or folder it came from.
        root: The folder that paths are relative to.
        low: Relative path of each row's image.
        high: Relative path of each row's high-resolution image, or None without that column.
        ids: Each row's id; its image path where the CSV has no id column.
        labels: ``(N,)`` int64 class indices, -1 throughout without a label column.
        classes: Class names by index, sorted unless given; empty without labels.
        groups: Each row's group, or None without that column.
        nulls: Number of empty cells by column, for every column of the CSV.
        label_column: The name under which labels were looked for; None for folders.
        columns: The cells of every other column of the CSV, by name: a genre, a split.
        notes: What :meth:`read_folders` left out or found odd; none for a CSV.
    """

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
            high_resolution: Column of high-resolution paths. Where the default name is missing,
                or is that of ``image``, the rows are single images.
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
        rows, faults = read_rows(
            path,
            image=image,
            high_resolution=high_resolution,
            label=label,
            id=id,
            group=group,
            root=root,
            classes=classes,
        )
        if rows is None or faults:
            raise DataError(path, faults)
        return cls(**vars(rows))

    @classmethod
    def read_folders(
        cls,
        images: str | os.PathLike[str],
        *,
        high_resolution: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> "Manifest":
        """Read a folder that holds a folder of images per class.

        ::

            images/Great Tit/0001.png       high/Great Tit/0001.jpg
            images/Hoopoe/0002.png          high/Hoopoe/0002.jpg

        Rows stand in the order of class and file name, the same on every system. A class has the
        name of its folder, in Unicode's composed form (NFC) whatever the file system made of it.
        A folder of images alone is an unlabelled set.

        Nothing is skipped in silence: hidden files, files that hold no image and what systems
        leave in folders are left out and listed in ``notes``; anything else that is no row is a
        fault.

        Args:
            images: The folder.
            high_resolution: A second tree with the same classes, where each image's high-resolution
                counterpart has its name; the suffix may be another.
            root: Folder that the paths are relative to and that no link may leave; default is
                ``images``, or the folder that holds both trees.
            classes: As for :meth:`read_csv`; a class that is not among them is a fault, one
                without a folder is not.

        Raises:
            FileNotFoundError: If a folder is not there.
            DataError: With every fault found: no images, an empty class folder, images beside or
                below the class folders, pictures of a kind that is not read, links that leave
                ``root``, class names that differ only in form, images without counterpart.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from PIL import Image
            >>> root = Path(tempfile.mkdtemp())
            >>> for name in ("Hoopoe/2.png", "Great Tit/1.png", "Great Tit/3.jpg"):
            ...     (root / name).parent.mkdir(exist_ok=True)
            ...     Image.new("RGB", (8, 8)).save(root / name)
            >>> (root / "Hoopoe/about.txt").write_text("seen in May")
            11
            >>> manifest = Manifest.read_folders(root)
            >>> manifest.low, manifest.class_counts()
            (('Great Tit/1.png', 'Great Tit/3.jpg', 'Hoopoe/2.png'), {'Great Tit': 2, 'Hoopoe': 1})
            >>> print(*manifest.notes)
            Hoopoe/about.txt: was left out: is no image; nothing to do
        """
        rows, faults = read_folder_rows(
            images, high_resolution=high_resolution, root=root, classes=classes
        )
        if faults:
            raise DataError(images, faults)
        return cls(**vars(rows))

    @classmethod
    def read_splits(
        cls,
        images: str | os.PathLike[str],
        *,
        high_resolution: str | os.PathLike[str] | None = None,
        splits: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
    ) -> "dict[str, Manifest]":
        """Read a folder per split, each with a folder per class, in one order of classes for all.

        The classes are those of the first split; a class that only another split has is a fault,
        for no model could have learned it. A split that holds images without class folders is an
        unlabelled test set.

        Args:
            images: The folder that holds those of the splits.
            high_resolution: As for :meth:`read_folders`: a second tree of the same splits. Other
                splits than the first may be missing there: they are of low resolution only.
            splits: Names of the folders, the one that is trained on first; default is ``train``
                and what there is of ``val`` and ``test``, and any other folder is then a fault.
                What lies beside them is listed in the first one's ``notes``.
            classes: As for :meth:`read_folders`; default is the classes of the first split.

        Returns:
            The manifest of each split, by name.

        Raises:
            FileNotFoundError: If a folder is not there.
            DataError: With the faults of all splits.

        Example:
            After ``campus = Manifest.read_splits("campus")``, ``campus["train"]`` and
            ``campus["val"]`` are manifests with the same ``classes``.
        """
        top = Path(images)
        high = None if high_resolution is None else Path(high_resolution)
        root = top if high is None else common_folder(top, high)
        named = splits is not None
        if named and (isinstance(splits, str) or not splits):
            raise ValueError(f"`splits` must be names of folders, got {splits!r}")
        if splits is None:
            splits = [name for name in SPLITS if name == SPLITS[0] or (top / name).is_dir()]
        found: dict[str, Manifest] = {}
        faults: list[Fault] = []
        for name in splits:
            paired = high is not None and (name == splits[0] or (high / name).is_dir())
            rows, wrong = read_folder_rows(
                top / name,
                high_resolution=high / name if high is not None and paired else None,
                root=root,
                classes=classes,
            )
            classes = rows.classes if classes is None else classes
            found[name] = cls(**vars(rows))
            faults += wrong
        strangers, notes = beside_splits(top, splits, named=named)
        if faults := strangers + faults:
            raise DataError(top, faults)
        first = found[splits[0]]
        return found | {splits[0]: replace(first, notes=(*notes, *first.notes))}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.low)

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return bool(len(self)) and bool((self.labels >= 0).all())

    def require_labels(self) -> None:
        """Raise :class:`DataError` unless the rows have labels."""
        if self.labelled:
            return
        if self.label_column is None:
            lack, remedy = "class folders", "give the folder that holds a folder per class"
        else:
            lack = f"column `{self.label_column}`"
            remedy = "name the column of class names with `label=`"
        raise DataError(self.source, [Fault(f"has no {lack}, so its rows are unlabelled", remedy)])

    def rows(self, column: str, *values: str) -> npt.NDArray[np.int64]:
        """Return the rows whose cell in one of ``columns`` is one of ``values``.

        ``manifest.rows("split", "train")``, say, for :class:`MultiResolutionDataset`.

        Raises:
            ValueError: If there is no such column, or a value is in none of its cells.
        """
        if column not in self.columns:
            raise ValueError(f"`column` must be one of {[*self.columns]}, got {column!r}")
        cells = self.columns[column]
        if unknown := set(values).difference(cells):
            found = ", ".join(repr(value) for value in sorted(set(cells))[:20])
            raise ValueError(f"`values` of {column!r} must be among {found}, got {unknown}")
        return np.flatnonzero([cell in values for cell in cells])

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Manifest":
        """Return a manifest of those rows, in that order, with the same classes.

        ``manifest.take(manifest.rows("split", "test"))``, say, where one CSV holds two sets.

        Raises:
            IndexError: If a row is outside the manifest.
            TypeError: If they are no row numbers: a mask, say.
            ValueError: If a row repeats.
        """
        chosen = row_numbers(rows, len(self))
        if len(np.unique(chosen)) != len(chosen):
            raise ValueError("`rows` must not repeat a row")

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[row] for row in chosen)

        return replace(
            self,
            low=pick(self.low),
            high=None if self.high is None else pick(self.high),
            ids=pick(self.ids),
            labels=self.labels[chosen],
            groups=None if self.groups is None else pick(self.groups),
            columns={name: pick(column) for name, column in self.columns.items()},
        )

    @staticmethod
    def join(manifests: "Iterable[Manifest]") -> "Manifest":
        """Return the rows of several manifests, one after another.

        Training and validation rows of :meth:`read_splits`, say, with folds that say which is
        which. Columns that not all of them have are left out.

        Raises:
            ValueError: If there is none, roots or classes differ, an id repeats, or only some have
                high resolution or groups.
        """
        parts = tuple(manifests)
        if not parts:
            raise ValueError("`manifests` must hold at least one manifest, got none")
        first = parts[0]
        for part in parts[1:]:
            for what in ("root", "classes"):
                if getattr(part, what) != getattr(first, what):
                    raise ValueError(
                        f"`manifests` must have one `{what}`: {first.source} has "
                        f"{getattr(first, what)}, {part.source} {getattr(part, what)}"
                    )
            for what in ("high", "groups"):
                if (getattr(part, what) is None) != (getattr(first, what) is None):
                    raise ValueError(f"`manifests` must all have `{what}`, or none of them")
        ids = Counter(id for part in parts for id in part.ids)
        if repeated := [id for id, count in ids.items() if count > 1]:
            raise ValueError(
                f"`manifests` must have different ids, {repeated[0]!r} stands in two "
                f"({len(repeated)} ids do)"
            )

        def chain(name: str) -> tuple[str, ...]:
            return tuple(cell for part in parts for cell in getattr(part, name))

        shared = [name for name in first.columns if all(name in part.columns for part in parts)]
        return replace(
            first,
            low=chain("low"),
            high=None if first.high is None else chain("high"),
            ids=chain("ids"),
            labels=np.concatenate([part.labels for part in parts]),
            groups=None if first.groups is None else chain("groups"),
            nulls={
                name: sum(part.nulls.get(name, 0) for part in parts)
                for name in dict.fromkeys(name for part in parts for name in part.nulls)
            },
            columns={
                name: tuple(cell for part in parts for cell in part.columns[name])
                for name in shared
            },
            notes=tuple(note for part in parts for note in part.notes),
        )

    def write_csv(
        self,
        path: str | os.PathLike[str],
        *,
        image: str = "img_path",
        high_resolution: str = "upscale_img_path",
        label: str = "label",
        id: str = "id",
        group: str = "group",
    ) -> Path:
        """Write the rows to a CSV that :meth:`read_csv` reads back, and return its path.

        A table of what stands in folders, say, or the rows that :meth:`take` chose. Paths stand in
        it as they do here, relative to ``root``: write it there, or read it with ``root=``. There
        is no column of ids where the image paths serve as such, none of what the rows lack, and one
        for each of ``columns``. Classes are not in it: where some have no row, or they stand in an
        order of your own, read it with ``classes=``.

        Args:
            path: The CSV, replaced if it is there.
            image: Name of the column of image paths.
            high_resolution: Name of the column of high-resolution paths.
            label: Name of the column of class names.
            id: Name of the column of ids.
            group: Name of the column of groups, which :meth:`read_csv` reads only where it is
                named.

        Raises:
            ValueError: If two columns would have one name, only some rows have labels, or a path
                could not be read back: of an image outside ``root``, say.

        Example:
            >>> import tempfile
            >>> from lowres_vision.data import make_toy_folders
            >>> folder = make_toy_folders(tempfile.mkdtemp(), classes=2, per_class={"train": 1})
            >>> birds = Manifest.read_folders(folder / "train")
            >>> print(birds.write_csv(folder / "train/birds.csv").read_text().strip())
            img_path,label
            Amber Finch/0.png,Amber Finch
            Azure Tit/0.png,Azure Tit
        """
        if not self.labelled and (self.labels >= 0).any():
            raise ValueError("only some rows have labels; write the others apart, see `take`")
        for cell in (*self.low, *(self.high or ())):
            if cell.startswith("../") or normal_path(cell) != cell:
                raise ValueError(
                    f"{cell!r} could not be read back from a CSV; move or rename it, within "
                    f"{self.root}"
                )
        columns: list[tuple[str, Sequence[str] | None]] = [
            (id, None if self.ids == self.low else self.ids),
            (image, self.low),
            (high_resolution, self.high),
            (label, [self.classes[number] for number in self.labels] if self.labelled else None),
            (group, self.groups),
            *self.columns.items(),
        ]
        there = [(name, cells) for name, cells in columns if cells is not None]
        return write_table(Path(path), there)

    def class_counts(self) -> dict[str, int]:
        """Return the number of rows of each class, in class order."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def digest(self) -> str:
        """Return a SHA-256 of ids, paths, labels and classes: the identity of the data set."""
        digest = hashlib.sha256(b"(")
        separator = ""
        for column in (self.ids, self.low, self.high or (), self.labels.tolist(), self.classes):
            digest.update(separator.encode())
            # By blocks: as one text, a million rows would take 200 MB for a moment.
            for start in range(0, max(len(column), 1), _BLOCK):
                digest.update(repr(column[start : start + _BLOCK]).encode())
            separator = ", "
        digest.update(b")")
        return digest.hexdigest()
