"""Names as pictures hold them: long, foreign, with dollars."""

from pathlib import Path

import pytest

from lowres_vision.plots import class_counts, resolution_curve
from lowres_vision.plots._style import font_of, line_style, names_to_draw


def test_long_names_keep_both_ends() -> None:
    name = "Greater northern white-spotted woodpecker of island"
    first, second = names_to_draw([f"{name} 1", f"{name} 2"])
    assert len(first) <= 28
    assert first.startswith("Greater north")
    assert first.endswith("island 1")
    assert second.endswith("island 2")


def test_dollars_and_line_breaks_stay_words(tmp_path: Path) -> None:
    """`$x_$` is no formula, and would not even parse as one."""
    figure = class_counts([0], ["a $x_$\nb"], tmp_path / "a.png")
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"a \$x_\$ b"


def test_letters_no_font_has_are_replaced_and_explained(tmp_path: Path) -> None:
    """Warnings are errors here: matplotlib would warn of a glyph that it draws as a box."""
    private = "\ue123\ue124"
    figure = class_counts([0, 1], ["tit", private], tmp_path / "a.png")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["tit", "no. 1"]
    assert "1 of 2 names need a font" in figure.get_supxlabel().replace("\n", " ")


def test_korean_names_are_drawn_where_a_font_has_them(tmp_path: Path) -> None:
    font = font_of("박새")
    figure = class_counts([0], ["박새"], tmp_path / "a.png")
    label = figure.axes[0].get_yticklabels()[0]
    if font is None:
        assert label.get_text() == "no. 0"
        pytest.skip("no font with Korean letters is installed")
    assert label.get_text() == "박새"
    assert label.get_fontfamily() == [font]


def test_thirty_two_lines_differ() -> None:
    assert len({tuple(line_style(number).values()) for number in range(32)}) == 32


def test_names_that_shortening_made_alike_get_their_number() -> None:
    names = [f"Species number {number} of the genus" for number in (7, 8)]
    assert names_to_draw(["Owl", *names], longest=18) == [
        "Owl", "1: Specie…genus", "2: Specie…genus"
    ]  # fmt: skip


def test_a_legend_has_the_letters_and_shows_names_that_begin_with_a_line() -> None:
    figure = resolution_curve([8, 16], {"_hidden": [0.2, 0.4], "박새": [0.2, 0.5]})
    first, second = figure.axes[0].get_legend().get_texts()
    assert first.get_text() == " _hidden: robustness 0.75"
    font = font_of("박새")
    assert second.get_text().startswith("no. 1" if font is None else "박새")
    assert font is None or second.get_fontfamily() == [font]
