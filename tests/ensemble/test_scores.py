import numpy as np
import pytest
from sklearn import metrics

from lowres_vision.ensemble import accuracy, expected_calibration_error, log_loss, macro_f1


def draw(seed: int, rows: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(classes), size=rows), random.integers(0, classes, rows)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rows", [1, 8, 200])  # in 8 rows some of 7 classes are absent
def test_scores_are_scikit_learns(seed: int, rows: int) -> None:
    p, y = draw(seed, rows)
    predicted = p.argmax(axis=1)
    assert accuracy(p, y) == pytest.approx(metrics.accuracy_score(y, predicted), abs=1e-15)
    expected = metrics.f1_score(y, predicted, average="macro")
    assert macro_f1(p, y) == pytest.approx(expected, abs=1e-12)
    loss = metrics.log_loss(y, p, labels=np.arange(7))
    assert log_loss(p, y) == pytest.approx(loss, rel=1e-12)


def test_a_class_never_true_counts_only_if_predicted() -> None:
    y = [0, 0]
    assert macro_f1([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], y) == 1
    assert macro_f1([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], y) == pytest.approx((2 / 3 + 0) / 2)


def test_a_sure_mistake_costs_a_finite_log_loss() -> None:
    p = [[1.0, 0.0], [0.5, 0.5]]
    expected = metrics.log_loss([1, 0], p)
    assert np.isfinite(expected)
    assert log_loss(p, [1, 0]) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_is_that_of_a_loop_over_bins() -> None:
    p, y = draw(3, 500)
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == y
    total = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert total > 0.01
    assert expected_calibration_error(p, y, bins=10) == pytest.approx(total, abs=1e-12)


def test_calibrated_predictions_have_a_small_error_and_sure_wrong_ones_an_error_of_one() -> None:
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(3), size=40_000)
    y = (random.random(40_000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    assert expected_calibration_error(p, y) < 0.015  # 15 bins of ~2,700 rows: sd below 0.01 each
    assert expected_calibration_error([[1.0, 0.0]], [1]) == 1


@pytest.mark.parametrize("score", [accuracy, macro_f1, log_loss, expected_calibration_error])
def test_labels_and_shapes_that_do_not_fit_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"must be class indices in 0..1, got 0..2"):
        score([[0.5, 0.5], [0.5, 0.5]], [0, 2])
    with pytest.raises(ValueError, match=r"`labels` must be \(1,\) class indices"):
        score([[0.5, 0.5]], [0.0])
    with pytest.raises(ValueError, match=r"must be \(rows, classes\)"):
        score([0.5, 0.5], [0, 1])
