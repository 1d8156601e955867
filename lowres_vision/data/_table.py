"""The text of a CSV as users have it: encodings, separators, and rows as wide as the header."""

import csv
import io
from collections import Counter
from pathlib import Path

from lowres_vision.data._errors import DataError, Fault, limited


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and data rows of a CSV, each row as wide as the header."""
    text = _decode_text(path)
    # Not str.splitlines, which also splits at form feeds and other signs that a name may hold.
    first = io.StringIO(text, newline="").readline()
    if not first.strip():
        raise DataError(path, [Fault("is empty", "give a CSV with a header and a row per image")])
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        rows = [row for row in reader if row]
    except csv.Error as error:
        fault = Fault(f"is no valid CSV: {error}", f"mend line {reader.line_num}")
        raise DataError(path, [fault]) from None
    faults = [
        Fault("header stands twice", "rename one of the two columns", column=name)
        for name, times in Counter(header).items()
        if times > 1
    ]
    if not rows:
        faults.append(Fault("has a header but no rows", "give a row per image"))
    faults += limited(
        Fault(f"has {len(row)} cells, the header has {len(header)}", "mend the row", row=number)
        for number, row in enumerate(rows, 1)
        if len(row) != len(header)
    )
    if faults:
        raise DataError(path, faults)
    return header, rows


def _decode_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp949"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    fault = Fault("is neither UTF-8 nor CP949 text", "save it as CSV in UTF-8")
    raise DataError(path, [fault])
