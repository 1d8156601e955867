from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lowres_vision.data import (
    BalancedSampler,
    DataError,
    Manifest,
    MultiResolutionDataset,
    ResidentLoader,
    collate,
    decode_image,
)
from lowres_vision.mixing import CutMixCollator


@pytest.fixture(scope="module")
def manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


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


def rows_of(loader: ResidentLoader) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


def flat(parts: list[list[Any]]) -> list[Any]:
    return [item for part in parts for item in part]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("resolution", ["low", "high", "both", "pair"])
def test_batches_are_those_of_a_data_loader(
    manifest: Manifest, tmp_path: Path, resolution: Any, cached: bool
) -> None:
    rows = [30, 2, 17, 2, 8]
    plain = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
    dataset = MultiResolutionDataset(
        manifest, rows=rows, resolution=resolution, cache=tmp_path if cached else None
    )
    sampler = [[(3, 0), (0, 0)], [(1, 0)], [(4, 0), (2, 0), (1, 0)]]
    for function in (collate, CutMixCollator(3, p=1.0, size=48)):
        expected = DataLoader(plain, batch_sampler=sampler, collate_fn=function)  # type: ignore[arg-type]
        loader = ResidentLoader(dataset, batch_sampler=sampler, collate=function)
        assert len(loader) == 3
        for batch, other in zip(loader, expected, strict=True):
            assert_equal(batch, other)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_on_the_cpu(manifest: Manifest) -> None:
    for resolution in ("low", "both", "pair"):
        dataset = MultiResolutionDataset(manifest, resolution=resolution)  # type: ignore[arg-type]
        functions: list[Any] = [collate, CutMixCollator(3, p=1.0, size=48)]
        if resolution != "both":
            functions.append(CutMixCollator(3, p=1.0))
        for function in functions:
            loaders = [
                ResidentLoader(dataset, batch_size=8, shuffle=True, collate=function, device=device)
                for device in ("cpu", "cuda")
            ]
            for batch, other in zip(*loaders, strict=True):
                assert other.targets.is_cuda
                assert all(tensor.is_cuda for tensor in other[0])
                back = [
                    [image.cpu() for image in field] if isinstance(field, list) else field.cpu()
                    for field in other
                    if isinstance(field, torch.Tensor | list)
                ]
                assert_equal(back, [f for f in batch if isinstance(f, torch.Tensor | list)])


def test_images_survive_what_a_batch_suffers(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest, rows=[1, 2])
    loader = ResidentLoader(dataset, batch_size=2)
    (first,) = loader
    first.images.zero_()  # type: ignore[union-attr]
    (second,) = loader
    assert torch.equal(second.images[0], dataset[0].image)  # type: ignore[union-attr]


def test_the_order_is_a_function_of_seed_and_epoch(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest)

    def order(seed: int, epoch: int) -> list[list[int]]:
        loader = ResidentLoader(dataset, batch_size=10, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        torch.manual_seed(epoch)  # which must not matter
        return rows_of(loader)

    first = order(0, 1)
    assert first == order(0, 1)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(flat(first)) == list(range(36))
    assert [len(batch) for batch in first] == [9, 9, 9, 9]
    still = ResidentLoader(dataset, batch_size=10)
    still.set_epoch(1)
    assert flat(rows_of(still)) == list(range(36))


def test_an_epoch_goes_on_where_it_stopped(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest)
    loader = ResidentLoader(dataset, batch_size=8, shuffle=True)
    loader.set_epoch(2)
    whole = rows_of(loader)
    loader.set_epoch(2, start=3)
    assert len(loader) == 2
    assert rows_of(loader) == whole[3:]
    loader.set_epoch(3)
    assert len(rows_of(loader)) == 5


def test_devices_share_out_the_batches(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest, rows=range(35))
    for replicas in (1, 2, 3):
        loaders = [
            ResidentLoader(dataset, batch_size=4, shuffle=True, rank=r, num_replicas=replicas)
            for r in range(replicas)
        ]
        parts = [rows_of(loader) for loader in loaders]
        assert len({len(part) for part in parts}) == 1
        assert {len(loader) for loader in loaders} == {len(parts[0])}
        sizes = {len(batch) for part in parts for batch in part}
        assert max(sizes) <= 4
        assert max(sizes) - min(sizes) <= 1
        assert sorted(flat(flat(parts))) == list(range(35))
    tiny = MultiResolutionDataset(manifest, rows=[0])
    with pytest.raises(ValueError, match="a sample for each of 2 devices, got 1"):
        list(ResidentLoader(tiny, rank=0, num_replicas=2))


def test_a_batch_sampler_is_told_the_epoch(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest)
    sampler = BalancedSampler(manifest.labels, keyed=True, rank=0, num_replicas=1)

    class Batches(BatchSampler):
        def set_epoch(self, epoch: int) -> None:
            sampler.set_epoch(epoch)

    loader = ResidentLoader(dataset, batch_sampler=Batches(sampler, 12, drop_last=False))
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(rows_of(loader))
    assert epochs[0] == epochs[2] != epochs[1]
    with pytest.raises(ValueError, match="`start` is for the `batch_sampler`"):
        loader.set_epoch(0, start=1)
    plain = BatchSampler(SequentialSampler(dataset), 5, drop_last=True)
    loader = ResidentLoader(dataset, batch_sampler=plain)
    loader.set_epoch(3)
    assert rows_of(loader) == [list(range(i, i + 5)) for i in range(0, 35, 5)]


def test_every_damaged_file_is_named(toy: Path, tmp_path: Path) -> None:
    lines = ["img_path,label"]
    for number in range(4):
        data = (toy / "train" / f"TRAIN_{number:05}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(data[:500] if number in (0, 2) else data)
        lines.append(f"{number}.png,a")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    manifest = Manifest.read_csv(tmp_path / "train.csv")
    with pytest.raises(DataError) as caught:
        ResidentLoader(MultiResolutionDataset(manifest))
    assert [fault.row for fault in caught.value.faults] == [1, 3]
    (batch,) = ResidentLoader(MultiResolutionDataset(manifest, rows=[3, 1]))
    assert batch.rows.tolist() == [3, 1]
    for image, row in zip(batch.images, (3, 1), strict=True):  # type: ignore[union-attr]
        assert torch.equal(image, decode_image(tmp_path / f"{row}.png"))


def test_refusals(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(manifest, transform=lambda image: image)
    with pytest.raises(TypeError, match=r"without transform.*got one with a transform"):
        ResidentLoader(dataset)
    with pytest.raises(TypeError, match=r"must be a MultiResolutionDataset .*got <class 'list'>"):
        ResidentLoader([1, 2])  # type: ignore[arg-type]
    dataset = MultiResolutionDataset(manifest)
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        ResidentLoader(dataset, batch_size=0)
    with pytest.raises(ValueError, match="must be given together"):
        ResidentLoader(dataset, rank=0)
    with pytest.raises(ValueError, match=r"`rank` must be >= 0 and <= 1, got 2"):
        ResidentLoader(dataset, rank=2, num_replicas=2)
    with pytest.raises(ValueError, match="`epoch` must be >= 0, got -1"):
        ResidentLoader(dataset).set_epoch(-1)
