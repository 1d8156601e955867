import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.data import DataError, decode_image

RAMP = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)


def png(image: Image.Image, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    file.seek(0)
    return file


def test_rgb_comes_as_it_is() -> None:
    image = decode_image(png(Image.fromarray(RAMP)))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(RAMP).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = RAMP
    stored = {  # how a camera that turns the sensor stores `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(png(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), upright)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    image = decode_image(png(Image.fromarray(levels)))
    assert image.shape == (3, 1, 5)
    assert image[0, 0].tolist() == [round(v * 255 / 65535) for v in levels[0].tolist()]


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(path)
    with pytest.raises(DataError, match=r"float\.tiff: holds float pixels.*save it with 8 or 16"):
        decode_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_shows_the_background(mode: str) -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0] = (200, 200, 200, 255)
    image = Image.fromarray(rgba)
    file = png(image.quantize() if mode == "P" else image if mode == "PA" else image.convert(mode))
    decoded = decode_image(file, background=(255, 0, 7))
    assert decoded[:, 0, 0].tolist() == pytest.approx([200] * 3, abs=1)
    assert decoded[:, 1, 0].tolist() == [255, 0, 7]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.tiff"
    Image.new("RGB", (5, 4), "white").convert(mode).save(path)
    image = decode_image(path)
    assert image.shape == (3, 4, 5)
    assert (image.int() - 255).abs().max() <= 1


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue])
    assert decode_image(path)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_size_claim_is_refused_before_decoding() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match=r"cannot be decoded|60000 x 60000"):
        decode_image(io.BytesIO(bomb))
    with pytest.raises(DataError, match=r"claims 16 x 12 pixels, more than 100; shrink"):
        decode_image(png(Image.fromarray(RAMP)), max_pixels=100)


@pytest.mark.parametrize("damage", ["truncated", "empty", "html", "flipped"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = png(Image.fromarray(noise)).getvalue()
    damaged = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "html": b"<html>not found</html>",
        "flipped": data[:200] + bytes([data[200] ^ 255]) + data[201:],
    }[damage]
    path = tmp_path / "bird.png"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"bird\.png: cannot be decoded .*; replace the file"):
        decode_image(path)
