import numpy as np
import pytest
from scipy.stats import binomtest

from lowres_vision.ensemble import mcnemar_test


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


def test_models_of_other_rows_are_refused() -> None:
    p, labels = draw(0, 10, 0.8)
    with pytest.raises(ValueError, match="`second` must have the shape of `first`"):
        mcnemar_test(p, p[:-1], labels)
