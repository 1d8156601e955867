"""The confusion matrix as a picture."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

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
        ValueError: If the two differ in number, or an index is not one of the classes.

    Example:
        >>> figure = confusion_matrix([0, 0, 1], [0, 1, 1], ["tit", "finch"])
        >>> figure.axes[0].images[0].get_array().tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    targets, predicted = np.asarray(targets), np.asarray(predicted)
    predicted = predicted.argmax(axis=1) if predicted.ndim == 2 else predicted
    K = len(classes)
    if len(targets) != len(predicted):
        raise ValueError(
            f"`predicted` must have one for each of the {len(targets)} targets, "
            f"got {len(predicted)}"
        )
    for name, indices in (("targets", targets), ("predicted", predicted)):
        if len(indices) and not 0 <= indices.min() <= indices.max() < K:
            raise ValueError(
                f"`{name}` must be in 0..{K - 1}, got {indices.min()}..{indices.max()}"
            )
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (targets, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = min(2.6 + 0.32 * K, 18.0)
    figure, ((axes,),) = panels(1, 1, size=(side + 1.0, side))
    image = axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
    size = "small" if K <= 40 else 5.5
    names = names_to_draw(classes)
    axes.set_xticks(range(K), names, rotation=90, fontsize=size)
    axes.set_yticks(range(K), names, fontsize=size)
    accuracy = float((targets == predicted).mean()) if len(targets) else float("nan")
    axes.set(
        xlabel="predicted", ylabel="true", title=f"accuracy {accuracy:.3f}, {len(targets)} images"
    )
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
