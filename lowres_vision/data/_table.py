"""The text of a CSV as users have it: encodings, separators, and rows as wide as the header."""

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lowres_vision._files import write_whole
from lowres_vision.data._errors import DataError, Fault, limited

_BLOCK = 2**20
_MOST_SHARED = 2**14  # texts of one column that are looked up, so that equal cells are one string


def read_table(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    r"""Return the columns of a CSV by name, all of one length.

    It reads what :meth:`Manifest.read_csv` reads, of any table: one that tells more of the classes,
    say, or one of which to know whether it has a column. Cells stay as they stand there.

    The file is read row by row and never held as a whole, and a class name that stands a million
    times is one string: a million rows take little more than their paths.

    Args:
        path: The CSV: UTF-8 (with or without a byte-order mark), UTF-16 or CP949, separated by
            commas, semicolons or tabs.

    Returns:
        The cells of each column, in the order of the header.

    Raises:
        FileNotFoundError: If ``path`` is not a file.
        DataError: If it is no table: with every header that stands twice and every row that is
            shorter or longer than the header.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "artists.csv"
        >>> file.write_text("name;genre\nMonet;Impressionism\nArp;Dada,Surrealism\n")
        51
        >>> read_table(file)["genre"]
        ['Impressionism', 'Dada,Surrealism']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a CSV")
    with path.open(encoding=_find_encoding(path), newline="") as file:
        # Not str.splitlines, which also splits at form feeds and other signs a name may hold.
        first = file.readline()
        if not first.strip():
            fault = Fault("is empty", "give a CSV with a header and a row per image")
            raise DataError(path, [fault])
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
        try:
            return _read_columns(path, reader)
        except csv.Error as error:
            fault = Fault(f"is no valid CSV: {error}", f"mend line {reader.line_num}")
            raise DataError(path, [fault]) from None


def write_table(path: Path, columns: Iterable[tuple[str, Sequence[str]]]) -> Path:
    """Write columns of one length as a CSV that :func:`read_table` reads, and return its path.

    Raises:
        ValueError: If two columns have one name.
    """
    header, cells = zip(*columns, strict=True)
    for name, times in Counter(header).items():
        if times > 1:
            raise ValueError(f"two columns of {path} would be named {name!r}; name one of them")
    text = io.StringIO()
    # The writer quotes a line feed, but a carriage return only where lines end with one.
    odd = any("\r" in cell for column in (header, *cells) for cell in column)
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
    )
    writer.writerow(header)
    writer.writerows(zip(*cells, strict=True))
    write_whole(path, text.getvalue().encode())
    return path


def _read_columns(path: Path, reader: Iterator[list[str]]) -> dict[str, list[str]]:
    header = [name.strip() for name in next(reader)]
    columns: list[list[str]] = [[] for _ in header]
    shared: list[dict[str, str]] = [{} for _ in header]
    faults = [
        Fault("header stands twice", "rename one of the two columns", column=name)
        for name, times in Counter(header).items()
        if times > 1
    ]
    odd: list[tuple[int, int]] = []
    number = 0
    for row in reader:
        if not row:
            continue
        number += 1
        if len(row) != len(header):
            odd.append((number, len(row)))
            continue
        for column, known, cell in zip(columns, shared, row, strict=True):
            if len(known) < _MOST_SHARED:
                cell = known.setdefault(cell, cell)
            column.append(cell)
    if not number:
        faults.append(Fault("has a header but no rows", "give a row per image"))
    faults += limited(
        Fault(f"has {cells} cells, the header has {len(header)}", "mend the row", row=row_number)
        for row_number, cells in odd
    )
    if faults:
        raise DataError(path, faults)
    return dict(zip(header, columns, strict=True))


def _find_encoding(path: Path) -> str:
    """Return the first encoding in which the whole file is text."""
    with path.open("rb") as file:
        start = file.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp949"]
    for encoding in encodings:
        if _is_text(path, encoding):
            return encoding
    fault = Fault("is neither UTF-8 nor CP949 text", "save it as CSV in UTF-8")
    raise DataError(path, [fault])


def _is_text(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                if "\0" in decoder.decode(block):
                    return False
        return "\0" not in decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
