import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowres_vision.plots import resolution_curve, resolution_robustness

SIZES = [8, 16, 32, 64, 128, 256]


def test_a_model_that_loses_nothing_has_one_and_a_straight_line_its_middle() -> None:
    assert resolution_robustness(SIZES, [0.7] * 6, chance=0.04) == pytest.approx(1)
    line = np.linspace(0.04, 0.84, 6)  # from chance to the top, even in the logarithm
    assert resolution_robustness(SIZES, line, chance=0.04) == pytest.approx(0.5)
    assert resolution_robustness(SIZES, line) == pytest.approx((0.04 / 0.84 + 1) / 2)


def test_below_chance_counts_as_chance() -> None:
    assert resolution_robustness([8, 16], [0.0, 0.5], chance=0.1) == pytest.approx(0.5)


@given(st.permutations(range(6)), st.lists(st.floats(0.1, 1.0), min_size=6, max_size=6))
def test_it_is_the_integral_over_octaves_in_any_order(
    order: list[int], values: list[float]
) -> None:
    """Octaves: each of the five intervals weighs a fifth, whatever its width in pixels."""
    pairs = list(itertools.pairwise(values))
    expected = sum((a + b) / 2 for a, b in pairs) / 5 / values[-1]
    found = resolution_robustness([SIZES[i] for i in order], [values[i] for i in order])
    assert found == pytest.approx(expected)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"at 256 px must be above chance, 0\.04; got 0\.04"):
        resolution_robustness([8, 256], [0.5, 0.04], chance=0.04)
    with pytest.raises(ValueError, match="one for each of different `sizes`"):
        resolution_robustness([8, 8], [0.1, 0.2])
    with pytest.raises(ValueError, match="at least two, > 0"):
        resolution_robustness([8], [0.1])


def test_the_curve_shows_the_values_and_the_score() -> None:
    accuracies = {"low": [0.3, 0.6, 0.5], "high": [0.1, 0.4, 0.8]}
    axes = resolution_curve([64, 16, 256], accuracies, chance=0.04).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[16, 0.6], [64, 0.3], [256, 0.5]]
    assert axes.lines[1].get_ydata().tolist() == [0.4, 0.1, 0.8]
    score = resolution_robustness([64, 16, 256], accuracies["low"], chance=0.04)
    labels = [text.get_text() for text in axes.get_legend().texts]
    assert labels[0] == f"low: robustness {score:.2f}"
    assert labels[2] == "chance 0.04"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "64", "256"]
