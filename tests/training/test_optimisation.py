from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lowres_vision.optim import SAM
from lowres_vision.training._optimisation import (
    accumulation_weight,
    refuse_combinations,
    scale_rates,
)


def trainer(**settings: Any) -> Any:
    usual = {
        "accumulate_grad_batches": 1,
        "precision": "32-true",
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
        "strategy": None,
        "world_size": 1,
    }
    return SimpleNamespace(**{**usual, **settings})


def sam() -> SAM:
    return SAM(nn.Linear(2, 2).parameters(), torch.optim.SGD, lr=0.1)


def adam() -> torch.optim.Optimizer:
    return torch.optim.Adam(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "16-mixed"}, "precision='16-mixed'.*use 'bf16-mixed' or '32-true'"),
        ({"accumulate_grad_batches": 4}, "accumulate_grad_batches=4"),
        ({"gradient_clip_val": 1, "gradient_clip_algorithm": "value"}, "clip by 'norm'"),
        ({"strategy": FSDPStrategy()}, "Lightning's FSDPStrategy"),
    ],
)
def test_what_goes_wrong_with_sam_is_refused_and_only_with_sam(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"SAM does not go with .*{words}"):
        refuse_combinations(trainer(**settings), sam(), ema=False, unfreeze=False)
    refuse_combinations(trainer(**settings), adam(), ema=False, unfreeze=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16-mixed", "gradient_clip_val": 1, "gradient_clip_algorithm": "norm"},
        {"gradient_clip_val": 1},
        {"world_size": 2},
    ],
)
def test_what_goes_right_with_sam_is_not_refused(settings: Any) -> None:
    refuse_combinations(trainer(**settings), sam(), ema=True, unfreeze=False)


def test_what_goes_wrong_with_averages_and_unfreezing_is_refused() -> None:
    with pytest.raises(ValueError, match="`ema` does not go with Lightning's FSDPStrategy"):
        refuse_combinations(trainer(strategy=FSDPStrategy()), adam(), ema=True, unfreeze=False)
    with pytest.raises(ValueError, match="`unfreeze` does not go with 2 processes"):
        refuse_combinations(trainer(world_size=2), adam(), ema=False, unfreeze=True)


@pytest.mark.parametrize(
    ("full", "batches", "weights"),
    [
        (1, 3, [1, 1, 1]),
        (2, 4, [1, 1, 1, 1]),
        (2, 3, [1, 1, 2]),
        (4, 6, [1, 1, 1, 1, 2, 2]),
        (4, 3, [4 / 3] * 3),
    ],
)
def test_the_last_step_of_an_epoch_weighs_what_it_accumulates(
    full: int, batches: int, weights: list[float]
) -> None:
    run = SimpleNamespace(accumulate_grad_batches=full, num_training_batches=batches)
    assert [accumulation_weight(run, i) for i in range(batches)] == weights


def test_scales_multiply_the_rate_of_their_group_once() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    groups = [
        {"params": weights[:1], "lr_scale": 0.5},
        {"params": weights[1:2], "lr_scale": 0.5, "lr": 1.0},
        {"params": weights[2:]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    scale_rates(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.2]
    scale_rates(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.2]
