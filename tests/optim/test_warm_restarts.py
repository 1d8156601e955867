import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lowres_vision.optim import SAM, CosineWarmRestarts

# A cosine, a power and two products of numbers of one size.
EXACT = 16 * torch.finfo(torch.float64).eps


def make_optimizer(groups: int = 1, lr: float = 7.0) -> SGD:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=lr)


def walk(scheduler: CosineWarmRestarts, steps: int) -> list[list[float]]:
    """The learning rates with which the optimizer makes its first steps."""
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in scheduler.optimizer.param_groups])
        assert scheduler.get_last_lr() == used[-1]
        scheduler.optimizer.step()
        scheduler.step()
    return used


def reference(
    steps: int,
    *,
    first_cycle: int,
    max_lr: float,
    cycle_mult: float = 1,
    warmup: int = 0,
    gamma: float = 1.0,
    min_lr: float = 0.0,
) -> list[float]:
    """One cycle after the other, step by step."""
    rates: list[float] = []
    length, peak = first_cycle, max_lr
    while len(rates) < steps:
        for position in range(length):
            if position < warmup:
                rates.append(min_lr + (peak - min_lr) * position / warmup)
            else:
                angle = math.pi * (position - warmup) / (length - warmup)
                rates.append(min_lr + (peak - min_lr) * (1 + math.cos(angle)) / 2)
        length = round((length - warmup) * cycle_mult) + warmup
        peak = max(min_lr, peak * gamma)
    return rates[:steps]


CASES: list[dict[str, Any]] = [
    {"first_cycle": 10, "max_lr": 0.1},
    {"first_cycle": 10, "max_lr": 0.1, "warmup": 3, "min_lr": 1e-4},
    {"first_cycle": 10, "max_lr": 0.1, "warmup": 3, "gamma": 0.5, "cycle_mult": 2},
    {"first_cycle": 10, "max_lr": 0.1, "warmup": 9, "gamma": 0.9, "min_lr": 0.01},
    {"first_cycle": 7, "max_lr": 1.0, "warmup": 2, "cycle_mult": 1.5, "gamma": 0.8},
    {"first_cycle": 1, "max_lr": 0.3, "cycle_mult": 3},
    {"first_cycle": 5, "max_lr": 0.1, "min_lr": 0.03, "gamma": 0.5, "warmup": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rates_are_those_of_the_formula(case: dict[str, Any]) -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), **case)
    expected = reference(120, **case)
    assert [rates[0] for rates in walk(scheduler, 120)] == pytest.approx(expected, rel=EXACT)
    assert [scheduler.lr(step)[0] for step in range(120)] == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("cycle_mult", [1, 2])
def test_without_warmup_it_is_torchs(cycle_mult: int) -> None:
    theirs = CosineAnnealingWarmRestarts(
        make_optimizer(lr=0.1), T_0=10, T_mult=cycle_mult, eta_min=0.001
    )
    ours = CosineWarmRestarts(
        make_optimizer(), first_cycle=10, cycle_mult=cycle_mult, max_lr=0.1, min_lr=0.001
    )
    for _ in range(100):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=EXACT)
        for scheduler in (ours, theirs):
            scheduler.optimizer.step()
            scheduler.step()


def test_the_sources_way_of_counting_cycles() -> None:
    """T_0=4, T_up=2, T_mult=2: the warm-up keeps its length, cycles are 4, 6 and 10 long."""
    scheduler = CosineWarmRestarts(
        make_optimizer(), first_cycle=4, warmup=2, cycle_mult=2, max_lr=1.0, gamma=0.5
    )
    rates = [scheduler.lr(step)[0] for step in range(21)]
    peaks = [step for step in range(1, 20) if rates[step] > max(rates[step - 1], rates[step + 1])]
    assert peaks == [2, 6, 12]
    assert [rates[step] for step in peaks] == [1.0, 0.5, 0.25]
    assert [step for step in range(20) if rates[step] == 0] == [0, 4, 10]


def test_the_optimizers_own_rate_is_not_read() -> None:
    settings = {"first_cycle": 5, "max_lr": 0.1, "min_lr": 0.01, "warmup": 2, "gamma": 0.7}
    small, large = (CosineWarmRestarts(make_optimizer(lr=lr), **settings) for lr in (1e-9, 50.0))
    assert walk(small, 12) == walk(large, 12)


def test_no_peak_falls_below_the_minimum() -> None:
    scheduler = CosineWarmRestarts(
        make_optimizer(), first_cycle=4, warmup=1, max_lr=0.1, min_lr=0.04, gamma=0.5
    )
    assert scheduler.lr(5) == [0.05]
    assert [scheduler.lr(step) for step in range(8, 20)] == [[0.04]] * 12


def test_the_minimum_is_one_step_past_the_end() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), first_cycle=10, max_lr=1.0)
    assert scheduler.lr(9)[0] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2, rel=EXACT)
    assert scheduler.lr(10) == [1.0]


def test_lengths_are_rounded_not_cut_off() -> None:
    scheduler = CosineWarmRestarts(
        make_optimizer(), first_cycle=100, cycle_mult=1.15, max_lr=1.0, gamma=0.5
    )
    assert scheduler.lr(214)[0] < 0.001
    assert scheduler.lr(215) == [0.25]


def test_each_group_has_its_own_rates() -> None:
    scheduler = CosineWarmRestarts(
        make_optimizer(2),
        first_cycle=6,
        warmup=2,
        gamma=0.5,
        max_lr=[0.1, 0.001],
        min_lr=(0.01, 0.0),
    )
    settings = {"first_cycle": 6, "warmup": 2, "gamma": 0.5}
    first = reference(20, max_lr=0.1, min_lr=0.01, **settings)
    second = reference(20, max_lr=0.001, min_lr=0.0, **settings)
    for found, *expected in zip(walk(scheduler, 20), first, second, strict=True):
        assert found == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resuming_in_the_middle_goes_on_in_step(optimizer_first: bool) -> None:
    settings: dict[str, Any] = {"first_cycle": 5, "warmup": 2, "cycle_mult": 1.5, "gamma": 0.7}
    scheduler = CosineWarmRestarts(make_optimizer(2), max_lr=[0.1, 0.2], **settings)
    walk(scheduler, 9)
    saved = copy.deepcopy((scheduler.optimizer.state_dict(), scheduler.state_dict()))
    expected = walk(scheduler, 20)

    optimizer = make_optimizer(2, lr=3.0)
    if optimizer_first:
        optimizer.load_state_dict(saved[0])
    resumed = CosineWarmRestarts(optimizer, max_lr=[0.1, 0.2], **settings)
    resumed.load_state_dict(saved[1])
    assert walk(resumed, 20) == expected


def test_a_schedule_may_be_taken_up_at_a_step() -> None:
    settings: dict[str, Any] = {"first_cycle": 5, "warmup": 2, "max_lr": 0.1}
    whole = CosineWarmRestarts(make_optimizer(), **settings)
    walk(whole, 8)
    late = CosineWarmRestarts(whole.optimizer, **settings, last_epoch=6)
    assert late.last_epoch == 7
    assert late.get_last_lr() == whole.lr(7)


def test_state_is_plain_data() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(2), first_cycle=3, max_lr=[0.1, 0.2])
    plain = (int, float, bool)
    for value in scheduler.state_dict().values():
        items = value if isinstance(value, list) else [value]
        assert all(isinstance(item, plain) for item in items)


def test_a_rate_in_a_tensor_is_filled() -> None:
    """As optimizers captured in a CUDA graph want it."""
    rate = torch.tensor(9.0, dtype=torch.float64)
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=rate, capturable=False, foreach=False)
    scheduler = CosineWarmRestarts(optimizer, first_cycle=4, max_lr=0.5)
    assert rate == 0.5
    state = scheduler.state_dict()
    rate.fill_(3.0)
    scheduler.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5


def test_one_number_covers_groups_added_later() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), first_cycle=4, max_lr=0.5)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == scheduler.lr(1) == [scheduler.lr(1)[0]] * 2


def test_a_list_names_the_group_that_it_lacks() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), first_cycle=4, max_lr=[0.5])
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=r"each of the optimizer's 2 .* append to `scheduler.max"):
        scheduler.step()
    assert isinstance(scheduler.max_lr, list)
    scheduler.max_lr.append(0.25)
    scheduler.step()
    assert scheduler.get_last_lr()[1] == scheduler.get_last_lr()[0] / 2


def test_it_schedules_sam_and_its_base() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SAM([weight], SGD, lr=9.0)
    scheduler = CosineWarmRestarts(optimizer, first_cycle=4, warmup=1, max_lr=0.1, min_lr=0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    before = 1.0
    for step in range(8):
        optimizer.step(closure)
        scheduler.step()
        moved = before - weight[0].item()
        assert moved == pytest.approx(scheduler.lr(step)[0], abs=2 * torch.finfo(torch.float32).eps)
        before = weight[0].item()


@given(
    first_cycle=st.integers(1, 40),
    share=st.floats(0, 1, exclude_max=True),
    cycle_mult=st.floats(1, 3),
    gamma=st.floats(0.1, 1),
    step=st.integers(0, 10_000),
)
def test_any_rate_lies_between_its_bounds(
    first_cycle: int, share: float, cycle_mult: float, gamma: float, step: int
) -> None:
    scheduler = CosineWarmRestarts(
        make_optimizer(),
        first_cycle=first_cycle,
        warmup=int(share * first_cycle),
        cycle_mult=cycle_mult,
        gamma=gamma,
        max_lr=0.5,
        min_lr=0.25,
    )
    assert 0.25 <= scheduler.lr(step)[0] <= 0.5


def test_a_late_step_of_short_cycles_is_found_at_once() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), first_cycle=10, cycle_mult=1.01, max_lr=1.0)
    assert scheduler.lr(10**15) == [1.0]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"first_cycle": 0}, ValueError, "`first_cycle` must be >= 1, got 0"),
        ({"first_cycle": 2.5}, TypeError, "`first_cycle` must be an int number of steps, got 2.5"),
        ({"warmup": True}, TypeError, "`warmup` must be an int number of steps, got True"),
        ({"warmup": 10}, ValueError, "`warmup` must be >= 0 and < first_cycle=10, got 10"),
        ({"warmup": -1}, ValueError, "`warmup` must be >= 0 and < first_cycle=10, got -1"),
        ({"cycle_mult": 0.5}, ValueError, "`cycle_mult` must be >= 1, got 0.5"),
        ({"gamma": 0.0}, ValueError, "`gamma` must be > 0.0 and <= 1.0, got 0.0"),
        ({"gamma": 1.5}, ValueError, "`gamma` must be > 0.0 and <= 1.0, got 1.5"),
        ({"min_lr": -0.1}, ValueError, "`min_lr` must be >= 0.0, got -0.1"),
        ({"min_lr": 0.2}, ValueError, "`max_lr` must be >= 0.2, got 0.1"),
        ({"max_lr": [0.1, 0.1]}, ValueError, "`max_lr` must have one value for each"),
        ({"min_lr": []}, ValueError, "`min_lr` must have one value for each"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"first_cycle": 10, "max_lr": 0.1, **wrong}
    with pytest.raises(error) as caught:
        CosineWarmRestarts(make_optimizer(), **arguments)
    assert message in str(caught.value)


def test_negative_steps_are_refused() -> None:
    scheduler = CosineWarmRestarts(make_optimizer(), first_cycle=4, max_lr=0.5)
    with pytest.raises(ValueError, match=r"`step` must be >= 0, got -1"):
        scheduler.lr(-1)
