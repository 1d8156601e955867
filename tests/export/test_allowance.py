"""What may be taken is counted before it is taken, by constructors and by a first answer."""

import pytest
import torch
from torch import nn

from lowres_vision.export._allowance import Allowance
from lowres_vision.models import LowResClassifier

BEYOND = 2**50  # elements, which no machine has: taking them would be another error


def test_what_is_too_large_is_refused_before_it_is_taken() -> None:
    with (
        Allowance(total=2**20) as allowance,
        pytest.raises(MemoryError, match=r"more than 0\.0 GiB"),
    ):
        nn.Linear(BEYOND, 1)
    assert allowance.taken > BEYOND


def test_results_of_tensors_count_and_views_do_not() -> None:
    with Allowance(each=2**20) as allowance:
        wide = torch.zeros(1).expand(BEYOND)
        assert allowance.taken < 2**17
        with pytest.raises(MemoryError, match="than"):
            wide + 1


def test_many_small_ones_count_too() -> None:
    with Allowance(total=2**20), pytest.raises(MemoryError):
        nn.ParameterList(torch.zeros(0) for _ in range(2**20))


def test_what_is_made_within_is_what_is_made_without() -> None:
    def made() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return LowResClassifier("test_vit", 3, image_size=64).state_dict()

    expected = made()
    with Allowance(total=2**30) as allowance:
        found = made()
    held = sum(value.numel() * value.element_size() for value in expected.values())
    assert held <= allowance.taken < 2**24
    assert all(torch.equal(found[name], value) for name, value in expected.items())
