"""What a data set holds, before anything is trained on it: tables and pictures in a folder."""

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

from lowres_vision._files import write_whole
from lowres_vision.data import Manifest, count_by_class, count_values, format_table, image_sizes
from lowres_vision.plots._counts import class_counts, column_counts, size_scatter

_ACROSS = 30  # values of a column that a table by class holds side by side
_LONGEST = 55  # letters of a column's name in a file's; disks take 255 bytes, a letter up to 4


def write_overview(
    manifest: Manifest,
    folder: str | os.PathLike[str],
    *,
    resolution: Literal["low", "high"] = "low",
) -> Path:
    """Write the counts of a data set: rows by class, image sizes, values of each further column.

    ``counts.txt`` has them as tables, with the empty cells of each column, and a column's values by
    class where they are 30 at most; ``class_counts.png``, ``sizes.png`` and one picture for each
    further column, named after it, show them: ``column_sex.png``, and ``column_sex_2.png`` where
    another column's name differs in case, spaces or signs only. A column in which every cell is
    another, a file name say, is left out.

    Args:
        manifest: The rows.
        folder: Where to write; made if missing.
        resolution: Whose images' sizes to read.

    Returns:
        The path of ``counts.txt``.

    Raises:
        DataError: If the header of an image cannot be read, or that resolution is missing.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import make_toy_pairs
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=3)
        >>> birds = Manifest.read_csv(folder / "train.csv")
        >>> print(write_overview(birds, folder / "overview").read_text())
        6 rows; empty cells: img_path 0, upscale_img_path 0, label 0
        <BLANKLINE>
        Amber Finch  3
        Azure Tit    3
        <BLANKLINE>
        height and width: least 64 x 64, median 64 x 64, most 64 x 64
        <BLANKLINE>
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    empty = ", ".join(f"{name} {count}" for name, count in manifest.nulls.items())
    parts = [f"{len(manifest)} rows" + (f"; empty cells: {empty}" if empty else "")]
    if manifest.labelled:
        parts.append(format_table(manifest.class_counts()))
        class_counts(manifest.labels, manifest.classes, folder / "class_counts.png")
    sizes = image_sizes(manifest, resolution=resolution)
    points = np.percentile(sizes, (0, 50, 100), axis=0, method="lower").tolist()
    least, median, most = (f"{height} x {width}" for height, width in points)
    parts.append(f"height and width: least {least}, median {median}, most {most}")
    size_scatter(sizes, folder / "sizes.png")
    taken: set[str] = set()
    for name, cells in manifest.columns.items():
        counts = count_values(manifest, name)
        if len(counts) == len(manifest):
            continue
        parts.append(f"by {name}\n{format_table(counts)}")
        if manifest.labelled and len(counts) <= _ACROSS:
            values, table = count_by_class(manifest, name)
            parts.append(format_table(table, rows=manifest.classes, columns=values))
        column_counts(cells, folder / _picture_name(name, taken), name=name)
    path = folder / "counts.txt"
    write_whole(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _picture_name(column: str, taken: set[str]) -> str:
    """Return a file name that no disk confuses with another, and add it to those taken."""
    stem = re.sub(r"\W+", "_", column)[:_LONGEST]
    name, number = f"column_{stem}.png", 1
    while name.casefold() in taken:
        number += 1
        name = f"column_{stem}_{number}.png"
    taken.add(name.casefold())
    return name
