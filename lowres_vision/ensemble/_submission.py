"""A contest's submission, checked against the organisers' sample."""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_arrays, write_whole
from lowres_vision.ensemble._inputs import check_rows


def write_submission(
    path: str | os.PathLike[str],
    predictions: npt.ArrayLike,
    *,
    ids: Sequence[str],
    classes: Sequence[str],
    sample: str | os.PathLike[str] | None = None,
    probabilities: npt.ArrayLike | None = None,
) -> Path:
    r"""Write predictions as a CSV of ids and class names, and their probabilities beside it.

    With ``probabilities``, ``submission.csv`` gets a ``submission.probabilities.npz`` of ``ids``
    ``(N,)`` in the CSV's order, ``classes`` ``(K,)`` and ``probabilities`` ``(N, K)`` float32,
    read with ``numpy.load``: what a later blend needs, without text that must be parsed.

    Args:
        path: File to write; it appears whole or not at all.
        predictions: ``(N, K)`` probabilities, or ``(N,)`` class indices.
        ids: ``(N,)`` id of each prediction.
        classes: ``(K,)`` class names by index.
        sample: The contest's sample submission, in UTF-8 or CP949. Its first two columns name the
            header, its ids set the order, and its class names must be among ``classes``.
        probabilities: ``(N, K)`` in the order of ``ids``. They need not have the predictions at
            their argmax: a hard vote or a :class:`ClassBias` decides otherwise.

    Returns:
        ``path``.

    Raises:
        ValueError: If counts or shapes do not fit, an id repeats, is missing from or unknown to
            the sample, the sample has a class that ``classes`` lacks, or ``probabilities`` are
            none. Nothing is written then.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "submission.csv"
        >>> write_submission(file, [[0.2, 0.8]], ids=["a"], classes=["Tit", "Finch"]).read_text()
        'id,label\na,Finch\n'
    """
    indices = _class_indices(predictions, len(ids), len(classes))
    _check_unique(ids)
    names = dict(zip(ids, (classes[index] for index in indices), strict=True))
    header, order = ["id", "label"], list(ids)
    if sample is not None:
        header, order = _read_sample(Path(sample), ids, classes)
    path = Path(path)
    if probabilities is not None:
        rows = _in_order(probabilities, ids, order, len(classes))
        beside = {"ids": np.array(order), "classes": np.array(classes), "probabilities": rows}
        write_arrays(path.with_suffix(".probabilities.npz"), beside)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows((name, names[name]) for name in order)
    write_whole(path, text.getvalue().encode())
    return path


def check_sample(
    sample: str | os.PathLike[str], *, ids: Sequence[str], classes: Sequence[str]
) -> None:
    """Refuse a sample submission that predictions of these rows will not fit.

    :func:`write_submission` checks the same; here it is told before hours of training.

    Args:
        sample: The contest's sample submission.
        ids: ``(N,)`` ids of the test rows.
        classes: ``(K,)`` class names by index.

    Raises:
        FileNotFoundError: If ``sample`` is not a file.
        ValueError: If an id repeats, is missing from or unknown to the sample, or the sample has a
            class that ``classes`` lacks.
    """
    _check_unique(ids)
    _read_sample(Path(sample), ids, classes)


def _check_unique(ids: Sequence[str]) -> None:
    if repeated := [name for name, times in Counter(ids).items() if times > 1]:
        raise ValueError(f"`ids` must be unique, {_listed(repeated)} stand more than once")


def _class_indices(predictions: npt.ArrayLike, rows: int, classes: int) -> npt.NDArray[np.int64]:
    values = np.asarray(predictions)
    if values.shape == (rows, classes):
        if not np.isfinite(values).all():
            raise ValueError("`predictions` must be finite, found NaN or inf")
        return np.asarray(values.argmax(axis=1), dtype=np.int64)
    if values.shape == (rows,) and np.issubdtype(values.dtype, np.integer):
        if rows and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"`predictions` must be class indices in 0..{classes - 1}, "
                f"got {values.min()}..{values.max()}"
            )
        return values.astype(np.int64)
    raise ValueError(
        f"`predictions` must be ({rows}, {classes}) probabilities or ({rows},) class indices, "
        f"one per id, got {values.dtype} of shape {values.shape}"
    )


def _in_order(
    probabilities: npt.ArrayLike, ids: Sequence[str], order: Sequence[str], classes: int
) -> npt.NDArray[np.float32]:
    rows = check_rows("probabilities", probabilities)
    if rows.shape != (len(ids), classes):
        raise ValueError(
            f"`probabilities` must be ({len(ids)}, {classes}), one row per id and one column per "
            f"class, got {rows.shape}"
        )
    row_of = {name: row for row, name in enumerate(ids)}
    return rows[[row_of[name] for name in order]].astype(np.float32)


def _read_sample(
    sample: Path, ids: Sequence[str], classes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the sample's two column names and its ids, after checking them."""
    if not sample.is_file():
        raise FileNotFoundError(f"`sample` {sample} is not a file; give the contest's, or none")
    text = _text(sample)
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[]]
    if len(header) < 2 or any(len(row) < 2 for row in rows):
        raise ValueError(f"{sample} must have two columns, an id and a class")
    order = [row[0] for row in rows]
    given = set(ids)
    if missing := [name for name in order if name not in given]:
        raise ValueError(f"{sample} asks for ids without a prediction: {_listed(missing)}")
    if unknown := sorted(given - set(order)):
        raise ValueError(f"predictions for ids that {sample} does not have: {_listed(unknown)}")
    if len(set(order)) != len(order):
        raise ValueError(f"{sample} has an id more than once")
    if foreign := sorted({row[1] for row in rows} - set(classes)):
        raise ValueError(f"{sample} has classes the model does not know: {_listed(foreign)}")
    return header[:2], order


def _text(path: Path) -> str:
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "cp949"):  # Korean contests write either
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise ValueError(f"{path} is neither UTF-8 nor CP949 text; save it as CSV in UTF-8")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
