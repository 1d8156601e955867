import numpy as np

from lowres_vision.plots import class_counts, column_counts


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
