from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowres_vision.data import BalancedSampler, Manifest, MultiResolutionDataset, Sample, collate
from lowres_vision.training import PairsDataModule, _data


class Rows(torch.utils.data.Dataset[Sample]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), index % 3, index)


def rows(data: PairsDataModule) -> list[list[int]]:
    return [batch.rows.tolist() for batch in data.train_dataloader()]


@given(samples=st.integers(1, 200), batch_size=st.integers(1, 64))
def test_every_sample_once_in_even_batches(samples: int, batch_size: int) -> None:
    batches = rows(PairsDataModule(Rows(samples), Rows(1), batch_size=batch_size))
    assert sorted(np.concatenate(batches).tolist()) == list(range(samples))
    sizes = [len(batch) for batch in batches]
    pairs_of_odd = batch_size == 2 and samples % 2 == 1 and samples > 1
    assert max(sizes) <= batch_size + pairs_of_odd
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-samples // batch_size) - pairs_of_odd
    assert min(sizes) > 1 or batch_size == 1 or samples == 1  # BatchNorm cannot train on one


def test_the_order_is_of_seed_and_epoch_alone() -> None:
    def order(epoch: int, seed: int = 0, workers: int = 0) -> list[list[int]]:
        data = PairsDataModule(Rows(50), Rows(1), batch_size=8, seed=seed, workers=workers)
        data.trainer = Trainer(epoch, 0, 7)  # type: ignore[assignment]
        return rows(data)

    assert order(0) == order(0) == order(0, workers=2)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


class Trainer:
    """What the loaders ask a trainer, in the middle of a run."""

    def __init__(self, epoch: int, done: int, batches: int) -> None:
        self.current_epoch, self.num_training_batches = epoch, batches
        self.fit_loop = type("Loop", (), {"batch_idx": done - 1})()


@given(samples=st.integers(1, 30), per_epoch=st.integers(1, 70), batch_size=st.integers(1, 9))
def test_short_epochs_go_on_where_the_last_one_stopped(
    samples: int, per_epoch: int, batch_size: int
) -> None:
    data = PairsDataModule(
        Rows(samples), Rows(1), batch_size=batch_size, samples_per_epoch=per_epoch
    )
    drawn: list[int] = []
    for epoch in range(2 * samples):
        data.trainer = Trainer(epoch, 0, 1)  # type: ignore[assignment]
        indices = [i for batch in data.train_dataloader().batch_sampler for i in batch]
        assert len(indices) == per_epoch
        drawn += indices
    assert set(np.bincount(drawn, minlength=samples)) == {2 * per_epoch}


def test_a_short_epochs_samples_are_keyed_by_the_pass(toy: Path) -> None:
    train = MultiResolutionDataset(Manifest.read_csv(toy / "train.csv"))  # 36 rows
    data = PairsDataModule(train, Rows(1), batch_size=100, samples_per_epoch=54)
    data.trainer = Trainer(1, 0, 1)  # type: ignore[assignment]
    (batch,) = data.train_dataloader().batch_sampler
    assert [key for _, key in batch] == [1] * 18 + [2] * 36


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_next_batch(workers: int) -> None:
    def data(epoch: int) -> PairsDataModule:
        module = PairsDataModule(Rows(50), Rows(1), batch_size=8, workers=workers)
        module.trainer = Trainer(epoch, 3, 7)  # type: ignore[assignment]
        return module

    state = data(2).state_dict()
    assert state == {"epoch": 2, "batch": 3}
    resumed = data(0)
    loader = resumed.train_dataloader()
    batches = iter(loader)  # as a schedule that asks Lightning for the number of steps has it do
    resumed.load_state_dict(state)
    resumed.trainer = Trainer(2, 3, 7)  # type: ignore[assignment]
    assert [batch.rows.tolist() for batch in batches] == rows(data(2))[3:]
    resumed.trainer = Trainer(3, 0, 7)  # type: ignore[assignment]
    assert [batch.rows.tolist() for batch in loader] == rows(data(3))
    assert len(loader) == 7


def test_between_two_epochs_the_next_batch_is_the_first() -> None:
    data = PairsDataModule(Rows(50), Rows(1), batch_size=8)
    data.trainer = Trainer(3, 7, 7)  # type: ignore[assignment]
    assert data.state_dict() == {"epoch": 3, "batch": 0}


def test_a_sampler_draws_anew_each_epoch() -> None:
    sampler = BalancedSampler([0] * 40 + [1] * 10, num_samples=30, rank=0, num_replicas=1)
    data = PairsDataModule(Rows(50), Rows(1), batch_size=8, sampler=sampler)

    def order(epoch: int) -> list[int]:
        data.trainer = Trainer(epoch, 0, 4)  # type: ignore[assignment]
        return [index for batch in rows(data) for index in batch]

    sampler.set_epoch(1)
    assert order(1) == list(sampler)
    assert order(0) != order(1)
    assert [len(batch) for batch in rows(data)] == [8, 8, 7, 7]


def test_every_process_reads_whole_batches_and_a_turn_of_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = PairsDataModule(Rows(20), Rows(7), batch_size=4)
    loader = data.val_dataloader()
    alone = rows(data)
    seen = []
    for rank in range(3):
        monkeypatch.setattr(_data, "rank_and_world", lambda rank=rank: (rank, 3))
        assert rows(data) == alone
        seen.append(torch.cat([batch.rows for batch in loader]).tolist())
    assert seen == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    data = PairsDataModule(Rows(20), Rows(7), batch_size=2)
    with pytest.raises(ValueError, match="`batch_size` must give each of 3 processes a sample"):
        data.train_dataloader()


def test_transforms_are_keyed_by_the_epoch(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")

    def noise(image: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        assert generator is not None
        return torch.rand(1, 1, 1, generator=generator)

    def draws(epoch: int, workers: int = 0) -> list[float]:
        train = MultiResolutionDataset(manifest, transform=noise)
        data = PairsDataModule(train, Rows(1), batch_size=8, workers=workers)
        data.trainer = Trainer(epoch, 0, 5)  # type: ignore[assignment]
        return torch.cat([batch.images for batch in data.train_dataloader()]).flatten().tolist()

    assert draws(0) == draws(0) == draws(0, workers=2)
    assert not set(draws(0)) & set(draws(1))


def test_held_out_rows_come_in_order_unmixed() -> None:
    def mixing(samples: list[Sample]) -> None:
        raise AssertionError("held-out samples are never mixed")

    data = PairsDataModule(Rows(3), Rows(10), predict=Rows(7), batch_size=2, collate=mixing)
    assert torch.cat([batch.rows for batch in data.val_dataloader()]).tolist() == list(range(10))
    assert torch.cat([batch.rows for batch in data.predict_dataloader()]).tolist() == list(range(7))
    assert collate([Rows(3)[1]]).rows.tolist() == [1]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        PairsDataModule(Rows(3), Rows(3), batch_size=0)
    with pytest.raises(ValueError, match="`workers` must be >= 0, got -1"):
        PairsDataModule(Rows(3), Rows(3), workers=-1)
    with pytest.raises(ValueError, match="`samples_per_epoch` must be >= 1, got 0"):
        PairsDataModule(Rows(3), Rows(3), samples_per_epoch=0)
    sampler = BalancedSampler([0, 1, 1], rank=0, num_replicas=1)
    with pytest.raises(ValueError, match="`samples_per_epoch` must be None with a `sampler`"):
        PairsDataModule(Rows(3), Rows(3), sampler=sampler, samples_per_epoch=2)
