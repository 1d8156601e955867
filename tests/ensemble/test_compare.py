import numpy as np
import pytest
from scipy.stats import binomtest

from lowres_vision.ensemble import accuracy, bootstrap_interval, log_loss, macro_f1, mcnemar_test


def draw(seed: int, rows: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    predicted = np.where(random.random(rows) < right, labels, (labels + 1) % 3)
    return 0.1 + 0.7 * np.eye(3)[predicted], labels


@pytest.mark.parametrize("rows", [1, 9, 60, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_scipys_exact_one(rows: int, seed: int) -> None:
    first, labels = draw(seed, rows, 0.8)
    second = draw(seed + 50, rows, 0.7)[0]
    result = mcnemar_test(first, second, labels)
    one, other = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    assert result.only_first == (one & ~other).sum()
    assert result.only_second == (~one & other).sum()
    n = result.only_first + result.only_second
    expected = binomtest(result.only_first, n, 0.5).pvalue if n else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("metric", "score"), [("accuracy", accuracy), ("macro_f1", macro_f1), ("log_loss", log_loss)]
)
def test_the_interval_holds_the_score_and_is_that_of_its_spread(metric: str, score) -> None:  # type: ignore[no-untyped-def]
    p, labels = draw(0, 400, 0.8)
    low, high = bootstrap_interval(p, labels, metric=metric)  # type: ignore[arg-type]
    assert low < score(p, labels) < high
    assert (low, high) == bootstrap_interval(p, labels, metric=metric)  # type: ignore[arg-type]
    if metric == "accuracy":
        deviation = np.sqrt(0.8 * 0.2 / 400)
        assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(150):
        p, labels = draw(seed, 120, 0.8)
        low, high = bootstrap_interval(p, labels, metric="accuracy", level=0.8, draws=150)
        inside += low <= 0.8 <= high
    assert 0.7 < inside / 150 < 0.9  # three standard deviations of 0.033 around 0.8


def test_arguments_that_do_not_fit_are_refused() -> None:
    p, labels = draw(0, 10, 0.8)
    with pytest.raises(ValueError, match="`second` must have the shape of `first`"):
        mcnemar_test(p, p[:-1], labels)
    with pytest.raises(ValueError, match="`level` must be > 0 and <= 1"):
        bootstrap_interval(p, labels, level=1.5)
    with pytest.raises(ValueError, match="`metric` must be one of"):
        bootstrap_interval(p, labels, metric="f1")  # type: ignore[arg-type]
