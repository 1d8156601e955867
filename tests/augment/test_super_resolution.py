import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lowres_vision.augment import SRCNN, SuperResolution, psnr
from lowres_vision.data import DataError, Manifest, MultiResolutionDataset, decode_image


def srcnn(seed: int = 0, scale: int = 2) -> SRCNN:
    """A network whose every layer matters, unlike a fresh one's last."""
    network = SRCNN(scale, kernel_sizes=(5, 3, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.05, generator=generator)
    return network


def images(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


class Counting(nn.Module):
    """Repeats pixels; counts what it is asked, and keeps the largest input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_up = nn.Upsample(scale_factor=2)
        self.seen = 0
        self.largest = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        self.largest = max(self.largest, *x.shape[-2:])
        return self.scale_up(x)  # type: ignore[no-any-return]


def test_result_is_the_networks_in_levels() -> None:
    batch, network = images(2, 3, 12, 15), srcnn()
    got = SuperResolution(network, scale=2)(batch)
    with torch.no_grad():
        expected = (network(batch.float() / 255).clamp(0, 1) * 255).round()
    assert got.shape == (2, 3, 24, 30)
    assert got.dtype == torch.uint8
    assert int((got.int() - expected.int()).abs().max()) <= 1  # halves round either way
    assert float((got != expected).float().mean()) < 1e-3


def test_one_image_and_lists_of_several_sizes() -> None:
    upscale = SuperResolution(srcnn(), scale=2)
    first, second = images(3, 12, 12), images(3, 9, 14)
    both = upscale([first, second])
    assert isinstance(both, list)
    assert torch.equal(both[0], upscale(first))
    assert [tuple(image.shape) for image in both] == [(3, 24, 24), (3, 18, 28)]
    stacked = SuperResolution(srcnn(), scale=2, size=20)([first, second])
    assert isinstance(stacked, torch.Tensor)
    assert stacked.shape == (2, 3, 20, 20)


def test_size_resizes_the_networks_output() -> None:
    batch = images(1, 3, 16, 16)
    whole = SuperResolution(nn.Upsample(scale_factor=4), scale=4)(batch)
    half = SuperResolution(nn.Upsample(scale_factor=4), scale=4, size=(32, 64))(batch)
    assert whole.shape == (1, 3, 64, 64)
    pixels = Image.fromarray(whole[0].permute(1, 2, 0).numpy()).resize((64, 32), 3)
    expected = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(32, 64, 3)
    assert int((half[0].permute(1, 2, 0).int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("size", [(40, 40), (37, 21), (5, 70)])
def test_tiles_leave_no_seam_where_the_overlap_covers_the_field(size: tuple[int, int]) -> None:
    # 2 + 1 + 1 pixels after the enlargement by 2, and two taps of the bicubic before it: 4.
    batch, network = images(2, 3, *size), srcnn()
    whole = SuperResolution(network, scale=2)(batch).int()
    tiled = SuperResolution(network, scale=2, tile=16, overlap=4)(batch).int()
    difference = (whole - tiled).abs()
    assert int(difference.max()) <= 1  # float sums in another order, then rounding
    assert float((difference > 0).float().mean()) < 1e-3
    if max(size) > 16:
        seams = SuperResolution(network, scale=2, tile=16, overlap=0)(batch).int()
        assert int((whole - seams).abs().max()) > 10


def test_tiles_bound_what_the_network_sees() -> None:
    counting = Counting()
    SuperResolution(counting, scale=2, tile=10, overlap=3)(images(1, 3, 64, 40))
    assert counting.largest == 16
    assert counting.seen == 7 * 4


def test_it_stays_in_evaluation_mode_and_frozen() -> None:
    upscale = SuperResolution(nn.Sequential(srcnn(), nn.Dropout(0.5)), scale=2)
    around = nn.Sequential(upscale).train()
    assert not any(module.training for module in upscale.modules())
    assert not any(parameter.requires_grad for parameter in around.parameters())
    assert torch.equal(upscale(images(1, 3, 8, 8)), upscale(images(1, 3, 8, 8)))


def test_apply_puts_every_rows_image_beside_its_low_one(toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    network = srcnn()
    upscale = SuperResolution(network, scale=2)
    progress: list[tuple[int, int]] = []
    made = upscale.apply_to(manifest, tmp_path, callback=lambda *at: progress.append(at))
    assert progress[-1] == (36, 36)
    for name in ("low", "ids", "classes", "source"):
        assert getattr(made, name) == getattr(manifest, name)
    dataset = MultiResolutionDataset(made, resolution="high")
    for row in (0, 17, 35):
        low = decode_image(manifest.root / manifest.low[row])
        expected = upscale(low).int()
        # A batch's sums may be ordered otherwise than one image's, and then rounded.
        assert int((dataset[row].image.int() - expected).abs().max()) <= 1
    upscale.verify(made)


def test_a_second_call_computes_nothing_and_a_lost_file_alone(toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    counting = Counting()
    upscale = SuperResolution(counting, scale=2)
    first = upscale.apply_to(manifest, tmp_path)
    assert counting.seen == 36
    assert upscale.apply_to(manifest, tmp_path).high == first.high
    assert counting.seen == 36
    assert first.high is not None
    (first.root / first.high[5]).unlink()
    upscale.apply_to(manifest, tmp_path)
    assert counting.seen == 37


def test_the_cache_goes_by_content_not_by_name(toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    counting = Counting()
    upscale = SuperResolution(counting, scale=2)
    made = upscale.apply_to(manifest, tmp_path / "cache")
    copy = tmp_path / "elsewhere"
    shutil.copytree(toy, copy)
    (copy / manifest.low[1]).replace(copy / manifest.low[0])
    moved = replace(manifest, root=copy, low=(manifest.low[0],), high=None)
    again = upscale.apply_to(moved, tmp_path / "cache")
    assert counting.seen == 36
    assert again.high is not None
    assert made.high is not None
    assert (copy / again.high[0]).resolve() == (manifest.root / made.high[1]).resolve()


def test_other_weights_and_settings_have_folders_of_their_own(toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read_csv(toy / "test.csv")
    steps = [
        SuperResolution(srcnn(0), scale=2),
        SuperResolution(srcnn(1), scale=2),
        SuperResolution(srcnn(0), scale=2, size=64),
    ]
    made = [step.apply_to(manifest, tmp_path) for step in steps]
    assert len({m.high for m in made}) == 3
    folders = list(tmp_path.iterdir())
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    assert len({record["weights_sha256"] for record in records}) == 2
    assert all(record["scale"] == 2 and record["name"] == "SRCNN" for record in records)


def test_a_submission_cannot_forget_the_step(toy: Path, tmp_path: Path) -> None:
    test = Manifest.read_csv(toy / "test.csv")
    upscale, other = SuperResolution(srcnn(0), scale=2), SuperResolution(srcnn(1), scale=2)
    with pytest.raises(DataError, match="no high-resolution column"):
        MultiResolutionDataset(test, resolution="high")
    with pytest.raises(DataError, match="has no high-resolution image"):
        upscale.verify(test)
    with pytest.raises(DataError, match=r"12 faults\n  row 1, .*did not go through SRCNN"):
        upscale.verify(other.apply_to(test, tmp_path))
    real = Manifest.read_csv(toy / "train.csv")
    with pytest.raises(DataError, match="did not go through SRCNN"):
        upscale.verify(real)


def test_all_damaged_files_are_named_before_anything_is_computed(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "data")
    manifest = Manifest.read_csv(tmp_path / "data" / "train.csv")
    for row in (3, 30):
        (manifest.root / manifest.low[row]).write_bytes(b"not an image")
    counting = Counting()
    with pytest.raises(DataError, match="2 faults") as caught:
        SuperResolution(counting, scale=2).apply_to(manifest, tmp_path / "cache")
    assert [fault.row for fault in caught.value.faults] == [4, 31]
    assert counting.seen == 0


def _apply(toy: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    manifest = Manifest.read_csv(toy / "train.csv")
    SuperResolution(srcnn(), scale=2).apply_to(manifest, cache, batch_size=2)


@pytest.mark.slow
def test_two_processes_may_fill_one_folder(toy: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_apply, args=(toy, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".png" for path in files) == 36
    assert not [path for path in files if path.suffix == ".part"]
    manifest = Manifest.read_csv(toy / "train.csv")
    made = SuperResolution(srcnn(), scale=2).apply_to(manifest, tmp_path)
    assert len(MultiResolutionDataset(made, resolution="high")[35].image) == 3


def test_a_fitted_network_is_saved_and_loaded(tmp_path: Path) -> None:
    high = images(4, 3, 48, 48)
    fitted = SuperResolution.fit(
        high[..., ::2, ::2], high, kernel_sizes=(3, 1, 3), residual=False, steps=2, batch_size=2
    )
    fitted.save(tmp_path / "sr.safetensors")
    loaded = SuperResolution.from_file(tmp_path / "sr.safetensors", size=30)
    assert loaded.scale == 2
    assert loaded.record()["weights_sha256"] == fitted.record()["weights_sha256"]
    assert torch.equal(SuperResolution(loaded.model, scale=2)(high), fitted(high))
    with pytest.raises(TypeError, match="only an SRCNN is saved, got Counting"):
        SuperResolution(Counting(), scale=2).save(tmp_path / "no.safetensors")


class Payload:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo harm",)


def test_files_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file"):
        SuperResolution.from_file(tmp_path / "none.pth")
    torch.save({"params": Payload()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth is no file of plain tensors"):
        SuperResolution.from_file(tmp_path / "code.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"torn\.safetensors is no file of plain tensors"):
        SuperResolution.from_file(tmp_path / "torn.safetensors")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fits no architecture of spandrel"):
        SuperResolution.from_file(tmp_path / "other.safetensors")


def test_a_missing_spandrel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lowres-vision\[sr\]'"):
        SuperResolution.from_file(tmp_path / "other.safetensors")


def test_refusals() -> None:
    upscale = SuperResolution(srcnn(), scale=3)
    with pytest.raises(ValueError, match=r"must enlarge 3 times, to \(24, 24\), got \(16, 16\)"):
        upscale(images(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"`images` must be uint8, got torch\.float32"):
        upscale(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 8, 8\)"):
        upscale(images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="`tile` must be >= 1, got 0"):
        SuperResolution(srcnn(), scale=2, tile=0)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # inside spandrel's CRAFT
@pytest.mark.parametrize(
    ("file", "expected", "gain", "every"),
    [
        ("span28_x4.ntire2024.safetensors", "SPAN", 0.7, 20),
        pytest.param("craft_x4.ntire2024.safetensors", "CRAFT", 0.45, 40, marks=pytest.mark.slow),
    ],
)
def test_real_weights_beat_bicubic_on_birds(
    shared_data: Path, file: str, expected: str, gain: float, every: int
) -> None:
    pytest.importorskip("spandrel")
    manifest = Manifest.read_csv(shared_data / "birds25" / "train.csv")
    assert manifest.high is not None
    rows = range(0, len(manifest), every)
    low = torch.stack([decode_image(manifest.root / manifest.low[row]) for row in rows])
    high = torch.stack([decode_image(manifest.root / manifest.high[row]) for row in rows])
    bicubic = SuperResolution(nn.Upsample(scale_factor=4, mode="bicubic"), scale=4)(low)
    upscale = SuperResolution.from_file(shared_data / "weights" / file)
    assert (upscale.scale, upscale.name) == (4, expected)
    got = torch.cat([upscale(part) for part in low.split(8)])  # type: ignore[arg-type]
    assert psnr(got, high) > psnr(bicubic, high) + gain  # type: ignore[arg-type]
