from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as reference

from lowres_vision.plots import confusion_matrix


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn, of K = 1
@pytest.mark.parametrize("K", [1, 3, 25, 100])
def test_shares_and_counts_are_those_of_scikit_learn(K: int) -> None:
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, K, (2, 40 * K))
    figure = confusion_matrix(targets, predicted, [f"class {k}" for k in range(K)])
    axes = figure.axes[0]
    expected = reference(targets, predicted, labels=range(K))
    shares = expected / np.maximum(expected.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(axes.images[0].get_array(), shares)
    if K <= 40:
        drawn = {(text.get_position()[1], text.get_position()[0]): text for text in axes.texts}
        assert {place: int(text.get_text()) for place, text in drawn.items()} == {
            (i, j): expected[i, j] for i, j in np.argwhere(expected)
        }
    else:
        assert not axes.texts
    assert axes.get_title() == f"accuracy {(targets == predicted).mean():.3f}, {40 * K} images"


def test_rows_are_true_classes_and_probabilities_are_read() -> None:
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]])
    axes = confusion_matrix([0, 1, 1], probabilities, ["tit", "finch"]).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.0, 1.0], [0.5, 0.5]]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["tit", "finch"]


def test_a_class_without_rows_is_drawn_empty(tmp_path: Path) -> None:
    figure = confusion_matrix([0], [0], ["seen", "never"], tmp_path / "c.pdf")
    assert figure.axes[0].images[0].get_array().tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one for each of the 2 targets, got 1"):
        confusion_matrix([0, 1], [0], ["a", "b"])
    with pytest.raises(ValueError, match=r"`targets` must be in 0..1, got -1..1"):
        confusion_matrix([-1, 1], [0, 0], ["a", "b"])
