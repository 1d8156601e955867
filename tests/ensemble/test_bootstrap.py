import numpy as np
import pytest
from sklearn import metrics

from lowres_vision.ensemble import (
    accuracy,
    bootstrap_interval,
    log_loss,
    macro_f1,
    mcnemar_test,
    paired_bootstrap,
)

SCORES = {"accuracy": accuracy, "macro_f1": macro_f1, "log_loss": log_loss}


def draw(seed: int, rows: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    predicted = np.where(random.random(rows) < right, labels, (labels + 1) % 3)
    return 0.1 + 0.7 * np.eye(3)[predicted], labels


@pytest.mark.parametrize("metric", SCORES)
def test_the_interval_holds_the_score_and_is_that_of_its_spread(metric: str) -> None:
    p, labels = draw(0, 400, 0.8)
    low, high = bootstrap_interval(p, labels, metric=metric)  # type: ignore[arg-type]
    assert low < SCORES[metric](p, labels) < high
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


def noisy(seed: int, rows: int, strength: float, common: np.ndarray) -> np.ndarray:
    """Return probabilities of a model whose errors are partly those of ``common``."""
    random = np.random.default_rng(seed)
    logits = common + strength * random.normal(size=(rows, common.shape[1]))
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def two_models(seed: int, rows: int, gain: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    common = random.normal(size=(rows, 4))
    common[np.arange(rows), labels] += 1.5
    better = noisy(seed + 1, rows, 0.5, common)
    common[np.arange(rows), labels] -= gain
    return better, noisy(seed + 2, rows, 0.5, common), labels


@pytest.mark.parametrize("metric", SCORES)
def test_samples_are_those_of_rows_drawn_one_by_one(metric: str) -> None:
    """Scores of a plain loop over resampled rows have the same quantiles, within their error."""
    first, second, labels = two_models(0, 300, 0.4)
    result = paired_bootstrap(first, second, labels, metric=metric, draws=4000)  # type: ignore[arg-type]
    interval = bootstrap_interval(first, labels, metric=metric, draws=4000)  # type: ignore[arg-type]
    random = np.random.default_rng(9)
    sign = -1 if metric == "log_loss" else 1

    def score(p: np.ndarray, y: np.ndarray) -> float:
        if metric == "log_loss":
            return -np.log(p[np.arange(len(y)), y]).mean()
        if metric == "accuracy":
            return metrics.accuracy_score(y, p.argmax(axis=1))
        return metrics.f1_score(y, p.argmax(axis=1), average="macro")

    alone, gains = [], []
    for _ in range(800):
        drawn = random.integers(0, 300, 300)
        alone.append(score(first[drawn], labels[drawn]))
        gains.append(sign * (alone[-1] - score(second[drawn], labels[drawn])))
    # An end of a 95 % interval of 800 draws has a standard error of about a tenth of the spread.
    spread = np.std(alone)
    np.testing.assert_allclose(interval, np.quantile(alone, [0.025, 0.975]), atol=0.3 * spread)
    spread = np.std(gains)
    ends = np.quantile(gains, [0.025, 0.975])
    np.testing.assert_allclose([result.low, result.high], ends, atol=0.3 * spread)
    expected = sign * (SCORES[metric](first, labels) - SCORES[metric](second, labels))
    assert result.difference == pytest.approx(expected, abs=1e-12)


def test_equal_models_are_seldom_told_apart_and_unequal_ones_mostly() -> None:
    false, found = 0, 0
    for seed in range(100):
        equal = paired_bootstrap(*two_models(10 * seed, 400, 0.0), metric="accuracy", draws=400)
        false += equal.p_value < 0.05
        better = paired_bootstrap(*two_models(10 * seed, 400, 0.5), metric="accuracy", draws=400)
        found += better.p_value < 0.05 and better.difference > 0
    assert false <= 12  # 5 expected, three standard deviations of 2.2 above
    assert found > 80


def test_the_p_value_is_near_the_exact_one() -> None:
    for seed, gain in ((0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)):
        first, second, labels = two_models(seed, 1000, gain)
        exact = mcnemar_test(first, second, labels).p_value
        drawn = paired_bootstrap(first, second, labels, metric="accuracy").p_value
        assert drawn == pytest.approx(exact, abs=0.08)


def test_swapping_the_models_turns_the_sign() -> None:
    first, second, labels = two_models(0, 500, 0.3)
    there = paired_bootstrap(first, second, labels)
    back = paired_bootstrap(second, first, labels)
    assert there.difference == -back.difference > 0
    assert there.low == pytest.approx(-back.high, abs=0.01)
    same = paired_bootstrap(first, first, labels)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_arguments_that_do_not_fit_are_refused() -> None:
    p, labels = draw(0, 10, 0.8)
    with pytest.raises(ValueError, match="`second` must have the shape of `first`"):
        paired_bootstrap(p, p[:-1], labels)
    with pytest.raises(ValueError, match="`draws` must be >= 1"):
        paired_bootstrap(p, p, labels, draws=0)
    with pytest.raises(ValueError, match="`level` must be > 0 and <= 1"):
        bootstrap_interval(p, labels, level=1.5)
    with pytest.raises(ValueError, match="`metric` must be one of"):
        bootstrap_interval(p, labels, metric="f1")  # type: ignore[arg-type]
