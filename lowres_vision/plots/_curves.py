"""Learning curves of a cross-validation."""

import csv
import os
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from lowres_vision.plots._style import in_legend, line_style, names_to_draw, panels, saved

_PANELS = (
    ("loss", "train_loss", "val_loss"),
    ("accuracy", None, "val_accuracy"),
    ("macro-F1", None, "val_macro_f1"),
)


def learning_curves(
    run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw loss, accuracy and macro-F1 by epoch, a line per fold.

    A panel of which nothing was logged says so.

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
    names = names_to_draw([str(file.parent.relative_to(run)) for file in files], longest=56)
    names = [in_legend(name) for name in names]
    below = len(names) > 10 or max(map(len, names)) > 24  # else the legend would hide the lines
    columns = max(1, 150 // (8 + max(map(len, names)))) if below else 1
    height = 3.6 + (0.2 * -(-len(names) // columns) if below else 0)
    figure, (axes_of,) = panels(1, len(_PANELS), size=(12, height))
    for number, file in enumerate(files):
        scores = _by_epoch(file)
        style = line_style(number)
        for axes, (_, train, held_out) in zip(axes_of, _PANELS, strict=True):
            axes.plot(*_points(scores, held_out), marker=".", label=names[number], **style)
            if train is not None:
                epochs, losses = _points(scores, train)
                marker = "x" if len(epochs) == 1 else ""  # a single point has no line
                axes.plot(epochs, losses, marker=marker, **{**style, "linestyle": (0, (1, 2))})
    for axes, (name, train, _) in zip(axes_of, _PANELS, strict=True):
        axes.set(xlabel="epoch", title=name if train is None else f"{name} (dotted: training)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        drawn = {epoch for line in axes.lines for epoch in line.get_xdata()}
        if len(drawn) == 1:
            axes.set_xticks([*drawn])
        if not drawn:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
    if below:
        figure.legend(
            axes_of[1].lines, names, loc="outside lower center", ncols=columns, fontsize="small"
        )
    else:
        axes_of[-1].legend(fontsize="small")
    return saved(figure, path)


def _by_epoch(file: Path) -> dict[int, dict[str, float]]:
    """Join the rows that a logger writes separately for training and validation."""
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row.get("epoch"):
                epoch = int(float(row.pop("epoch")))
                try:
                    found = {name: float(value) for name, value in row.items() if value}
                except ValueError as error:
                    raise ValueError(f"{file} has a cell that must be a number: {error}") from None
                scores[epoch].update(found)
    return scores


def _points(scores: dict[int, dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    epochs = [epoch for epoch in sorted(scores) if name in scores[epoch]]
    return [epoch + 1 for epoch in epochs], [scores[epoch][name] for epoch in epochs]
