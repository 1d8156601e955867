from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowres_vision.data import Manifest, MultiResolutionDataset, Sample, collate
from lowres_vision.training import PairsDataModule


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
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-samples // batch_size)


def test_the_order_is_of_seed_and_epoch_alone() -> None:
    class Trainer:
        current_epoch = 0

    def order(epoch: int, seed: int = 0, workers: int = 0) -> list[list[int]]:
        data = PairsDataModule(Rows(50), Rows(1), batch_size=8, seed=seed, workers=workers)
        data.trainer = Trainer()  # type: ignore[assignment]
        data.trainer.current_epoch = epoch  # type: ignore[misc, union-attr]
        return rows(data)

    assert order(0) == order(0) == order(0, workers=2)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


def test_transforms_are_keyed_by_the_epoch(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")

    def noise(image: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        assert generator is not None
        return torch.rand(1, 1, 1, generator=generator)

    class Trainer:
        current_epoch = 0

    def draws(epoch: int, workers: int = 0) -> list[float]:
        train = MultiResolutionDataset(manifest, transform=noise)
        data = PairsDataModule(train, Rows(1), batch_size=8, workers=workers)
        data.trainer = Trainer()  # type: ignore[assignment]
        data.trainer.current_epoch = epoch  # type: ignore[misc, union-attr]
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
