import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lowres_vision._batch import Fetched
from lowres_vision.data import (
    Batch,
    DataError,
    Fault,
    Manifest,
    MultiResolutionDataset,
    Pair,
    PairBatch,
    RandomPairTransform,
    Sample,
    collate,
)
from lowres_vision.mixing import CutMixCollator, MixCollator, MixupCollator


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
    for mask in (manifest.labels == 1, [True, False], [0.5, 1.7], [[0, 1], [2, 3]]):
        with pytest.raises(TypeError, match=r"`rows` must be \(n,\) row numbers, got .* of a mask"):
            MultiResolutionDataset(manifest, rows=mask)  # type: ignore[arg-type]
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


RESOLUTIONS = ["low", "high", "both", "pair"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def assert_equal(first: Any, second: Any) -> None:
    """Raise unless two values, batches for instance, are equal in type and in every field."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_cached_samples_are_the_decoded_ones(
    manifest: Manifest, cache: Path, resolution: Any
) -> None:
    rows = [30, 2, 17, 2]
    plain = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
    cached = MultiResolutionDataset(manifest, rows=rows, resolution=resolution, cache=cache)
    order = [*range(len(plain))][::-1]
    fetched = cached.__getitems__(order)
    assert isinstance(fetched, Fetched)
    assert len(fetched) == len(order)
    for index, sample in zip(order, fetched, strict=True):
        assert_equal(sample, plain[index])
        assert_equal(cached[index], plain[index])
    for sample, part in zip(plain.__getitems__(order[1:3]), fetched[1:3], strict=True):
        assert_equal(sample, part)
    batch = collate([plain[index] for index in order])
    assert_equal(collate(fetched), batch)
    assert_equal(collate(list(fetched)), batch)
    assert_equal(collate(cached.__getitems__([(index, 3, 1) for index in order])), batch)


def test_fetching_knows_its_bounds_and_subclasses(manifest: Manifest, cache: Path) -> None:
    class Doubled(MultiResolutionDataset):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index)._replace(target=7)

    for index in (-1, 36):
        with pytest.raises(IndexError, match=f"sample {index} of 36"):
            MultiResolutionDataset(manifest, cache=cache).__getitems__([0, index])
    samples = Doubled(manifest, cache=cache).__getitems__([0, 1])
    assert [sample.target for sample in samples] == [7, 7]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_the_batches_are_the_same_for_any_number_of_workers(
    manifest: Manifest, cache: Path, resolution: Any
) -> None:
    def batches(transform: Any, folder: Path | None, workers: int) -> list[Any]:
        dataset = MultiResolutionDataset(
            manifest, rows=range(10), resolution=resolution, transform=transform, cache=folder
        )
        order = [(index, 5) for index in torch.randperm(len(dataset)).tolist()]
        loader = DataLoader(
            dataset, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate
        )
        return list(loader)

    flip = RandomPairTransform() if resolution == "pair" else random_flip
    for transform in (None, flip):
        torch.manual_seed(0)
        expected = batches(transform, None, 0)
        for workers in (0, 1, 2, 4) if resolution == "low" else (0, 2):
            torch.manual_seed(0)
            found = batches(transform, cache, workers)
            for batch, other in zip(found, expected, strict=True):
                assert_equal(batch, other)


def random_flip(image: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    return image.flip(-1) if torch.rand((), generator=generator) < 0.5 else image


def test_a_spawned_worker_opens_the_cache_again(manifest: Manifest, cache: Path) -> None:
    dataset = MultiResolutionDataset(manifest, rows=[4, 3], resolution="pair", cache=cache)
    again = pickle.loads(pickle.dumps(dataset))
    assert_equal(collate(again.__getitems__([1, 0])), collate([dataset[1], dataset[0]]))


def test_collators_take_fetched_samples_like_any_others(manifest: Manifest, cache: Path) -> None:
    for resolution in RESOLUTIONS:
        dataset = MultiResolutionDataset(manifest, resolution=resolution, cache=cache)  # type: ignore[arg-type]
        indices = [0, 20, 9, 33]
        for collator in (
            CutMixCollator(3, p=1.0),
            CutMixCollator(3, p=1.0, size=96),
            MixCollator([MixupCollator(3, p=1.0)]),
        ):
            fetched = dataset.__getitems__(indices)
            assert_equal(collator(fetched), collator(list(fetched)))  # type: ignore[arg-type]


def test_a_damaged_image_of_the_cache_is_an_error_not_its_neighbour(
    manifest: Manifest, tmp_path: Path
) -> None:
    dataset = MultiResolutionDataset(manifest, cache=tmp_path)
    expected = dataset[6].image  # type: ignore[union-attr]
    (path,) = tmp_path.glob("*.images")
    data = bytearray(path.read_bytes())
    data[len(data) - 31 * 3 * 64 * 64] ^= 4  # of 36 images, the first byte of the sixth
    path.unlink()
    path.write_bytes(data)
    damaged = MultiResolutionDataset(manifest, cache=tmp_path)
    for workers in (0, 1):
        loader = DataLoader(damaged, batch_size=9, num_workers=workers, collate_fn=collate)
        with pytest.raises(DataError, match=r"row 6: holds a damaged image"):
            next(iter(loader))
    assert torch.equal(damaged[6].image, expected)  # type: ignore[union-attr]
