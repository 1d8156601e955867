import numpy as np
import pytest

from lowres_vision.plots import class_counts, column_counts, size_scatter


def test_bars_are_the_counts_in_the_order_of_the_classes() -> None:
    axes = class_counts(np.array([2, 0, 2, -1]), ["finch", "tit", "owl"]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 0, 2, 1]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["finch", "tit", "owl", "(unlabelled)"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first class on top


def test_values_of_a_column_by_frequency_and_the_rest_in_one_bar() -> None:
    cells = ["Rococo", "Cubism, Pop Art", "Cubism", "", "Pop  Art", "Cubism", "Dada"]
    axes = column_counts(cells, name="genre", separator=",", most=2).axes[0]
    drawn = dict(
        zip(
            [label.get_text() for label in axes.get_yticklabels()],
            [bar.get_width() for bar in axes.patches],
            strict=True,
        )
    )
    assert drawn == {"Cubism": 3, "Pop Art": 2, "(3 others)": 3}
    assert axes.get_title() == "7 rows by genre"


def test_sizes_are_dots_by_width_and_height_larger_the_more_there_are() -> None:
    axes = size_scatter(np.array([[300, 200], [64, 128], [300, 200], [300, 200]])).axes[0]
    dots = axes.collections[0]
    assert dots.get_offsets().tolist() == [[128, 64], [200, 300]]
    first, second = dots.get_sizes()
    assert second - 12 == pytest.approx(3 * (first - 12))
    assert axes.get_title() == "4 images, 2 sizes, median 300 x 200"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "256"]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < 64
        assert high > 300


def test_images_of_one_size_have_an_axis_with_numbers() -> None:
    axes = size_scatter([[100, 100]] * 3).axes[0]
    assert axes.get_title() == "3 images, 1 size, median 100 x 100"
    assert len(axes.get_xticks()) >= 2


@pytest.mark.parametrize("sizes", [[], [64, 64], [[64, 64, 3]], [[0, 8]]])
def test_sizes_that_are_none(sizes: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^`sizes` must be \(N, 2\) heights and widths > 0"):
        size_scatter(sizes)


def test_a_class_named_as_the_unlabelled_keeps_its_own_bar() -> None:
    figure = class_counts([0, 1, 1, -1], ["(unlabelled)", "tit"])
    assert [int(bar.get_width()) for bar in figure.axes[0].patches] == [1, 2, 1]


@pytest.mark.parametrize(
    "sizes", [[[1, 1]], [[67, 67]], [[70, 70], [71, 70]], [[1, 10000], [10000, 1]]]
)
def test_sizes_have_between_one_and_eight_ticks_within(sizes: list[list[int]]) -> None:
    axes = size_scatter(sizes).axes[0]
    low, high = axes.get_xlim()
    assert 1 <= len(axes.get_xticks()) <= 8
    assert all(low <= tick <= high for tick in axes.get_xticks())
    assert np.min(sizes) in axes.get_xticks()


def test_a_column_whose_name_has_no_font_is_drawn_all_the_same() -> None:
    assert column_counts(["a"], name="\ue123").axes[0].get_title() == "1 rows by value"
    assert column_counts(["a"], name="$x$").axes[0].get_title() == r"1 rows by \$x\$"


@pytest.mark.parametrize("cell", [None, float("nan"), 3])
def test_cells_that_are_no_strings_are_named(cell: object) -> None:
    with pytest.raises(TypeError, match=r"`cells` must be strings, got .* in row 1"):
        column_counts(["sea", cell])
