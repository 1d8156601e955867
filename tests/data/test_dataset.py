import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.data import (
    Batch,
    DataError,
    Fault,
    Manifest,
    MultiResolutionDataset,
    Pair,
    PairBatch,
    Sample,
    collate,
)


@pytest.fixture(scope="module")
def manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_low_and_high_are_the_files_of_the_row(manifest: Manifest, toy: Path) -> None:
    rows = [7, 0, 31]
    for resolution, folder, suffix in [("low", "train", "png"), ("high", "upscale_train", "jpg")]:
        dataset = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
        assert len(dataset) == 3
        for position, row in enumerate(rows):
            image, target, found = dataset[position]
            assert found == row
            assert target == manifest.labels[row]
            assert torch.equal(image, pixels(toy / folder / f"TRAIN_{row:05}.{suffix}"))


def test_pairs_hold_both_resolutions_of_one_picture(manifest: Manifest) -> None:
    pair = MultiResolutionDataset(manifest, resolution="pair")[5]
    assert isinstance(pair, Pair)
    assert pair.row == 5
    assert pair.low.shape == (3, 64, 64)
    assert pair.high.shape == (3, 256, 256)
    shrunk = pair.high.float().reshape(3, 64, 4, 64, 4).mean(dim=(2, 4))
    assert (shrunk - pair.low).abs().mean() < 3  # JPEG's own error; another picture is > 30 off


def test_both_takes_each_row_twice(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest, rows=[3, 4], resolution="both")
    samples = [dataset[i] for i in range(len(dataset))]
    assert [(sample.row, sample.image.shape[-1]) for sample in samples] == [
        (3, 64),
        (4, 64),
        (3, 256),
        (4, 256),
    ]


def test_transforms_see_uint8_images(manifest: Manifest) -> None:
    low = MultiResolutionDataset(manifest, transform=lambda image: image.float() / 255)
    assert low[0].image.dtype == torch.float32
    swap = MultiResolutionDataset(
        manifest, resolution="pair", transform=lambda low, high: (high, low)
    )
    assert swap[0].low.shape == (3, 256, 256)


def test_unlabelled_rows_have_target_minus_one(toy: Path) -> None:
    dataset = MultiResolutionDataset(Manifest.read_csv(toy / "test.csv"))
    assert {dataset[i].target for i in range(len(dataset))} == {-1}
    with pytest.raises(DataError, match="has no high-resolution column, which resolution='pair'"):
        MultiResolutionDataset(dataset.manifest, resolution="pair")


def test_refusals(manifest: Manifest) -> None:
    with pytest.raises(IndexError, match=r"`rows` must be in 0..35, got 0..36"):
        MultiResolutionDataset(manifest, rows=[0, 36])
    with pytest.raises(ValueError, match="`resolution` must be one of 'low', 'high'"):
        MultiResolutionDataset(manifest, resolution="medium")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="sample 36 of 36"):
        MultiResolutionDataset(manifest)[36]


def test_a_damaged_row_is_an_error_not_its_neighbour(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes((toy / "train" / "TRAIN_00000.png").read_bytes()[:500])
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "train.csv").write_text("img_path,label\nbad.png,a\ngood.png,b\n")
    dataset = MultiResolutionDataset(Manifest.read_csv(tmp_path / "train.csv"))
    with pytest.raises(DataError, match=r"bad\.png: cannot be decoded"):
        dataset[0]
    assert dataset[1].row == 1
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, collate_fn=collate)
    with pytest.raises(DataError, match=r"bad\.png: cannot be decoded"):
        next(iter(loader))


def test_collate_stacks_one_size_and_lists_several() -> None:
    small, large = torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)
    batch = collate([Sample(small, 1, 10), Sample(small, 0, 11)])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (2, 3, 4, 4)  # type: ignore[union-attr]
    assert batch.targets.tolist() == [1, 0]
    assert batch.rows.tolist() == [10, 11]
    ragged = collate([Sample(small, 1, 10), Sample(large, 0, 11)])
    assert [image.shape[-1] for image in ragged.images] == [4, 8]  # type: ignore[union-attr]
    pairs = collate([Pair(small, large, 1, 10)] * 2)
    assert isinstance(pairs, PairBatch)
    assert pairs.high.shape == (2, 3, 8, 8)  # type: ignore[union-attr]


def test_a_data_error_survives_pickling() -> None:
    error = DataError("train.csv", [Fault("is odd", "mend it", row=3, column="label")])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "train.csv: row 3, column `label`: is odd; mend it"
    assert again.faults == error.faults
