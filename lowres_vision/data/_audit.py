"""One pass over the rows and files of a data set that names everything wrong with it."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_range
from lowres_vision.data._audit_findings import (
    Column,
    class_notes,
    contradictions,
    duplicate_groups,
    duplicate_notes,
    file_faults,
    file_notes,
    pair_faults,
    pair_notes,
    path_notes,
)
from lowres_vision.data._audit_pool import inspect_files
from lowres_vision.data._audit_worker import Inspection
from lowres_vision.data._errors import Fault, limited
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._open import MAX_PIXELS
from lowres_vision.data._rows import Rows, read_folder_rows, read_rows

_HIGH = "upscale_img_path"


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What an audit found.

    A fault makes training fail or lie and should be mended; a note is worth a look. Both name row
    (from 1), column, path, reason and remedy. Of each kind of finding the first 1,000 are listed
    and the rest counted. ``str(report)`` is a summary with the first 20 of each.

    Attributes:
        source: The CSV or folder.
        rows: Number of rows; 0 where the CSV could not be read as a table.
        files: Number of different files decoded or tried.
        faults: The faults.
        notes: The notes.
        class_counts: Rows of each class, in class order.
        sizes: For each image column, the number of files of each ``(height, width)``, most
            frequent first.
        groups: ``(rows,)`` numbers; rows whose low-resolution pictures look alike share one. Made
            for ``linked_rows(manifest, groups=report.groups)``, so that copies never cross folds.
    """

    source: Path
    rows: int
    files: int
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    class_counts: Mapping[str, int]
    sizes: Mapping[str, Mapping[tuple[int, int], int]]
    groups: npt.NDArray[np.int64]

    def to_text(self, *, limit: int | None = None) -> str:
        """Return the report as text, with the first ``limit`` faults and notes; None is all."""
        lines = [
            f"{self.source}: {self.rows} rows, {self.files} files, "
            f"{len(self.class_counts)} classes; {len(self.faults)} faults, {len(self.notes)} notes"
        ]
        for title, findings in (("faults", self.faults), ("notes", self.notes)):
            if findings:
                lines += ["", title, *(f"  {finding}" for finding in findings[:limit])]
                if limit is not None and len(findings) > limit:
                    lines.append(f"  ... and {len(findings) - limit} more {title}")
        if self.sizes:
            lines += ["", "files of each height x width"]
        for column, sizes in self.sizes.items():
            for (height, width), count in list(sizes.items())[:limit]:
                lines.append(f"  {column}  {height} x {width}  {count}")
        if self.class_counts:
            widest = max(map(len, self.class_counts))
            lines += ["", "rows of each class"]
            lines += [f"  {name:{widest}}  {count}" for name, count in self.class_counts.items()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the whole report as a JSON object; sizes are lists ``[height, width, files]``."""
        sizes = {
            column: [[height, width, count] for (height, width), count in table.items()]
            for column, table in self.sizes.items()
        }
        content = {
            "source": str(self.source),
            "rows": self.rows,
            "files": self.files,
            "faults": [asdict(fault) for fault in self.faults],
            "notes": [asdict(note) for note in self.notes],
            "class_counts": dict(self.class_counts),
            "sizes": sizes,
            "groups": self.groups.tolist(),
        }
        return json.dumps(content, ensure_ascii=False, indent=1)

    def __str__(self) -> str:
        """Return the report as text, with the first 20 faults and notes."""
        return self.to_text(limit=20)


def audit(
    path: str | os.PathLike[str],
    *,
    image: str = "img_path",
    high_resolution: str = _HIGH,
    label: str = "label",
    id: str = "id",
    group: str | None = None,
    root: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    min_side: int = 8,
    max_aspect: float = 16.0,
    max_pixels: int = MAX_PIXELS,
    time_limit: float = 10.0,
    workers: int | None = None,
) -> AuditReport:
    """Check every row and decode every file of a data set, and report all that is wrong.

    Files are decoded in processes of their own: one that crashes or hangs its decoder is named
    like any other fault. Beyond what :meth:`Manifest.read_csv` and :func:`decode_image` refuse,

    - faults are: files smaller than ``min_side`` or longer than ``max_aspect``; a low image larger
      than its high one; pairs that show different pictures; the same file under two labels;
    - notes are: pictures that look alike, files whose extension belies their content, animations,
      flat colour, pairs of different shape, paths that differ only in case, classes with no or
      one row.

    Args:
        path: The CSV, or a folder as for :meth:`Manifest.read_folders`. The rows of a folder are
            counted in the order of its manifest.
        image: As for :meth:`Manifest.read_csv`, like all up to ``classes``; unused for a folder,
            but for ``classes``, ``root`` and ``high_resolution``.
        high_resolution: See ``image``. For a folder, the second tree.
        label: See ``image``.
        id: See ``image``.
        group: See ``image``.
        root: See ``image``.
        classes: See ``image``.
        min_side: Shortest side in pixels that is no fault.
        max_aspect: Largest ratio of the sides that is no fault.
        max_pixels: As for :func:`decode_image`.
        time_limit: Seconds that decoding one file may take.
        workers: Number of decoding processes; default is one per processor.

    Raises:
        FileNotFoundError: If ``path`` is neither file nor folder.
        RuntimeError: If the decoding processes do not start.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import make_toy_pairs
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=2)
        >>> (folder / "train/TRAIN_00001.png").write_text("<html>not found</html>")
        22
        >>> report = audit(folder / "train.csv", workers=1)
        >>> print(report.faults[0])
        row 2, column `img_path`, train/TRAIN_00001.png: cannot be decoded (no image format is
        recognised); replace the file or drop its row
        >>> report.sizes["upscale_img_path"]
        {(256, 256): 4}
    """
    check_range("min_side", min_side, 1)
    check_range("max_aspect", max_aspect, 1)
    check_range("max_pixels", max_pixels, 1)
    check_range("time_limit", time_limit, 0, open_low=True)
    workers = (os.cpu_count() or 1) if workers is None else workers
    check_range("workers", workers, 1)
    rows: Rows | None
    if Path(path).is_dir():
        high = None if high_resolution == _HIGH else high_resolution
        rows, faults = read_folder_rows(path, high_resolution=high, root=root, classes=classes)
        names = ("images", "high_resolution")
    else:
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
        names = (image, high_resolution)
    if rows is None:
        return AuditReport(
            source=Path(path),
            rows=0,
            files=0,
            faults=tuple(faults),
            notes=(),
            class_counts={},
            sizes={},
            groups=np.empty(0, dtype=np.int64),
        )
    manifest = Manifest(**vars(rows))
    columns = _inspect(
        manifest,
        names,
        max_pixels=max_pixels,
        time_limit=time_limit,
        workers=workers,
    )
    low = columns[0]
    groups = duplicate_groups(low)
    notes = [*manifest.notes]
    for column in columns:
        faults += limited(file_faults(column, min_side, max_aspect), column.name)
        if manifest.label_column is not None:  # folders have had theirs
            notes += limited(path_notes(column), column.name)
        notes += limited(file_notes(column), column.name)
    if len(columns) == 2:
        faults += limited(pair_faults(*columns))
        notes += limited(pair_notes(*columns))
    faults += limited(contradictions(low, manifest), low.name)
    notes += limited(duplicate_notes(low, groups), low.name)
    notes += limited(class_notes(manifest), manifest.label_column)
    return AuditReport(
        source=manifest.source,
        rows=len(manifest),
        files=len({path for column in columns for path in column.paths if path}),
        faults=tuple(sorted(faults, key=_place)),
        notes=tuple(sorted(notes, key=_place)),
        class_counts=manifest.class_counts(),
        sizes={column.name: _count_sizes(column) for column in columns},
        groups=groups,
    )


def _inspect(
    manifest: Manifest,
    names: Sequence[str],
    *,
    max_pixels: int,
    time_limit: float,
    workers: int,
) -> list[Column]:
    """Decode each file of the manifest once."""
    tables = [manifest.low] if manifest.high is None else [manifest.low, manifest.high]
    distinct = list(dict.fromkeys(path for paths in tables for path in paths if path))
    inspected = inspect_files(
        [str(manifest.root / path) for path in distinct],
        max_pixels=max_pixels,
        time_limit=time_limit,
        workers=workers,
    )
    found = dict(zip(distinct, inspected, strict=True))
    return [
        Column(name, paths, [found.get(path) for path in paths])
        for name, paths in zip(names, tables, strict=False)
    ]


def _count_sizes(column: Column) -> dict[tuple[int, int], int]:
    files = dict(zip(column.paths, column.files, strict=True)).values()
    sizes = Counter((file.height, file.width) for file in files if isinstance(file, Inspection))
    return dict(sizes.most_common())


def _place(finding: Fault) -> tuple[int, str, str]:
    return finding.row or 0, finding.column or "", finding.reason
