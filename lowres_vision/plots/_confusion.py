"""The confusion matrix as a picture."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowres_vision._checks import check_range
from lowres_vision.plots._inputs import class_indices, class_shares
from lowres_vision.plots._style import (
    SHADES,
    letters,
    missing_letters,
    names_to_draw,
    panels,
    saved,
)


def confusion_matrix(
    targets: Any,
    predicted: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw what each class was taken for.

    A row is a true class; the shade of a field is its share of the row, so that rare classes show
    as clearly as frequent ones. Up to 40 classes, the number of images stands in each field that
    has any.

    Args:
        targets: ``(N,)`` true class indices.
        predicted: ``(N,)`` class indices, or ``(N, K)`` probabilities.
        classes: Names of the K classes.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: If the two differ in number, an index is not one of the classes, or
            probabilities are not finite or of another number of classes.

    Example:
        >>> figure = confusion_matrix([0, 0, 1], [0, 1, 1], ["tit", "finch"])
        >>> figure.axes[0].images[0].get_array().tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    K = len(classes)
    check_range("the number of classes", K, 1)
    if np.ndim(predicted) == 2:
        predicted = class_shares("predicted", predicted, K).argmax(axis=1)
    targets = class_indices("targets", targets, K)
    predicted = class_indices("predicted", predicted, K)
    if len(targets) != len(predicted):
        raise ValueError(
            f"`predicted` must have one for each of the {len(targets)} targets, "
            f"got {len(predicted)}"
        )
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (targets, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    names = names_to_draw(classes)
    side = min(1.6 + 0.32 * K + 0.08 * max(12, *map(len, names)), 18.0)
    figure, ((axes,),) = panels(1, 1, size=(side + 1.0, side))
    image = axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
    size = min(8.3, max(5.5, 810 / K))  # points, as the largest side has room
    axes.set_xticks(range(K), names, rotation=90, fontsize=size)
    axes.set_yticks(range(K), names, fontsize=size)
    title = "no images"
    if len(targets):
        title = f"accuracy {(targets == predicted).mean():.3f}, {len(targets)} images"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if K <= 40:
        for row, column in np.argwhere(counts):
            dark = shares[row, column] < 0.5
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize="x-small" if K > 12 else "medium",
                color="white" if dark else "black",
            )
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    letters(axes)
    missing_letters(figure, classes)
    return saved(figure, path)
