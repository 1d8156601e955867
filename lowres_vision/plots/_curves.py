"""Learning curves of a cross-validation."""

import csv
import os
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from lowres_vision.plots._style import line_style, panels, saved

_PANELS = (
    ("loss", "train_loss", "val_loss"),
    ("accuracy", None, "val_accuracy"),
    ("macro-F1", None, "val_macro_f1"),
)


def learning_curves(
    run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw loss, accuracy and macro-F1 by epoch, a line per fold.

    Args:
        run: Directory written by :func:`lowres_vision.training.cross_validate`.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.

    Raises:
        FileNotFoundError: If ``run`` has no ``fold_*/metrics.csv``, at any depth.
    """
    files = sorted(Path(run).rglob("fold_*/metrics.csv"))
    if not files:
        raise FileNotFoundError(f"`run` {run} has no fold_*/metrics.csv")
    figure, (axes_of,) = panels(1, len(_PANELS), size=(12, 3.6))
    for number, file in enumerate(files):
        scores = _by_epoch(file)
        style = line_style(number)
        for axes, (_, train, held_out) in zip(axes_of, _PANELS, strict=True):
            name = str(file.parent.relative_to(run))
            axes.plot(*_points(scores, held_out), marker=".", label=name, **style)
            if train is not None:
                axes.plot(*_points(scores, train), **{**style, "linestyle": (0, (1, 2))})
    for axes, (name, train, _) in zip(axes_of, _PANELS, strict=True):
        axes.set(xlabel="epoch", title=name if train is None else f"{name} (dotted: training)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes_of[-1].legend(fontsize="small", ncols=1 + (len(files) - 1) // 10)
    return saved(figure, path)


def _by_epoch(file: Path) -> dict[int, dict[str, float]]:
    """Join the rows that a logger writes separately for training and validation."""
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row.get("epoch"):
                epoch = int(float(row.pop("epoch")))
                scores[epoch].update({name: float(value) for name, value in row.items() if value})
    return scores


def _points(scores: dict[int, dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    epochs = [epoch for epoch in sorted(scores) if name in scores[epoch]]
    return [epoch + 1 for epoch in epochs], [scores[epoch][name] for epoch in epochs]
