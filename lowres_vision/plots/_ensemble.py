"""The table of an ensemble as a picture."""

import os

from matplotlib.figure import Figure

from lowres_vision.ensemble import Summary
from lowres_vision.plots._style import (
    BLUE,
    VERMILLION,
    letters,
    missing_letters,
    names_to_draw,
    panels,
    saved,
)

_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "log_loss": "log loss"}


def ensemble_table(summary: Summary, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the score of each member and blend with its interval, and the members' weights.

    A filled dot is the score to expect on new data: out of fold, and nested where something was
    chosen on these rows. A hollow dot to its side is the score on the rows that did the choosing.

    Args:
        summary: Of :func:`lowres_vision.ensemble.summarise`.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.
    """
    rows = summary.rows
    names = names_to_draw([row.name for row in rows], longest=56)
    figure, ((scores, weights),) = panels(
        1,
        2,
        size=(5.6 + 0.08 * max(map(len, names)), 1.3 + 0.34 * len(rows)),
        sharey=True,
        width_ratios=(3, 1),
    )
    for place, row in enumerate(rows):
        colour = (
            BLUE if row.weight is not None else VERMILLION if " weights" in row.name else "0.45"
        )
        expected = row.score if row.nested is None else row.nested
        scores.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
        scores.plot(expected, place, "o", color=colour)
        if row.nested is not None:
            scores.plot(row.score, place, "o", color=colour, fillstyle="none")
        scores.annotate(
            f"{expected:.4f}",
            (expected, place),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
        if row.weight is not None:
            weights.barh(place, row.weight, color=colour, height=0.5)
    scores.set(
        yticks=range(len(rows)),
        yticklabels=names,
        ylim=(len(rows) - 0.5, -0.7),
        xlabel=f"{_NAMES[summary.metric]}, 95 % interval\nhollow: on the rows that chose",
    )
    weights.set(xlim=(0, 1), xlabel="weight")
    for axes in (scores, weights):
        axes.grid(axis="x", alpha=0.3)
    letters(scores)
    missing_letters(figure, [row.name for row in rows])
    return saved(figure, path)
