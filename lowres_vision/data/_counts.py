"""How often what occurs: values of a column, values by class, image sizes; as text where wanted."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_choice
from lowres_vision.data._errors import DataError, Fault, limited
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._open import open_image, upright_size
from lowres_vision.data._rows import row_numbers

Rows = Sequence[int] | npt.NDArray[np.int64]


def count_values(
    manifest: Manifest, column: str | Sequence[str], *, rows: Rows | None = None
) -> dict[str, int]:
    r"""Return how often each value of a column occurs, the most frequent first.

    Args:
        manifest: The rows.
        column: Name of one of ``manifest.columns``, a genre say; or ``(N,)`` a value for each row,
            looked up in another table.
        rows: Rows to count; default all.

    Raises:
        ValueError: If there is no such column, or not one value per row.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "a.png")
        >>> table = "img_path,label,genre\na.png,Monet,sea\na.png,Manet,sea\na.png,Monet,city\n"
        >>> (folder / "train.csv").write_text(table)
        70
        >>> manifest = Manifest.read_csv(folder / "train.csv")
        >>> count_values(manifest, "genre")
        {'sea': 2, 'city': 1}
        >>> values, counts = count_by_class(manifest, "genre")
        >>> values, counts.tolist()
        (('city', 'sea'), [[0, 1], [1, 1]])
        >>> print(format_table(counts, rows=manifest.classes, columns=values))
               city  sea
        Manet     0    1
        Monet     1    1
    """
    values = _values(manifest, column)
    chosen = row_numbers(range(len(manifest)) if rows is None else rows, len(manifest))
    counts = Counter(values[row] for row in chosen)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def count_by_class(
    manifest: Manifest, column: str | Sequence[str], *, rows: Rows | None = None
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the values of a column, sorted, and how often each occurs in each class.

    Args:
        manifest: Labelled rows.
        column: As for :func:`count_values`.
        rows: As for :func:`count_values`.

    Returns:
        The V values and the ``(K, V)`` counts, classes in class order.

    Raises:
        DataError: If the manifest is unlabelled.
        ValueError: As :func:`count_values`.
    """
    manifest.require_labels()
    cells = _values(manifest, column)
    names, inverse = np.unique(np.asarray(cells), return_inverse=True)
    chosen = row_numbers(range(len(manifest)) if rows is None else rows, len(manifest))
    counts = np.zeros((len(manifest.classes), len(names)), dtype=np.int64)
    np.add.at(counts, (manifest.labels[chosen], inverse[chosen]), 1)
    return tuple(names.tolist()), counts


def image_sizes(
    manifest: Manifest,
    *,
    resolution: Literal["low", "high"] = "low",
    rows: Rows | None = None,
) -> npt.NDArray[np.int64]:
    """Return ``(N, 2)`` the height and width of each row's image, upright, from the file headers.

    Nothing is decoded: a header may promise what the file does not hold; :func:`audit` looks.
    How many images have which size is ``numpy.unique(sizes, axis=0, return_counts=True)``.

    Args:
        manifest: The rows.
        resolution: Which image of each row.
        rows: Rows to look at, in this order; default all.

    Raises:
        DataError: With every file whose header cannot be read, or if there is no high resolution.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import make_toy_pairs
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=1)
        >>> image_sizes(Manifest.read_csv(folder / "train.csv"), resolution="high").tolist()
        [[256, 256], [256, 256]]
    """
    check_choice("resolution", resolution, ("low", "high"))
    paths = manifest.low if resolution == "low" else manifest.high
    if paths is None:
        fault = Fault("has no high-resolution images", "use `resolution='low'`")
        raise DataError(manifest.source, [fault])
    sizes = []
    faults = []
    chosen = row_numbers(range(len(manifest)) if rows is None else rows, len(manifest))
    for row in chosen.tolist():
        try:
            with open_image(manifest.root / paths[row]) as image:
                sizes.append(upright_size(image))
        except DataError as error:
            reason, remedy = error.faults[0].reason, error.faults[0].remedy
            faults.append(Fault(reason, remedy, row + 1, path=paths[row]))
    if faults:
        raise DataError(manifest.source, limited(faults))
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def format_table(
    counts: Mapping[Any, int] | npt.NDArray[np.int64],
    *,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
) -> str:
    """Return counts as a table of text, columns aligned, wide letters counted as two.

    Args:
        counts: Numbers by name, or ``(R, C)``.
        rows: Names of the R rows, for an array.
        columns: Names of the C columns; may be missing for a mapping.

    Raises:
        ValueError: If names are missing or of another number.
    """
    if isinstance(counts, Mapping):
        rows, values = [*counts], np.array([[*counts.values()]], dtype=object).reshape(-1, 1)
    else:
        values = np.asarray(counts, dtype=object)
    if values.ndim != 2 or rows is None or len(rows) != len(values):
        raise ValueError(f"`rows` must name the rows of counts of shape {values.shape}, got {rows}")
    if columns is not None and len(columns) != values.shape[1]:
        raise ValueError(f"`columns` must name {values.shape[1]} columns, got {len(columns)}")
    header = [] if columns is None else [["", *map(str, columns)]]
    lines = header + [[str(name), *map(str, row)] for name, row in zip(rows, values, strict=True)]
    widths = [max(map(_width, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            _pad(cell, width, left=number == 0)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _values(manifest: Manifest, column: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(column, str):
        if len(column) != len(manifest):
            raise ValueError(
                f"`column` must have one value per row: {len(column)} for {len(manifest)}"
            )
        return column
    if column not in manifest.columns:
        raise ValueError(f"`column` must be one of {[*manifest.columns]}, got {column!r}")
    return manifest.columns[column]


def _width(text: str) -> int:
    """Return the cells that a text takes in a terminal: two for a Korean syllable, say."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text
