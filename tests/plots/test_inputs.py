"""What a picture cannot show truthfully is refused: NaN, other numbers of classes, unknown ones."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lowres_vision.plots import (
    class_counts,
    confusion_matrix,
    mixed_batch,
    prediction_grid,
    resizer_panel,
    resolution_curve,
    size_scatter,
    style_panel,
)

NAMES = ["tit", "finch"]
IMAGES = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
HOLED = np.where(IMAGES > 0.9, np.nan, IMAGES)
HALF = np.full((2, 2), 0.5)

FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "confusion, NaN": (
        lambda: confusion_matrix([0, 1], HALF * np.nan, NAMES), "`predicted` must be finite"
    ),
    "confusion, three columns": (
        lambda: confusion_matrix([0, 1], np.eye(3)[:2], NAMES), r"`predicted` must be \(N, 2\)"
    ),
    "confusion, floats": (
        lambda: confusion_matrix([0.0, 1.0], [0, 1], NAMES), "`targets` must be .* class indices"
    ),
    "confusion, unknown": (
        lambda: confusion_matrix([0, -1], [0, 1], NAMES), r"`targets` must be in 0..1, got -1..0"
    ),
    "confusion, no class": (lambda: confusion_matrix([], [], []), "classes` must be >= 1"),
    "counts, beyond": (lambda: class_counts([0, 2], NAMES), "`labels` must be in -1..1, got 0..2"),
    "counts, NaN": (lambda: class_counts([0, np.nan], NAMES), "`labels` must be .* class indices"),
    "sizes, NaN": (lambda: size_scatter([[np.nan, 3.0]]), r"`sizes` must be \(N, 2\)"),
    "mixed, NaN": (lambda: mixed_batch(HOLED, [0, 1], NAMES), "each image must be finite"),
    "mixed, -1": (lambda: mixed_batch(IMAGES, [0, -1], NAMES), "`targets` must be in 0..1"),
    "mixed, three columns": (
        lambda: mixed_batch(IMAGES, np.eye(3)[:2], NAMES), r"`targets` must be \(N, 2\)"
    ),
    "mixed, uint16": (
        lambda: mixed_batch(IMAGES.astype(np.uint16), [0, 1], NAMES), "must be uint8, or float"
    ),
    "mixed, mean": (lambda: mixed_batch(IMAGES, [0, 1], NAMES, mean=(0, 0)), "`mean` must be 1 or"),
    "mixed, columns": (lambda: mixed_batch(IMAGES, [0, 1], NAMES, columns=0), "`columns` must be"),
    "grid, NaN": (
        lambda: prediction_grid(IMAGES, HALF * np.nan, NAMES), "`probabilities` must be finite"
    ),
    "grid, targets": (
        lambda: prediction_grid(IMAGES, HALF, NAMES, targets=[0, 5]), "`targets` must be in -1..1"
    ),
    "grid, rows": (lambda: prediction_grid(IMAGES, HALF, NAMES, rows=[1]), "`rows` must have one"),
    "resizer, NaN": (lambda: resizer_panel(IMAGES, HOLED), "each image must be finite"),
    "style, NaN": (lambda: style_panel(IMAGES, HOLED, IMAGES), "each image must be finite"),
    "resolution, NaN": (
        lambda: resolution_curve([8, 16, 32], {"m": [0.2, np.nan, 0.5]}), r"must be in \[0, 1\]"
    ),
    "resolution, percent": (
        lambda: resolution_curve([8, 16], {"m": [20, 50]}), r"must be in \[0, 1\]"
    ),
    "resolution, none": (lambda: resolution_curve([8, 16], {}), "of at least one model, got none"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_refused(fault: str) -> None:
    call, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words):
        call()


def test_one_pixel_grey_and_unequal_images_are_drawn_as_they_are() -> None:
    images = [np.full((1, 1, 1), 0.25), np.full((3, 2, 5), 0.5), torch.full((1, 4, 4), 0.75)]
    figure = mixed_batch(images, [0, 1, 1], NAMES)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [array.shape for array in drawn] == [(1, 1), (2, 5, 3), (4, 4)]
    assert [array.flat[0] for array in drawn] == [0.25, 0.5, 0.75]
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_half_precision_and_one_class_are_drawn() -> None:
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.bfloat16)
    figure = prediction_grid(images, torch.ones(1, 1), ["only"], targets=torch.tensor([0]))
    assert figure.axes[0].get_title() == "only 100%"
    assert confusion_matrix([0, 0], [0, 0], ["only"]).axes[0].texts[0].get_text() == "2"
    assert confusion_matrix([], [], NAMES).axes[0].get_title() == "no images"
