import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [(0x010F, 11), (0x0110, 5), (0x011A, 2), (0x0131, 0), (0x0213, 7)])
def test_odd_tags_do_not_cost_a_turned_photo(kind: str, tag: tuple[int, int]) -> None:
    """Cameras write tags of the wrong type, which Pillow reads but cannot write again."""
    entries = sorted([(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (*tag, 1, struct.pack("<I", 44))])
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + directory + bytes(range(64))
    file = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 30, 10)).save(file, kind, exif=exif)
    file.seek(0)
    assert decode_image(file).shape == (3, 16, 8)


def test_damaged_metadata_of_a_tiff_is_named(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700] = 3  # XMP, as numbers
    tags[700] = (1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two values where one is expected
        Image.new("RGB", (4, 4)).save(tmp_path / "bird.tiff", tiffinfo=tags)
        with pytest.raises(DataError, match=r"bird\.tiff: cannot be decoded \(TypeError"):
            decode_image(tmp_path / "bird.tiff")


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


def test_a_transparent_level_of_16_bit_grey_shows_the_background() -> None:
    levels = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    image = decode_image(png(levels, transparency=257), background=(255, 0, 7))
    assert image[:, 0].T.tolist() == [[0, 0, 0], [255, 0, 7], [255, 255, 255]]


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
