"""Learning curves of a cross-validation."""

import csv
import os
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

_PANELS = (
    ("loss", "train_loss", "val_loss"),
    ("accuracy", None, "val_accuracy"),
    ("macro-F1", None, "val_macro_f1"),
)


def learning_curves(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw loss, accuracy and macro-F1 by epoch, a line per fold, and save the picture.

    Args:
        run: Directory written by :func:`lowres_vision.training.cross_validate`.
        path: Picture to write; its suffix chooses the format.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: If ``run`` has no ``fold_*/metrics.csv``.
    """
    files = sorted(Path(run).glob("fold_*/metrics.csv"))
    if not files:
        raise FileNotFoundError(f"`run` {run} has no fold_*/metrics.csv")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for number, file in enumerate(files):
        scores = _by_epoch(file)
        for axes, (_, train, held_out) in zip(panels, _PANELS, strict=True):
            colour = f"C{number}"
            axes.plot(*_points(scores, held_out), color=colour, marker=".", label=file.parent.name)
            if train is not None:
                axes.plot(*_points(scores, train), color=colour, linestyle=":")
    for axes, (name, train, _) in zip(panels, _PANELS, strict=True):
        axes.set(xlabel="epoch", title=name if train is None else f"{name} (dotted: training)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize="small")
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path


def _by_epoch(file: Path) -> dict[int, dict[str, float]]:
    """Join the rows that a logger writes separately for training and validation."""
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            epoch = int(row.pop("epoch"))
            scores[epoch].update({name: float(value) for name, value in row.items() if value})
    return scores


def _points(scores: dict[int, dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    epochs = [epoch for epoch in sorted(scores) if name in scores[epoch]]
    return [epoch + 1 for epoch in epochs], [scores[epoch][name] for epoch in epochs]
