"""One page about a cross-validation, written from its folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from lowres_vision._files import write_whole
from lowres_vision.data import Manifest
from lowres_vision.training import _report_parts
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._html import page


def write_report(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    manifest: Manifest | None = None,
    test: Manifest | None = None,
    build: Callable[..., Classifier] | None = None,
    worst: int = 24,
    pictures: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one self-contained HTML page about a cross-validation.

    It holds the scores, learning curves, the confusion matrix, precision, recall and F1 of each
    class, what the runs used of the machine and died of, settings and versions. With the data's
    rows, also the worst errors; with those of the test, the predictions of its hardest images;
    with the function that built the classifiers, what a learned resizer makes of images. It needs
    no network and runs no scripts; needs matplotlib, the ``plot`` extra. The command does the
    same::

        python -m lowres_vision.training report RUN --csv train.csv --build train.py:build

    Where there are several models or seeds, the details are those of the best by macro-F1, chosen
    on the very rows that it is then shown on.

    Args:
        run: Folder written by :func:`cross_validate`, all runs of it done.
        path: The page; default ``report.html`` in ``run``.
        manifest: The rows that were trained on, for their images.
        test: The rows that every run predicted; their folds' vote is shown, and where they are
            labelled scored.
        build: What ``cross_validate`` was given for that model, for its resizer.
        worst: Most errors shown, and most test images.
        pictures: Folder that gets each picture as a PNG, too: ``learning_curves``, ``confusion``,
            ``errors``, ``test_confusion``, ``test_images``, ``resizer``; None writes none.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If ``run`` holds no finished cross-validation.
        ValueError: If ``manifest`` or ``test`` has other rows than the run.

    Example:
        >>> write_report("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: `run` nowhere has no summary.json; is the cross-validation finished?
    """
    run = Path(run)
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(
            f"`run` {run} has no summary.json; is the cross-validation finished?"
        )
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for name, rows, of in (
        ("manifest", manifest, "data_sha256"),
        ("test", test, "test_sha256"),
    ):
        if rows is not None and rows.digest() != summary[of]:
            done = "was trained on" if name == "manifest" else "has predicted"
            raise ValueError(
                f"`{name}` {rows.source} has other rows than {run} {done}; give the same CSV, "
                f"unchanged, or leave it out"
            )
    found = _report_parts.Found(run, summary, None if pictures is None else Path(pictures))
    parts = [
        *_report_parts.scores(found),
        *_report_parts.curves(found),
        *_report_parts.confusion(found),
        *_report_parts.errors(found, manifest, worst),
        *_report_parts.test_images(found, test, worst),
        *_report_parts.resizer(found, manifest, build),
        *_report_parts.usage(found),
        *_report_parts.settings(found),
    ]
    path = Path(path) if path is not None else run / "report.html"
    write_whole(path, page(f"Cross-validation {run.absolute().name}", parts).encode())
    return path
