"""Shards: the same samples as from files, shared out whole, and every fault named."""

import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lowres_vision.data import (
    Batch,
    DataError,
    Manifest,
    MultiResolutionDataset,
    PairBatch,
    RandomPairTransform,
    Sample,
    ShardDataset,
    collate,
    write_shards,
)


@pytest.fixture(scope="module")
def manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


@pytest.fixture(scope="module")
def folder(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards(manifest, folder, shards=5)
    return folder


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def rows_of(samples: Iterator[Any]) -> list[int]:
    return [sample.row for sample in samples]


@pytest.mark.parametrize("resolution", ["low", "high", "both", "pair"])
@pytest.mark.parametrize("shuffle", [0, 10])
def test_samples_are_those_of_the_files(
    resolution: Any, shuffle: int, folder: Path, manifest: Manifest
) -> None:
    def noise(image: Tensor, *, generator: torch.Generator) -> Tensor:
        return image[:, :4, :4].float() + torch.rand(3, 4, 4, generator=generator)

    transform = RandomPairTransform(crop=(0.25, 0.25)) if resolution == "pair" else noise
    files = MultiResolutionDataset(manifest, resolution=resolution, transform=transform, seed=7)
    stream = ShardDataset(
        folder, resolution=resolution, transform=transform, shuffle=shuffle, seed=7
    )
    stream.set_epoch(4)
    found = list(stream)
    assert sorted(rows_of(found)) == sorted([*range(36)] * (2 if resolution == "both" else 1))
    seen: set[int] = set()
    for sample in found:
        index = sample.row + (36 if sample.row in seen else 0)  # "both": the high image is second
        seen.add(sample.row)
        expected = files[(index, 4)]
        assert type(sample) is type(expected)
        assert sample.target == expected.target
        images = 1 if isinstance(sample, Sample) else 2
        assert all(
            torch.equal(a, b) for a, b in zip(sample[:images], expected[:images], strict=True)
        )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_share_the_rows_out(workers: int, folder: Path) -> None:
    dataset = ShardDataset(folder, resolution="pair", shuffle=8)
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert all(isinstance(batch, PairBatch) for batch in batches)
    assert batches[0].low.shape == (5, 3, 64, 64)
    assert batches[0].low.dtype == torch.uint8
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(36))


@pytest.mark.parametrize("devices", [2, 5])
def test_devices_share_the_rows_out(
    devices: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    for rank in range(devices):
        monkeypatch.setenv("RANK", str(rank))
        found.append(rows_of(iter(ShardDataset(folder, shuffle=4))))
    assert sorted(itertools.chain(*found)) == list(range(36))
    assert all(found)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="at least one per device: 5 for 6"):
        next(iter(ShardDataset(folder)))


def test_the_order_is_a_function_of_seed_and_epoch(folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        dataset = ShardDataset(folder, shuffle=100, seed=seed)
        dataset.set_epoch(epoch)
        return rows_of(iter(dataset))

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert orders == [order(0, 0), order(0, 1), order(1, 0)]
    assert len({tuple(rows) for rows in orders}) == 3
    plain = rows_of(iter(ShardDataset(folder, shuffle=0)))
    assert plain == np.random.default_rng(0).permutation(36).tolist()


def test_workers_that_persist_hear_of_the_epoch(folder: Path) -> None:
    dataset = ShardDataset(folder, shuffle=100)
    loader = DataLoader(
        dataset, batch_size=9, num_workers=1, persistent_workers=True, collate_fn=collate
    )
    first = [batch.rows.tolist() for batch in loader]
    dataset.set_epoch(1)
    second = [batch.rows.tolist() for batch in loader]
    dataset.set_epoch(0)
    assert first == [batch.rows.tolist() for batch in loader] != second


class TestWriting:
    def test_shards_are_even_and_the_same_every_time(
        self, manifest: Manifest, folder: Path, tmp_path: Path
    ) -> None:
        index = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
        assert list(index["samples"].values()) == [8, 7, 7, 7, 7]
        assert index["data_sha256"] == manifest.digest()
        assert ShardDataset(folder).samples == 36
        for path in write_shards(manifest, tmp_path, shards=5):
            assert path.read_bytes() == (folder / path.name).read_bytes()
        with pytest.raises(FileExistsError, match="holds shards"):
            write_shards(manifest, tmp_path)

    def test_files_travel_byte_for_byte(self, manifest: Manifest, tmp_path: Path) -> None:
        (path,) = write_shards(manifest, tmp_path, rows=[7, 3], shards=4, seed=None)[:1]
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert list(members) == ["000000007.low.png", "000000007.high.jpg", "000000007.json"]
        assert members["000000007.low.png"] == (manifest.root / manifest.low[7]).read_bytes()
        assert json.loads(members["000000007.json"]) == {
            "id": manifest.ids[7],
            "label": manifest.classes[manifest.labels[7]],
            "row": 7,
            "group": None,
        }

    def test_a_missing_file_leaves_no_shard(self, toy: Path, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "test.csv").write_text("img_path\na.png\n")
        manifest = Manifest.read_csv(tmp_path / "test.csv")
        (tmp_path / "a.png").unlink()
        with pytest.raises(DataError, match=r"row 1, a\.png: cannot be read"):
            write_shards(manifest, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
        with pytest.raises(ValueError, match="`rows` is empty"):
            write_shards(manifest, tmp_path / "out", rows=[])


class TestShardsOfOthers:
    def test_plain_names_and_class_numbers(self, tmp_path: Path) -> None:
        path = write_tar(
            tmp_path / "a.tar",
            {"a/x.png": png(), "a/x.cls": b"1", "17.PNG": png(), "17.cls": b"0\n"},
        )
        first, second = ShardDataset(path, classes=["rail", "tit"], shuffle=0)
        assert (first.target, second.target, second.row) == (1, 0, 17)
        assert 0 <= first.row < 2**63
        assert first.row == rows_of(iter(ShardDataset([path], shuffle=0)))[0]

    def test_unlabelled_and_of_mixed_sizes(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", {"1.jpg": png(8), "2.jpg": png(16)})
        (batch,) = DataLoader(ShardDataset(path, shuffle=0), batch_size=2, collate_fn=collate)
        assert isinstance(batch, Batch)
        assert batch.targets.tolist() == [-1, -1]
        assert [image.shape[-1] for image in batch.images] == [8, 16]


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.png": png()[:45]}, "1.png: cannot be decoded"),
        ({"1.png": b"<html>"}, "1.png: cannot be decoded (no image format is recognised)"),
        ({"1.json": b"{}"}, "1: must have one low-resolution image, has none"),
        ({"1.png": png(), "1.jpg": png()}, "must have one low-resolution image, has png and jpg"),
        ({"1.png": png(), "1.json": b"{"}, "1: has JSON that cannot be read"),
        ({"1.png": png(), "1.json": b"[1]"}, "has JSON that is no object"),
        ({"1.png": png(), "1.json": b'{"label": 3}'}, "with a text as its `label`"),
        ({"1.png": png(), "1.json": b'{"label": "Tit"}'}, "it differs from 'tit' only in case"),
        ({"1.png": png(), "1.json": b'{"row": -1}'}, "has `row` -1, no number of a row"),
        ({"1.png": png(), "1.json": b'{"row": true}'}, "has `row` True"),
        ({"1.png": png(), "1.cls": b"2"}, "has class number b'2', not one of 2"),
        ({"1.png": png(), "1.cls": b"tit"}, "has class number b'tit'"),
        ({"1.pyd": pickle.dumps(Bomb())}, "must have one low-resolution image, has none"),
        ({"1.pickle": pickle.dumps(Bomb()), "1.pth": pickle.dumps(Bomb())}, "has none"),
    ],
)
def test_a_bad_sample_is_named_with_shard_and_key(
    members: dict[str, bytes], words: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "bad.tar", {"0.png": png(), **members})
    samples = iter(ShardDataset(path, classes=["rail", "tit"], shuffle=0))
    assert next(samples).row == 0
    with pytest.raises(DataError) as error:
        next(samples)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: 1")
    assert error.value.faults[0].remedy


def test_pickles_beside_an_image_are_not_touched(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())
    path = write_tar(tmp_path / "a.tar", {"1.png": png(), "1.pyd": bomb, "1.pth": bomb})
    assert len(list(ShardDataset(path))) == 1


class TestBrokenShards:
    @pytest.fixture
    def copy(self, manifest: Manifest, tmp_path: Path) -> Path:
        write_shards(manifest, tmp_path, shards=1, seed=None)
        return tmp_path

    def refusal(self, folder: Path, **options: Any) -> str:
        with pytest.raises(DataError) as error:
            list(ShardDataset(folder, **options))
        return str(error.value)

    def test_a_shard_that_is_cut_off_is_named_wherever_it_was_cut(self, copy: Path) -> None:
        path = copy / "shard-00000.tar"
        whole = path.read_bytes()
        with tarfile.open(path) as tar:
            edge = next(member.offset for member in tar if member.name == "000000020.low.png")
        for end in (0, 100, 512, 5000, edge - 700, edge, edge + 512, edge + 600, len(whole) // 2):
            path.write_bytes(whole[:end])
            told = self.refusal(copy, shuffle=0)
            assert told.startswith(str(path))
            assert "cannot be read after" in told or "its index says 36" in told

    def test_what_is_no_shard_is_named(self, copy: Path) -> None:
        path = copy / "shard-00000.tar"
        path.write_bytes(b"<html>not found</html>" * 100)
        assert "cannot be read after 0 samples (ReadError" in self.refusal(copy)
        path.unlink()
        assert "cannot be read after 0 samples (FileNotFoundError" in self.refusal(copy)

    def test_twins_are_named(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for _ in range(2):
                about = tarfile.TarInfo("1.png")
                about.size = len(png())
                tar.addfile(about, io.BytesIO(png()))
        assert "cannot be read after 0 samples (ValueError" in self.refusal(tmp_path / "a.tar")

    @pytest.mark.parametrize(
        "text",
        ["", "{}", "[]", '{"format": "x", "version": 1}', '{"format": "lowres-vision shards", '
         '"version": 1, "classes": [], "samples": {"../a.tar": 1}}'],
    )  # fmt: skip
    def test_a_bad_index_is_named(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "shards.json").write_text(text)
        with pytest.raises(DataError, match=r"shards\.json: has no index of shards"):
            ShardDataset(tmp_path)


def test_a_mask_writes_no_shards(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`rows` must be \(n,\) row numbers, got bool"):
        write_shards(manifest, tmp_path / "new", rows=manifest.labels == 0)
    assert not (tmp_path / "new").exists()


def test_refusals(tmp_path: Path, folder: Path) -> None:
    for address in ("pipe:cat a.tar", "file:a.tar", "s3://birds/a.tar"):
        with pytest.raises(ValueError, match="must be paths or https: addresses"):
            ShardDataset([address])
    with pytest.raises(DataError, match="has no index of shards"):
        ShardDataset(tmp_path)
    with pytest.raises(DataError, match="shards: are none"):
        ShardDataset([])
    with pytest.raises(ValueError, match="`resolution` must be one of"):
        ShardDataset(folder, resolution="medium")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`shuffle` must be >= 0"):
        ShardDataset(folder, shuffle=-1)
    with pytest.raises(ValueError, match="`epoch` must be >= 0"):
        ShardDataset(folder).set_epoch(-1)


def test_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ModuleNotFoundError, match=r"lowres-vision\[shards\]"):
        ShardDataset(folder)
