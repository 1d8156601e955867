"""Pictures made of images: mixed batches, predictions, resizers, styles."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lowres_vision._checks import check_range
from lowres_vision.plots._inputs import class_indices, class_shares
from lowres_vision.plots._style import (
    BLUE,
    DIFFERENCES,
    VERMILLION,
    letters,
    missing_letters,
    names_to_draw,
    panels,
    saved,
)

Pixels = npt.NDArray[np.float32]


def mixed_batch(
    images: Any,
    targets: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: int = 8,
) -> Figure:
    """Draw a batch as the model reads it, each image with its share of each class.

    Args:
        images: ``(B, C, H, W)`` tensor or array, or a list of ``(C, H, W)``: uint8, or float in
            [0, 1] once ``mean`` and ``std`` are taken back. What lies outside is cut off.
        targets: ``(B,)`` class indices or ``(B, K)`` shares.
        classes: Names of the K classes.
        path: Picture to write, its suffix choosing the format; None writes none.
        mean: Of the normalisation to take back, per channel; None for none.
        std: As ``mean``.
        columns: Images in a row.

    Returns:
        The figure.

    Raises:
        ValueError: If images and targets differ in number, a target is not one of the classes, or
            a pixel or share is not finite.
    """
    pixels = _pixels(images, mean, std)
    if np.ndim(targets) == 2:
        targets = class_shares("targets", targets, len(classes))
    else:
        targets = class_indices("targets", targets, len(classes))
    _check_count("targets", targets, pixels)
    names = names_to_draw(classes, longest=18)
    figure, grid = _grid(len(pixels), columns, title_lines=2)
    for axes, image, target in zip(grid, pixels, targets, strict=False):
        _show(axes, image)
        shares = {int(target): 1.0} if target.ndim == 0 else _shares(target)
        lines = [
            names[index] if share > 0.995 else f"{share:.0%} {names[index]}"
            for index, share in shares.items()
        ]
        axes.set_title("\n".join(lines), fontsize="small")
        letters(axes)
    missing_letters(figure, classes)
    return saved(figure, path)


def prediction_grid(
    images: Any,
    probabilities: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    targets: Any = None,
    rows: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: int = 6,
) -> Figure:
    """Draw images with what was predicted, how surely, and what was true.

    A wrong prediction has a red, dashed frame and the true class under it.

    Args:
        images: As for :func:`mixed_batch`.
        probabilities: ``(B, K)``.
        classes: Names of the K classes.
        path: Picture to write, its suffix choosing the format; None writes none.
        targets: ``(B,)`` true class indices; None or -1 where they are not known.
        rows: ``(B,)`` row numbers to print with the images.
        mean: Of the normalisation to take back, per channel; None for none.
        std: As ``mean``.
        columns: Images in a row.

    Returns:
        The figure.

    Raises:
        ValueError: If images and predictions differ in number, a target is not one of the
            classes, or a pixel or probability is not finite.
    """
    pixels = _pixels(images, mean, std)
    probabilities = class_shares("probabilities", probabilities, len(classes))
    _check_count("probabilities", probabilities, pixels)
    true = np.full(len(pixels), -1) if targets is None else targets
    true = class_indices("targets", true, len(classes), unknown=True)
    _check_count("targets", true, pixels)
    if rows is not None:
        _check_count("rows", rows, pixels)
    names = names_to_draw(classes, longest=22)
    figure, grid = _grid(len(pixels), columns, title_lines=3)
    for number, (axes, image) in enumerate(zip(grid, pixels, strict=False)):
        _show(axes, image)
        found = int(probabilities[number].argmax())
        lines = [f"{names[found]} {probabilities[number, found]:.0%}"]
        if true[number] >= 0:
            right = found == true[number]
            for spine in axes.spines.values():
                spine.set(
                    visible=True,
                    edgecolor=BLUE if right else VERMILLION,
                    linestyle="-" if right else "--",
                    linewidth=2.5,
                )
            if not right:
                lines.append(f"is {names[int(true[number])]}")
        if rows is not None:
            lines.append(f"row {rows[number]}")
        axes.set_title("\n".join(lines), fontsize="small")
        letters(axes)
    missing_letters(figure, classes)
    return saved(figure, path)


def resizer_panel(
    bilinear: Any,
    learned: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Figure:
    """Draw what a learned resizer makes of images, beside bilinear enlargement.

    Three rows: bilinear, learned, and their difference, averaged over the channels. The range of
    the differences is one for the picture and stands at its side.

    Args:
        bilinear: ``(B, C, H, W)``, as for :func:`mixed_batch`.
        learned: ``(B, C, H, W)``, likewise.
        path: Picture to write, its suffix choosing the format; None writes none.
        mean: Of the normalisation to take back, per channel; None for none.
        std: As ``mean``.

    Returns:
        The figure.

    Raises:
        ValueError: If the two differ in shape, or a pixel is not finite.

    Example:
        >>> import torch
        >>> from lowres_vision.resizer import LearnableResizer
        >>> images = torch.rand(4, 3, 16, 16)
        >>> bilinear = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear")
        >>> learned = LearnableResizer(32).eval()(images).detach()
        >>> len(resizer_panel(bilinear, learned).axes)  # 3 rows of 4, and the scale
        13

    References:
        The rows are those in which Talebi and Milanfar, 2021, https://arxiv.org/abs/2103.09950,
        and its followers show their resizers.
    """
    plain, made = _raw(bilinear, mean, std), _raw(learned, mean, std)
    if [image.shape for image in plain] != [image.shape for image in made]:
        raise ValueError(
            f"`bilinear` and `learned` must have one shape, got {np.shape(bilinear)} and "
            f"{np.shape(learned)}"
        )
    figure, grid = panels(3, len(plain), size=(1.5 * len(plain) + 1.4, 4.9))
    differences = [(b - a).mean(axis=2) for a, b in zip(plain, made, strict=True)]
    limit = max(float(np.abs(difference).max()) for difference in differences) or 1.0
    for column, (first, second, difference) in enumerate(
        zip(plain, made, differences, strict=True)
    ):
        _show(grid[0, column], first.clip(0, 1))
        _show(grid[1, column], second.clip(0, 1))
        shown = _show(grid[2, column], difference, cmap=DIFFERENCES, vmin=-limit, vmax=limit)
    for axes, name in zip(grid[:, 0], ("bilinear", "learned", "difference"), strict=True):
        axes.set_ylabel(name)
    # A third of all three rows, so that their columns stay in line.
    figure.colorbar(shown, ax=grid, shrink=0.3, anchor=(0.0, 0.0), label="of 1")
    return saved(figure, path)


def style_panel(
    contents: Any,
    styles: Any,
    results: Any,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw content, style and result of style transfers, a row each.

    Args:
        contents: ``(B, C, H, W)`` or a list of B ``(C, H, W)``, uint8 or float in [0, 1].
        styles: Likewise.
        results: Likewise.
        path: Picture to write, its suffix choosing the format; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: If they differ in number, or a pixel is not finite.
    """
    columns = [_pixels(images, None, None) for images in (contents, styles, results)]
    for name, images in zip(("styles", "results"), columns[1:], strict=True):
        _check_count(name, images, columns[0])
    figure, grid = panels(len(columns[0]), 3, size=(6, 2 * len(columns[0]) + 0.3))
    for row, triple in zip(grid, zip(*columns, strict=True), strict=True):
        for axes, image in zip(row, triple, strict=True):
            _show(axes, image)
    for axes, name in zip(grid[0], ("content", "style", "result"), strict=True):
        axes.set_title(name)
    return saved(figure, path)


def _raw(images: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> list[Pixels]:
    """Return each image as float32 ``(H, W, C)``, normalisation taken back, nothing cut off."""
    if len(images) == 0:
        raise ValueError("there must be at least one image, got none")
    made = [_one(image, mean, std) for image in images]
    wrong = [number for number, image in enumerate(made) if not np.isfinite(image).all()]
    if wrong:
        raise ValueError(f"each image must be finite, {wrong[:5]} have NaN or inf")
    return made


def _one(image: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> Pixels:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(f"each image must be (C, H, W) with C of 1 or 3, got {array.shape}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"each image must be uint8, or float in [0, 1], got {array.dtype}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, 3):
            raise ValueError(f"`{name}` must be 1 or 3 numbers, one per channel, got {values}")
    pixels = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    pixels = np.moveaxis(pixels, 0, 2)  # (H, W, C)
    if std is not None:
        pixels = pixels * np.asarray(std, dtype=np.float32)
    if mean is not None:
        pixels = pixels + np.asarray(mean, dtype=np.float32)
    return np.asarray(pixels, dtype=np.float32)


def _pixels(images: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> list[Pixels]:
    return [image.clip(0, 1) for image in _raw(images, mean, std)]


def _grid(count: int, columns: int, *, title_lines: int) -> tuple[Figure, Any]:
    check_range("columns", columns, 1)
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (1.75 * columns + 0.3, (1.6 + 0.2 * title_lines) * rows + 0.2)
    figure, grid = panels(rows, columns, size=size)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, grid.flat


def _show(axes: Axes, image: Pixels, **options: Any) -> Any:
    grey = image.ndim == 3 and image.shape[2] == 1
    options = {"cmap": "gray", "vmin": 0, "vmax": 1} if grey else options
    axes.set(xticks=[], yticks=[])
    return axes.imshow(image[..., 0] if grey else image, interpolation="nearest", **options)


def _shares(target: npt.NDArray[Any]) -> dict[int, float]:
    """Return the classes of a mixed target, the largest share first, three at most."""
    order = np.argsort(-target, kind="stable")[:3]
    return {int(index): float(target[index]) for index in order if target[index] > 0.005}


def _check_count(name: str, values: Any, images: list[Pixels]) -> None:
    if len(values) != len(images):
        raise ValueError(f"`{name}` must have one for each image, {len(images)}; got {len(values)}")
