"""Pictures of how many rows there are of what."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowres_vision.plots._style import (
    BLUE,
    letters,
    missing_letters,
    names_to_draw,
    panels,
    saved,
)


def class_counts(
    labels: Any, classes: Sequence[str], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw the number of rows of each class, in the order of the classes.

    Args:
        labels: ``(N,)`` class indices; -1 counts as unlabelled.
        classes: Names of the K classes; one without rows is drawn too.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.
    """
    labels = np.asarray(labels)
    counts = {name: int((labels == number).sum()) for number, name in enumerate(classes)}
    if (labels < 0).any():
        counts["(unlabelled)"] = int((labels < 0).sum())
    return saved(_bars(counts, f"{len(labels)} rows, {len(classes)} classes"), path)


def column_counts(
    cells: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "value",
    separator: str | None = None,
    most: int = 60,
) -> Figure:
    """Draw how often each value of a column occurs, the most frequent first.

    Args:
        cells: The column, e.g. each painting's genre; empty cells count as "(empty)".
        path: Picture to write, its suffix choosing the format; None writes none.
        name: What the values are, for the title.
        separator: Where a cell may hold several values, what stands between them; such a row
            counts once for each.
        most: Values drawn; the rest is summed up in one bar.

    Returns:
        The figure.

    Example:
        >>> figure = column_counts(["Cubism", "Cubism,Surrealism"], separator=",")
        >>> [int(bar.get_width()) for bar in figure.axes[0].patches]
        [2, 1]
    """
    values = [
        " ".join(value.split()) or "(empty)"
        for cell in cells
        for value in (cell.split(separator) if separator else [cell])
    ]
    frequent = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    counts = dict(frequent[:most])
    if rest := frequent[most:]:
        counts[f"({len(rest)} others)"] = sum(count for _, count in rest)
    return saved(_bars(counts, f"{len(cells)} rows by {name}"), path)


def _bars(counts: dict[str, int], title: str) -> Figure:
    names = list(counts)
    figure, ((axes,),) = panels(1, 1, size=(7, 1.1 + 0.22 * len(names)))
    bars = axes.barh(range(len(names)), list(counts.values()), color=BLUE, height=0.7)
    axes.bar_label(bars, padding=2, fontsize="small")
    axes.set(yticks=range(len(names)), yticklabels=names_to_draw(names, longest=36), title=title)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    letters(axes)
    missing_letters(figure, names)
    return figure
