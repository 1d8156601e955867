from typing import Any

import numpy as np
import pytest
import torch

from lowres_vision.plots import mixed_batch, prediction_grid, resizer_panel, style_panel
from lowres_vision.plots._style import BLUE, VERMILLION

CLASSES = ["tit", "finch", "owl"]


def pictures(count: int, side: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def shown(axes: Any) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_images_are_drawn_as_they_are_and_normalisation_is_taken_back() -> None:
    images = pictures(3)
    expected = images.permute(0, 2, 3, 1).numpy() / 255
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    scale = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    normalised = (images / 255 - scale[0]) / scale[1]
    for figure in (
        mixed_batch(images, [0, 1, 2], CLASSES),
        mixed_batch(list(images), [0, 1, 2], CLASSES),
        mixed_batch(normalised, [0, 1, 2], CLASSES, mean=mean, std=std),
    ):
        for axes, image in zip(figure.axes, expected, strict=True):
            np.testing.assert_allclose(shown(axes), image, atol=1e-6)


def test_shares_of_mixed_targets_are_named() -> None:
    targets = torch.tensor([[0.37, 0.63, 0.0], [0.0, 0.0, 1.0]])
    figure = mixed_batch(pictures(2), targets, CLASSES)
    assert [axes.get_title() for axes in figure.axes] == ["63% finch\n37% tit", "owl"]


def test_predictions_say_how_sure_and_what_was_true() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.3, 0.2]])
    figure = prediction_grid(
        pictures(3), probabilities, CLASSES, targets=[0, 1, -1], rows=[7, 8, 9], columns=2
    )
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["tit 70%\nrow 7", "owl 60%\nis finch\nrow 8", "tit 50%\nrow 9"]
    right, wrong = (axes.spines["left"] for axes in figure.axes[:2])
    assert (right.get_edgecolor(), right.get_linestyle()) == (_rgba(BLUE), "-")
    assert (wrong.get_edgecolor(), wrong.get_linestyle()) == (_rgba(VERMILLION), "--")
    assert not figure.axes[3].axison  # the empty place of a grid of four


def test_the_difference_is_learned_minus_bilinear_on_one_scale() -> None:
    bilinear = torch.full((2, 3, 4, 4), 0.5)
    learned = bilinear.clone()
    learned[0, :, 1, 2] += 0.3
    learned[1, 0, 0, 0] -= 0.6
    figure = resizer_panel(bilinear, learned)
    top, middle, bottom = figure.axes[0:2], figure.axes[2:4], figure.axes[4:6]
    np.testing.assert_allclose(shown(top[0]), 0.5)
    np.testing.assert_allclose(shown(middle[0])[1, 2], 0.8, atol=1e-6)
    np.testing.assert_allclose(shown(bottom[0])[1, 2], 0.3, atol=1e-6)
    np.testing.assert_allclose(shown(bottom[1])[0, 0], -0.2, atol=1e-6)
    for axes in bottom:
        np.testing.assert_allclose(axes.images[0].get_clim(), (-0.3, 0.3), atol=1e-6)
    assert [axes.get_ylabel() for axes in (top[0], middle[0], bottom[0])] == [
        "bilinear",
        "learned",
        "difference",
    ]


def test_an_identity_resizer_has_no_difference() -> None:
    images = torch.rand(1, 3, 4, 4)
    assert not shown(resizer_panel(images, images).axes[2]).any()


def test_styles_stand_between_content_and_result() -> None:
    contents, styles, results = pictures(6).split(2)
    figure = style_panel(contents, list(styles), results / 255)
    for number, image in enumerate((contents[0], styles[0], results[0], contents[1])):
        np.testing.assert_allclose(
            shown(figure.axes[number]), image.permute(1, 2, 0) / 255, atol=1e-6
        )
    assert [axes.get_title() for axes in figure.axes[:3]] == ["content", "style", "result"]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="`targets` must have one for each image, 2; got 3"):
        mixed_batch(pictures(2), [0, 1, 2], CLASSES)
    with pytest.raises(ValueError, match=r"must be \(C, H, W\) with C of 1 or 3, got \(5, 5, 3\)"):
        mixed_batch(pictures(1).permute(0, 2, 3, 1), [0], CLASSES)
    with pytest.raises(ValueError, match="must have one shape"):
        resizer_panel(pictures(2), pictures(2, side=6))
    with pytest.raises(ValueError, match="at least one image, got none"):
        style_panel([], [], [])


def _rgba(colour: str) -> tuple[float, ...]:
    return (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)
