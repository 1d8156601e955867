"""Which rows must stay on one side of a split."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._manifest import Manifest

Indices = npt.NDArray[np.int64]
Digests = tuple[list[str], list[str] | None]


def linked_rows(manifest: Manifest, *, groups: Sequence[Hashable] | None = None) -> Indices:
    """Number the rows so that rows which must never be split apart have one number.

    Linked are rows of one group of the manifest, rows that hold the same file byte for byte, in
    either resolution, and rows of one group of ``groups``; and what is linked to a linked row.

    Args:
        manifest: The rows; each file is read once.
        groups: ``(N,)`` further group of each row: of pictures that look alike, say.

    Returns:
        ``(N,)`` numbers from 0, in order of appearance.

    Raises:
        DataError: If a file cannot be read.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import make_toy_pairs
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=2)
        >>> manifest = Manifest.read_csv(folder / "train.csv")
        >>> linked_rows(manifest, groups=[7, 8, 7, 9])
        array([0, 1, 0, 2])
    """
    return link(manifest, file_digests(manifest), groups)


def link(manifest: Manifest, digests: Digests, groups: Sequence[Hashable] | None = None) -> Indices:
    """As :func:`linked_rows`, with the files' digests at hand."""
    low, high = digests
    columns: list[Iterable[Hashable]] = [low, *([high] if high else [])]
    if manifest.groups is not None:
        columns.append(("manifest", group) for group in manifest.groups)
    if groups is not None:
        check_groups(manifest, groups)
        columns.append(("given", group) for group in groups)

    parent = list(range(len(manifest)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Hashable, int] = {}
    for column in columns:
        for row, key in enumerate(column):
            parent[root(row)] = root(first.setdefault(key, row))
    number: dict[int, int] = {}
    return np.array(
        [number.setdefault(root(row), len(number)) for row in range(len(manifest))], dtype=np.int64
    )


def check_groups(manifest: Manifest, groups: Sequence[Hashable]) -> None:
    """Raise ``ValueError`` unless there is a group for each row."""
    if len(groups) != len(manifest):
        raise ValueError(f"`groups` must have one entry per row: {len(groups)} for {len(manifest)}")


def file_digests(manifest: Manifest) -> Digests:
    """Return the SHA-256 of each row's low- and, where there is one, high-resolution file.

    Raises:
        DataError: With every file that cannot be read.
    """
    faults: list[Fault] = []

    def digest(row: int, path: str) -> str:
        try:
            with (manifest.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            remedy = "put the file back or drop its row"
            faults.append(Fault(f"cannot be read ({error.strerror})", remedy, row + 1, path=path))
            return ""

    low = [digest(row, path) for row, path in enumerate(manifest.low)]
    high = None
    if manifest.high is not None:
        high = [digest(row, path) for row, path in enumerate(manifest.high)]
    if faults:
        raise DataError(manifest.source, faults)
    return low, high
