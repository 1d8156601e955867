from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lowres_vision.augment import StyleTransfer
from lowres_vision.data import Manifest, decode_image, make_toy_folders
from lowres_vision.plots import styled_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three works of each of three classes; two classes topped up, by one and by three works."""
    folder = make_toy_folders(
        tmp_path_factory.mktemp("styled"), classes=3, per_class={"train": 3}, size=16
    )
    birds = Manifest.read_folders(folder / "train")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    transfer = StyleTransfer(network, content_layers=["1"], style_layers=["0"], steps=1)
    to = {"Amber Finch": 4, "Bronze Heron": 6}
    return transfer.top_up(birds, folder / "new", to=to, style_from="other")


def test_each_restyled_row_stands_beside_what_it_was_made_of(made: Manifest) -> None:
    figure = styled_rows(made)
    assert len(figure.axes) == 4 * 3
    for number, row in enumerate(range(9, 13)):
        content, style = (
            made.ids.index(made.columns[name][row]) for name in ("content_id", "style_id")
        )
        assert made.labels[content] == made.labels[row] != made.labels[style]
        for axes, source in zip(
            figure.axes[3 * number : 3 * number + 3], (content, style, row), strict=True
        ):
            pixels = decode_image(made.root / made.low[source]).permute(1, 2, 0).numpy() / 255
            np.testing.assert_allclose(axes.images[0].get_array(), pixels, atol=1e-6)
    labels = [axes.get_ylabel() for axes in figure.axes[::3]]
    assert labels == ["Amber Finch", *["Bronze Heron"] * 3]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["content", "style", "result"]


def test_few_are_drawn_from_first_to_last(made: Manifest, tmp_path: Path) -> None:
    figure = styled_rows(made, tmp_path / "styled.png", most=2)
    labels = [axes.get_ylabel() for axes in figure.axes[::3]]
    assert labels == ["Amber Finch", "Bronze Heron"]
    assert (tmp_path / "styled.png").stat().st_size > 1000


def test_letters_without_a_font_are_told(made: Manifest) -> None:
    named = replace(made, classes=("\U00010900", *made.classes[1:]))  # Phoenician
    figure = styled_rows(named)
    assert figure.axes[0].get_ylabel() == "no. 0"
    assert "1 of 2 names need a font" in figure.get_supxlabel()


def test_refusals(made: Manifest) -> None:
    with pytest.raises(ValueError, match="has no restyled rows; give the manifest that"):
        styled_rows(replace(made, columns={}))
    with pytest.raises(ValueError, match="has no restyled rows"):
        styled_rows(made.take(range(9)))
    with pytest.raises(ValueError, match=r"was made of '.*', which is not in the manifest"):
        styled_rows(made.take([9]))
    with pytest.raises(ValueError, match="`most` must be >= 1, got 0"):
        styled_rows(made, most=0)
