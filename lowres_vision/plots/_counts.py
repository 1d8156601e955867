"""Pictures of how many rows there are of what."""

import os
from collections import Counter
from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowres_vision.plots._inputs import class_indices
from lowres_vision.plots._style import (
    BLUE,
    font_of,
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

    Raises:
        ValueError: If a label is not one of the classes.
    """
    labels = class_indices("labels", labels, len(classes), unknown=True)
    counts = np.bincount(labels + 1, minlength=len(classes) + 1).tolist()
    bars = [*zip(classes, counts[1:], strict=True)]
    bars += [("(unlabelled)", counts[0])] if counts[0] else []
    return saved(_bars(bars, f"{len(labels)} rows, {len(classes)} classes"), path)


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

    Raises:
        TypeError: If a cell is no string: the None or NaN of an empty one, say.

    Example:
        >>> figure = column_counts(["Cubism", "Cubism,Surrealism"], separator=",")
        >>> [int(bar.get_width()) for bar in figure.axes[0].patches]
        [2, 1]
    """
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise TypeError(f"`cells` must be strings, got {cell!r} in row {row}")
    values = [
        " ".join(value.split()) or "(empty)"
        for cell in cells
        for value in (cell.split(separator) if separator else [cell])
    ]
    frequent = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    bars = frequent[:most]
    if rest := frequent[most:]:
        bars.append((f"({len(rest)} others)", sum(count for _, count in rest)))
    drawn = "value" if font_of(name) is None else names_to_draw([name])[0]
    return saved(_bars(bars, f"{len(cells)} rows by {drawn}"), path)


def size_scatter(sizes: Any, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the size of each image, width against height, both in powers of two.

    Images of one size are one dot, larger the more there are. Dashed is the square.

    Args:
        sizes: ``(N, 2)`` height and width, as :func:`lowres_vision.data.image_sizes` returns them.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: If the sizes are not ``(N, 2)``, N at least 1, all > 0.

    Example:
        >>> figure = size_scatter([[64, 64], [64, 64], [48, 96]])
        >>> figure.axes[0].collections[0].get_offsets().tolist()
        [[96.0, 48.0], [64.0, 64.0]]
    """
    sizes = np.asarray(sizes)
    shaped = sizes.ndim == 2 and sizes.shape[1] == 2 and len(sizes)
    if not shaped or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(
            f"`sizes` must be (N, 2) heights and widths > 0, at least one, got {sizes.shape}"
        )
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    figure, ((axes,),) = panels(1, 1, size=(5, 5))
    low, high = sizes.min() / 1.2, sizes.max() * 1.2
    axes.plot([low, high], [low, high], color="0.6", linestyle="--", linewidth=1)
    area = 12 + 400 * counts / len(sizes)
    axes.scatter(different[:, 1], different[:, 0], area, color=BLUE, alpha=0.5, linewidths=0)
    for set_scale, set_ticks in (
        (axes.set_xscale, axes.set_xticks),
        (axes.set_yscale, axes.set_yticks),
    ):
        set_scale("log", base=2)
        ticks = _ticks(int(sizes.min()), int(sizes.max()))
        set_ticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="width", ylabel="height")
    height, width = np.median(sizes, axis=0).astype(int)
    several = f"{len(different)} size{'s' if len(different) > 1 else ''}"
    axes.set_title(f"{len(sizes)} images, {several}, median {height} x {width}")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    return saved(figure, path)


def _ticks(least: int, most: int) -> list[int]:
    """Return some powers of two around a range; where they are few, ``least`` and numbers by it."""
    low, high = least / 1.2, most * 1.2
    powers = [2**power for power in range(30) if low <= 2**power <= high]
    if len(powers) >= 3:
        return powers[:: -(-len(powers) // 8)]
    step = max(1, round((high - low) / 4))
    return [*range(least - int((least - low) // step) * step, floor(high) + 1, step)]


def _bars(counts: Sequence[tuple[str, int]], title: str) -> Figure:
    names, numbers = [name for name, _ in counts], [number for _, number in counts]
    figure, ((axes,),) = panels(1, 1, size=(7, 1.1 + 0.22 * len(names)))
    bars = axes.barh(range(len(names)), numbers, color=BLUE, height=0.7)
    axes.bar_label(bars, padding=2, fontsize="small")
    axes.set(yticks=range(len(names)), yticklabels=names_to_draw(names, longest=36), title=title)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max([1, *numbers]))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    letters(axes)
    missing_letters(figure, names)
    return figure
