import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lowres_vision.data import BalancedSampler

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [700, 250, 50]))


@pytest.mark.parametrize(
    ("scheme", "weight"),
    [
        ("inverse", lambda n: 1 / n),
        ("sqrt", lambda n: n**-0.5),
        ("log", lambda n: 1 / np.log1p(n)),
        ("effective", lambda n: 1 / (1 - 0.99**n)),
    ],
)
def test_classes_and_their_samples_are_drawn_as_weighted(scheme: Any, weight: Any) -> None:
    draws = 200_000
    sampler = BalancedSampler(LABELS, scheme=scheme, beta=0.99, num_samples=draws)
    found = np.bincount(list(sampler), minlength=len(LABELS))
    expected = weight(np.bincount(LABELS))[LABELS]
    expected = draws * expected / expected.sum()
    # Chi-square of 999 degrees: mean 999, standard deviation 44.7; within five of them.
    assert abs(((found - expected) ** 2 / expected).sum() - 999) < 5 * 44.7


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        sampler = BalancedSampler(LABELS, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    sampler = BalancedSampler(LABELS, seed=1)
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler) == draw(1, epoch)
    assert draw(1, 0) != draw(1, 1) != draw(0, 1)


@pytest.mark.parametrize("replicas", [2, 3, 7])
@pytest.mark.parametrize("total", [1000, 50])
def test_devices_share_one_draw(replicas: int, total: int) -> None:
    parts = [
        list(BalancedSampler(LABELS, num_samples=total, rank=rank, num_replicas=replicas))
        for rank in range(replicas)
    ]
    assert {len(part) for part in parts} == {-(-total // replicas)}
    together = [index for step in zip(*parts, strict=True) for index in step]
    whole = list(BalancedSampler(LABELS, num_samples=len(together)))
    assert together == whole
    assert together[:total] == list(BalancedSampler(LABELS, num_samples=total))


def test_the_draws_that_fill_up_are_new_draws() -> None:
    labels = np.zeros(10_000, dtype=int)
    last = [
        list(BalancedSampler(labels, num_samples=9, rank=rank, num_replicas=4))[-1]
        for rank in range(4)
    ]
    assert len(set(last)) == 4


def test_an_epoch_can_be_taken_up_in_the_middle() -> None:
    sampler = BalancedSampler(LABELS, rank=1, num_replicas=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start=123)
    assert len(sampler) == len(whole) - 123
    assert list(sampler) == whole[123:]
    sampler.set_epoch(4, start=10_000)
    assert (len(sampler), list(sampler)) == (0, [])
    sampler.set_epoch(4)
    assert list(sampler) == whole


def test_keys_are_epoch_and_number_of_the_draw() -> None:
    plain, keyed = BalancedSampler(LABELS), BalancedSampler(LABELS, keyed=True)
    for sampler in (plain, keyed):
        sampler.set_epoch(2)
    assert list(keyed) == [(index, 2, draw) for draw, index in enumerate(plain)]
    second = BalancedSampler(LABELS, keyed=True, rank=1, num_replicas=2)
    second.set_epoch(2, start=3)
    assert list(second) == list(keyed)[7::2]


def test_labels_may_be_names() -> None:
    names = np.array(["rail", "tit", "wren"])[LABELS]
    assert list(BalancedSampler(names)) == list(BalancedSampler(LABELS))
    assert list(BalancedSampler(LABELS * 10)) == list(BalancedSampler(LABELS))


def test_one_class_and_one_sample() -> None:
    assert list(BalancedSampler([5], num_samples=3)) == [0, 0, 0]
    drawn = Counter(BalancedSampler([5] * 4, num_samples=4000))
    assert sorted(drawn) == [0, 1, 2, 3]


def test_frameworks_see_a_sampler_that_is_sharded_already() -> None:
    sampler = BalancedSampler(LABELS, rank=0, num_replicas=2)
    assert isinstance(sampler, DistributedSampler)
    loader = DataLoader(torch.arange(len(LABELS)), sampler=sampler, batch_size=64)  # type: ignore[arg-type]
    assert torch.cat(list(loader)).tolist() == list(sampler)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_device_and_number_of_devices_come_from_torch_when_the_epoch_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = BalancedSampler(LABELS)
    alone = list(sampler)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert list(sampler) == alone[1::2]
    assert len(sampler) == 500


def test_more_samples_than_multinomial_can_take() -> None:
    number = 2**24 + 10
    labels = np.zeros(number, dtype=np.uint8)
    labels[-5:] = 1
    drawn = np.array(list(BalancedSampler(labels, num_samples=2000)))
    assert set(drawn[labels[drawn] == 1]) == set(range(number - 5, number))
    assert abs((labels[drawn] == 1).mean() - 0.5) < 5 * 0.5 / 2000**0.5
    with pytest.raises(RuntimeError, match=r"2\^24"):
        torch.multinomial(torch.ones(number), 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": []}, r"`labels` must be \(N,\) classes.*with N > 0"),
        ({"labels": [[0, 1]]}, r"got int64 of shape \(1, 2\)"),
        ({"labels": [0.2, 0.8]}, "ints or strings.*got float64"),
        ({"labels": [0, -1]}, "`labels` must be >= 0, got -1: unlabelled"),
        ({"num_samples": 0}, "`num_samples` must be >= 1, got 0"),
        ({"seed": -1}, "`seed` must be >= 0"),
        ({"scheme": "cube"}, "`scheme` must be one of"),
        ({"rank": 1}, "`rank` and `num_replicas` must be given together"),
        ({"rank": 2, "num_replicas": 2}, "`rank` must be >= 0 and <= 1, got 2"),
        ({"rank": 0, "num_replicas": 0}, "`num_replicas` must be >= 1, got 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BalancedSampler(**{"labels": [0, 1], **arguments})
    with pytest.raises(ValueError, match="`epoch` must be >= 0"):
        BalancedSampler([0, 1]).set_epoch(-1)
