import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from lowres_vision.data import class_weights
from lowres_vision.data._weights import weigh

EPS = torch.finfo(torch.float32).eps
COUNTS = [1, 2, 17, 431, 671]


def test_inverse_is_scikit_learns_balanced_scaled_to_k() -> None:
    y = np.repeat(np.arange(5), COUNTS)
    balanced = compute_class_weight("balanced", classes=np.arange(5), y=y)
    expected = torch.from_numpy(balanced * 5 / balanced.sum()).float()
    assert torch.allclose(class_weights(COUNTS), expected, rtol=EPS, atol=0)


@pytest.mark.parametrize(
    ("scheme", "weight"),
    [
        ("inverse", lambda n: 1 / n),
        ("sqrt", lambda n: n**-0.5),
        ("log", lambda n: 1 / math.log1p(n)),
        ("effective", lambda n: 1 / sum(0.999**i for i in range(n))),
    ],
)
def test_each_scheme_is_its_formula_scaled_to_k(scheme: Any, weight: Any) -> None:
    plain = [weight(n) for n in COUNTS]
    expected = torch.tensor([w * 5 / sum(plain) for w in plain])
    found = class_weights(COUNTS, scheme=scheme)
    assert torch.allclose(found, expected, rtol=4 * EPS, atol=0)
    assert found.sum() == pytest.approx(5, rel=8 * EPS)
    assert (found.diff() < 0).all()


def test_effective_number_reaches_both_limits() -> None:
    assert torch.equal(class_weights(COUNTS, scheme="effective", beta=0.0), torch.ones(5))
    near = class_weights(COUNTS, scheme="effective", beta=1 - 1e-12)
    # 1 - beta^n = n (1 - beta) (1 - (n - 1) (1 - beta) / 2 + ...): 3e-10 away, below float32.
    assert torch.allclose(near, class_weights(COUNTS), rtol=2 * EPS, atol=0)


def test_effective_number_keeps_its_digits() -> None:
    beta = 1 - 2.0**-40
    with localcontext() as context:
        context.prec = 60
        plain = [1 / (1 - Decimal(beta) ** n) for n in COUNTS]
        expected = [float(w * 5 / sum(plain)) for w in plain]
    found = weigh(np.array(COUNTS), scheme="effective", beta=beta)
    # log(beta) of a float64 beta near 1 is exact to an ulp; the plain formula errs by 1e-5 here.
    np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(float).eps)


def test_an_empty_class_weighs_nothing_and_changes_nothing() -> None:
    for scheme in ("inverse", "sqrt", "log", "effective"):
        found = class_weights([30, 0, 10, 0], scheme=scheme)
        assert found[[1, 3]].tolist() == [0, 0]
        assert torch.equal(found[[0, 2]], class_weights([30, 10], scheme=scheme))


def test_counts_may_be_a_mapping_an_array_or_a_tensor() -> None:
    expected = class_weights([3, 1])
    assert expected.dtype == torch.float32
    for counts in ({"tit": 3, "rail": 1}, np.array([3, 1]), torch.tensor([3, 1])):
        assert torch.equal(class_weights(counts), expected)


def test_the_weighted_loss_sees_every_class_alike() -> None:
    weight = class_weights([6, 2, 1])
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    mass = torch.bincount(labels, weights=weight[labels].double())
    assert torch.allclose(mass, mass[0].expand(3), rtol=2 * EPS, atol=0)
    assert Fraction(float(weight[2] / weight[0])).limit_denominator(100) == 6


@pytest.mark.parametrize(
    ("counts", "arguments", "words"),
    [
        ([1, 2], {"scheme": "cube"}, "`scheme` must be one of 'inverse', 'sqrt'"),
        ([1, -2], {}, "`counts` must be >= 0, got -2"),
        ([0, 0], {}, "`counts` must have a class with images"),
        ([], {}, "`counts` must be"),
        ([0.5, 1], {}, r"`counts` must be \(K,\) whole numbers, got float64"),
        ([[1, 2]], {}, r"of shape \(1, 2\)"),
        ([1], {"scheme": "effective", "beta": 1.0}, "`beta` must be < 1, got 1.0; its limit is"),
        ([1], {"scheme": "effective", "beta": -0.1}, "`beta` must be >= 0"),
        ([1], {"scheme": "effective", "beta": math.nan}, "`beta` must be >= 0, got nan"),
    ],
)
def test_refusals(counts: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        class_weights(counts, **arguments)
