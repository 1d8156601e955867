"""Thousands of damaged files through the audit and the data set: refused by name, or decoded."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.data import DataError, Manifest, MultiResolutionDataset, Sample, audit
from lowres_vision.data._audit_pool import inspect_files
from lowres_vision.data._audit_worker import Inspection

SIDE = 64
MAX_PIXELS = 2**24


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_seeds() -> dict[str, bytes]:
    """Return healthy files of eight formats by name."""
    random = np.random.default_rng(7)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noise = random.integers(0, 32, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(coarse // 2 + noise)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(noise[..., 0] * 8))
    wide = Image.fromarray(noise[..., 0].astype(np.uint16) * 2000)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a bird"
    return {
        "baseline.jpg": encode(image, "JPEG", exif=exif),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "rgb.png": encode(image, "PNG"),
        "palette.png": encode(alpha.quantize(16), "PNG"),
        "wide.png": encode(wide, "PNG"),
        "lossy.webp": encode(alpha, "WEBP"),
        "animated.gif": encode(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "plain.bmp": encode(image, "BMP"),
        "lzw.tiff": encode(image, "TIFF", compression="tiff_lzw"),
        "plain.ppm": encode(image, "PPM"),
        "lossless.jp2": encode(image, "JPEG2000"),
    }


Mutation = Callable[[bytes, np.random.Generator], bytes]


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def flip(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in random.integers(len(data), size=random.integers(1, 9)):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


def delete(data: bytes, random: np.random.Generator) -> bytes:
    start = random.integers(len(data))
    return data[:start] + data[start + random.integers(1, 65) :]


def insert(data: bytes, random: np.random.Generator) -> bytes:
    start = random.integers(len(data))
    return data[:start] + random.bytes(random.integers(1, 65)) + data[start:]


def extreme(data: bytes, random: np.random.Generator) -> bytes:
    """Overwrite four bytes, mostly of the header, with an extreme 32-bit number."""
    start = random.integers(min(len(data), 256) if random.random() < 0.8 else len(data))
    number = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)[random.integers(5)]
    order = ("little", "big")[random.integers(2)]
    return data[:start] + int(number).to_bytes(4, order) + data[start + 4 :]


MUTATIONS: list[Mutation] = [truncate, flip, delete, insert, extreme]


def write_mutants(folder: Path, count: int) -> Path:
    """Write ``count`` damaged files and their CSV, which is returned."""
    random = np.random.default_rng(count)
    seeds = list(make_seeds().items())
    rows = ["img_path,label"]
    for number in range(count):
        name, data = seeds[number % len(seeds)]
        mutation = MUTATIONS[number // len(seeds) % len(MUTATIONS)]
        file = f"{number:05}_{mutation.__name__}_{name}"
        (folder / file).write_bytes(mutation(data, random))
        rows.append(f"{file},bird")
    path = folder / "train.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def check_mutants(folder: Path, count: int) -> None:
    manifest = Manifest.read_csv(write_mutants(folder, count))
    inspected = inspect_files(
        [str(folder / path) for path in manifest.low],
        max_pixels=MAX_PIXELS,
        time_limit=2.0,
        workers=1,
    )
    dataset = MultiResolutionDataset(manifest)
    decoded = 0
    for row, (path, found) in enumerate(zip(manifest.low, inspected, strict=True)):
        if isinstance(found, Inspection):
            sample = dataset[row]
            assert isinstance(sample, Sample)
            assert sample.image.dtype == torch.uint8
            assert tuple(sample.image.shape) == (3, found.height, found.width)
            assert sample.row == row
            decoded += 1
            continue
        expected = ("cannot be decoded", "claims ", "holds float pixels")
        assert found.reason.startswith(expected), f"{path}: {found.reason}"
        with pytest.raises(DataError) as error:
            dataset[row]
        assert path in str(error.value)
        assert error.value.faults[0].remedy
    assert 0.1 < decoded / count < 0.9


def test_no_healthy_seed_is_refused(tmp_path: Path) -> None:
    seeds = make_seeds()
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "train.csv"
    path.write_text("img_path\n" + "\n".join(seeds), encoding="utf-8")
    report = audit(path, workers=1)
    assert report.faults == ()
    assert report.files == len(seeds)
    assert report.sizes == {"img_path": {(SIDE, SIDE): len(seeds)}}
    assert [note.reason for note in report.notes if note.path == "animated.gif"] == [
        "holds several frames"
    ]


def test_2_000_mutants(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some damage that it then decodes
        check_mutants(tmp_path, 2_000)


@pytest.mark.slow
def test_20_000_mutants(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_mutants(tmp_path, 20_000)
