"""Accuracy against the resolution of the input, and one number for it."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lowres_vision._checks import check_range
from lowres_vision.plots._style import (
    in_legend,
    letters,
    line_style,
    missing_letters,
    names_to_draw,
    panels,
    saved,
)


def resolution_robustness(
    sizes: Sequence[int], accuracies: Sequence[float], *, chance: float = 0.0
) -> float:
    r"""Return how much of its best-resolution accuracy a model keeps, from 0 to about 1.

    With the accuracy a(s) at side s, the largest side S, the smallest s0 and the accuracy c of
    guessing,

    .. math::
        \frac{1}{\log_2 S - \log_2 s_0}
        \int_{\log_2 s_0}^{\log_2 S} \frac{\max(a(2^x) - c, 0)}{a(S) - c} \, dx ,

    by the trapezoidal rule: the mean share kept, where each halving of the side weighs the same.
    1 is a model that loses nothing; above 1 is one that does better on small images than on the
    largest, e.g. because it was trained on small ones.

    Args:
        sizes: Sides in pixels, at least two different ones, in any order.
        accuracies: One for each, in [0, 1].
        chance: c, 1 / K for K balanced classes. Without it a model that guesses counts as robust.

    Raises:
        ValueError: If the numbers do not match or are out of range, or the accuracy at the largest
            side is not above ``chance``: there is then nothing to keep.

    Example:
        >>> resolution_robustness([8, 16, 32], [0.2, 0.6, 0.8])
        0.6875
        >>> resolution_robustness([8, 256], [0.04, 0.04 + 0.5], chance=0.04)
        0.5

    References:
        The share kept, a(s) / a(S), is the relative robustness of Pathak et al., "LR0.FM:
        Low-Res Benchmark and Improving Robustness for Zero-Shot Classification in Foundation
        Models", ICLR 2025, https://arxiv.org/abs/2502.03950, who average it over data sets and
        damp it where the model is near chance. Here chance is subtracted instead, and the average
        is over resolutions, for one data set.
    """
    check_range("chance", chance, 0.0, 1.0)
    sides, values = np.asarray(sizes, dtype=float), np.asarray(accuracies, dtype=float)
    if sides.shape != values.shape or sides.ndim != 1 or len(set(sides)) != len(sides):
        raise ValueError(
            f"`accuracies` must have one for each of different `sizes`, got {list(sizes)} and "
            f"{list(accuracies)}"
        )
    if not ((values >= 0) & (values <= 1)).all():  # a NaN fails both
        raise ValueError(f"`accuracies` must be in [0, 1], got {list(accuracies)}")
    if len(sides) < 2 or sides.min() <= 0:
        raise ValueError(f"`sizes` must be at least two, > 0, got {list(sizes)}")
    order = np.argsort(sides)
    x, y = np.log2(sides[order]), values[order] - chance
    if not y[-1] > 0:
        raise ValueError(
            f"the accuracy at {sides.max():.0f} px must be above chance, {chance:.3g}; "
            f"got {values[order][-1]:.3g}"
        )
    kept = np.maximum(y, 0) / y[-1]
    return float(np.trapezoid(kept, x) / (x[-1] - x[0]))


def resolution_curve(
    sizes: Sequence[int],
    accuracies: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str] | None = None,
    *,
    chance: float = 0.0,
    score: str = "accuracy",
) -> Figure:
    """Draw accuracy against the side of the input, a line per model, with its robustness.

    Args:
        sizes: Sides in pixels.
        accuracies: By model, one for each side.
        path: Picture to write, its suffix choosing the format; None writes none.
        chance: Accuracy of guessing, as in :func:`resolution_robustness`; drawn if above 0.
        score: What the values are, for the axis.

    Returns:
        The figure.

    Raises:
        ValueError: As :func:`resolution_robustness`.
    """
    if not accuracies:
        raise ValueError("`accuracies` must be of at least one model, got none")
    beside = len(accuracies) > 6  # else the legend would hide the lines
    figure, ((axes,),) = panels(1, 1, size=(11 if beside else 7, max(4.2, 0.22 * len(accuracies))))
    order = np.argsort(sizes)
    sides = [sizes[i] for i in order]
    for number, (name, drawn) in enumerate(
        zip(accuracies, names_to_draw(list(accuracies)), strict=True)
    ):
        values = accuracies[name]
        robustness = resolution_robustness(sizes, values, chance=chance)
        axes.plot(
            sides,
            [values[i] for i in order],
            marker="os^Dv<>P"[number % 8],
            label=f"{in_legend(drawn)}: robustness {robustness:.2f}",
            **line_style(number),
        )
    if chance > 0:
        axes.axhline(chance, color="0.5", linestyle=":", label=f"chance {chance:.2f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="side of the input in pixels", ylabel=score, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    outside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if beside else {}
    axes.legend(fontsize="small", **outside)
    letters(axes)
    missing_letters(figure, list(accuracies))
    return saved(figure, path)
