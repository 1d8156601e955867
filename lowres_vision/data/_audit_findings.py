"""What the rows and the decoded files of a data set give away about each other."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lowres_vision.data._audit_worker import Inspection
from lowres_vision.data._cells import fold_name
from lowres_vision.data._duplicates import near_duplicates
from lowres_vision.data._errors import Fault
from lowres_vision.data._manifest import Manifest

# Of 400 photos at 64 and 256 px, the two sizes of one differ in at most 4 bits of their hash;
# fewer than 1 in 10,000 of the pairs of different photos differ in 12 or fewer.
_SAME_PICTURE = 12
_LISTED = 10


class Column(NamedTuple):
    """An image column: for each row its path, and what the file holds or why it is unusable."""

    name: str
    paths: Sequence[str]
    files: Sequence[Inspection | Fault | None]

    def decoded(self) -> Iterator[tuple[int, str, Inspection]]:
        """Yield row, path and content of each file that decodes."""
        for row, (path, file) in enumerate(zip(self.paths, self.files, strict=True), 1):
            if isinstance(file, Inspection):
                yield row, path, file


def file_faults(column: Column, min_side: int, max_aspect: float) -> Iterator[Fault]:
    """Yield files that do not decode, or are too small or too long."""
    for row, (path, file) in enumerate(zip(column.paths, column.files, strict=True), 1):
        place = (row, column.name, path)
        if isinstance(file, Fault):
            yield Fault(file.reason, file.remedy, *place)
        elif isinstance(file, Inspection):
            short, long = sorted((file.height, file.width))
            size = f"is {file.height} x {file.width} pixels"
            if short < min_side:
                remedy = "drop the row or lower `min_side`"
                yield Fault(f"{size}, shorter than {min_side}", remedy, *place)
            if long > max_aspect * short:
                remedy = "crop it or raise `max_aspect`"
                yield Fault(f"{size}, more than {max_aspect:g} : 1", remedy, *place)


def file_notes(column: Column) -> Iterator[Fault]:
    """Yield files that decode, but to something that may not have been meant."""
    kinds = Image.registered_extensions()
    for row, path, file in column.decoded():
        place = (row, column.name, path)
        suffix = PurePosixPath(path).suffix.lower()
        kind = "JPEG" if file.format == "MPO" else file.format  # a camera's JPEG with a preview
        if kinds.get(suffix, kind) != kind:
            yield Fault(f"is {kind} by content, not {suffix}", "rename it", *place)
        if file.animated:
            yield Fault("holds several frames", "only the first is read", *place)
        if file.flat:
            yield Fault("is flat in colour", "look whether a picture was meant", *place)


def path_notes(column: Column) -> Iterator[Fault]:
    """Yield paths that are one file to Windows or macOS, and two here."""
    first: dict[str, tuple[int, str]] = {}
    for row, path in enumerate(column.paths, 1):
        other_row, other = first.setdefault(fold_name(path), (row, path))
        if other != path:
            reason = f"differs from {other} in row {other_row} in case or Unicode form only"
            yield Fault(
                reason, "rename one; not every system can tell them", row, column.name, path
            )


def pair_faults(low: Column, high: Column) -> Iterator[Fault]:
    """Yield rows whose two files cannot be one picture at two resolutions."""
    for row, path, small, large in _pairs(low, high):
        place = (row, low.name, path)
        if small.height * small.width > large.height * large.width:
            reason = (
                f"is {small.height} x {small.width}, larger than its `{high.name}`, "
                f"{large.height} x {large.width}"
            )
            yield Fault(reason, "swap the two paths", *place)
        differing = (small.hash ^ large.hash).bit_count()
        if differing > _SAME_PICTURE and not (small.flat or large.flat):
            reason = (
                f"shows another picture than its `{high.name}`, {high.paths[row - 1]} "
                f"({differing} of 64 hash bits differ)"
            )
            yield Fault(reason, "look at both and mend the row", *place)


def pair_notes(low: Column, high: Column) -> Iterator[Fault]:
    """Yield pairs of different shape, and pairs that are one file."""
    for row, path, small, large in _pairs(low, high):
        place = (row, low.name, path)
        if small.digest == large.digest:
            yield Fault(f"is the same file as its `{high.name}`", "give a larger one", *place)
        shapes = abs(small.height * large.width - small.width * large.height)
        if shapes > max(large.height, large.width):  # by more than one low pixel
            reason = (
                f"is {small.height} x {small.width}, another shape than its `{high.name}`, "
                f"{large.height} x {large.width}"
            )
            yield Fault(reason, "crop both alike", *place)


def duplicate_groups(column: Column) -> npt.NDArray[np.int64]:
    """Number the rows ``(N,)`` so that pictures that look alike share a number."""
    kept = [(row - 1, file) for row, _, file in column.decoded()]
    textured = [(row, file.hash) for row, file in kept if not file.flat]
    alike = near_duplicates([value for _, value in textured])
    key: dict[int, tuple[str, object]] = {row: ("flat", file.digest) for row, file in kept}
    for (row, _), group in zip(textured, alike.tolist(), strict=True):
        key[row] = ("alike", group)
    number: dict[tuple[str, object], int] = {}
    keys = (key.get(row, ("unread", row)) for row in range(len(column.paths)))
    return np.array([number.setdefault(value, len(number)) for value in keys], dtype=np.int64)


def contradictions(column: Column, manifest: Manifest) -> Iterator[Fault]:
    """Yield rows whose file, byte for byte, stands earlier under another label."""
    first: dict[str, int] = {}
    for row, path, file in column.decoded():
        earlier = first.setdefault(file.digest, row)
        one, other = (int(manifest.labels[number - 1]) for number in (earlier, row))
        if one != other and min(one, other) >= 0:
            reason = (
                f"is labelled {manifest.classes[other]!r}, "
                f"and the same file {manifest.classes[one]!r} in row {earlier}"
            )
            yield Fault(reason, "look at it and keep one row", row, column.name, path)


def duplicate_notes(column: Column, groups: npt.NDArray[np.int64]) -> Iterator[Fault]:
    """Yield, for each group of pictures that look alike, a note at its first row."""
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(members) < 2:
            continue
        first, *others = (members + 1).tolist()
        listed = ", ".join(map(str, others[:_LISTED]))
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        files = (column.files[row] for row in members.tolist())
        digests = {file.digest for file in files if isinstance(file, Inspection)}
        same = "is the same file as" if len(digests) == 1 else "looks like"
        yield Fault(
            f"{same} row{'s' if len(others) > 1 else ''} {listed}{more}",
            "keep them in one fold, or keep one",
            first,
            column.name,
            column.paths[first - 1],
        )


def class_notes(manifest: Manifest) -> Iterator[Fault]:
    """Yield classes that cannot be both trained on and validated."""
    if not (manifest.labels >= 0).any():
        return
    for name, count in manifest.class_counts().items():
        if count < 2:
            reason = f"class {name!r} has {'one row' if count else 'no rows'}"
            yield Fault(
                reason, "add images, or drop or merge the class", None, manifest.label_column
            )


def _pairs(low: Column, high: Column) -> Iterator[tuple[int, str, Inspection, Inspection]]:
    for row, path, small in low.decoded():
        large = high.files[row - 1]
        if isinstance(large, Inspection):
            yield row, path, small, large
