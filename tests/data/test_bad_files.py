"""Hand-made bad image files, each with the verdict that is expected of it."""

import gzip
import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowres_vision.data import AuditReport, DataError, audit, decode_image

UNKNOWN = "cannot be decoded (no image format is recognised)"
BROKEN = "cannot be decoded ("

LEVELS = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
IMAGE = Image.fromarray(LEVELS)


def encode(kind: str, image: Image.Image = IMAGE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save_array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


JPEG, PNG, GIF, BMP, TIFF, WEBP, JP2 = map(
    encode, ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")
)
SIGNATURE = PNG[:8]


def chunk(kind: bytes, data: bytes, *, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data)
    length = len(data) if length is None else length
    return struct.pack(">I", length) + kind + data + struct.pack(">I", crc)


ROWS = b"".join(b"\0" + row.tobytes() for row in LEVELS)
IEND = chunk(b"IEND", b"")


def png(
    *, width: int = 32, height: int = 32, depth: int = 8, colour: int = 2, compression: int = 0,
    interlace: int = 0, before: bytes = b"", data: bytes | None = None,
) -> bytes:  # fmt: skip
    """Return a PNG of noise, or one with a flaw."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, compression, 0, interlace)
    data = chunk(b"IDAT", zlib.compress(ROWS)) if data is None else data
    return SIGNATURE + chunk(b"IHDR", header) + before + data + IEND


def jpeg_without(marker: int) -> bytes:
    """Return the JPEG without its segments of one kind."""
    kept, place = JPEG[:2], 2
    while JPEG[place + 1] != 0xDA:
        length = 2 + int.from_bytes(JPEG[place + 2 : place + 4], "big")
        kept += JPEG[place : place + length] if JPEG[place + 1] != marker else b""
        place += length
    return kept + JPEG[place:]


def jpeg_with(offset: int, value: bytes) -> bytes:
    """Return the JPEG with bytes of its frame header changed: 4 depth, 5 height, 7 width, 9 n."""
    return overwrite(JPEG, JPEG.index(b"\xff\xc0") + offset, value)


def overwrite(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def tiff_with(tag: int, value: int) -> bytes:
    """Return the TIFF with the value of one tag changed."""
    start = struct.unpack("<I", TIFF[4:8])[0]
    entries = struct.unpack("<H", TIFF[start : start + 2])[0]
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack("<H", TIFF[place : place + 2])[0] == tag:
            kind = struct.unpack("<H", TIFF[place + 2 : place + 4])[0]
            return overwrite(TIFF, place + 8, struct.pack("<H" if kind == 3 else "<I", value))
    raise AssertionError(f"no tag {tag}")


WIDE = Image.fromarray(LEVELS[..., 0].astype(np.int32))  # as 16 bits they would be black
FLOAT = Image.fromarray(LEVELS[..., 0].astype(np.float32) / 255)

FILES: dict[str, tuple[bytes, str]] = {
    # Something else under the name of an image.
    "empty.png": (b"", UNKNOWN),
    "one_byte.jpg": (b"\xff", UNKNOWN),
    "zeros.png": (bytes(4096), UNKNOWN),
    "noise.jpg": (np.random.default_rng(0).bytes(4096), UNKNOWN),
    "text.png": (b"just a line of text\n", UNKNOWN),
    "html.jpg": (b"<!DOCTYPE html><html>404 Not Found</html>", UNKNOWN),
    "xml.jpg": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', UNKNOWN),
    "json.png": (b'{"message": "rate limit exceeded"}', UNKNOWN),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", UNKNOWN),
    "base64.png": (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", UNKNOWN),
    "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNKNOWN),
    "document.jpg": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", UNKNOWN),
    "archive.png": (b"PK\x03\x04" + bytes(64), UNKNOWN),
    "zipped.png": (gzip.compress(PNG), UNKNOWN),
    "array.png": (save_array(LEVELS), UNKNOWN),
    "film.jpg": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2mp41" + bytes(64), UNKNOWN),
    "program.png": (b"\x7fELF\2\1\1" + bytes(64), UNKNOWN),
    # Formats that are not read: PostScript is a program, the others are no photos.
    "postscript.eps": (encode("EPS"), UNKNOWN),
    "postscript.jpg": (encode("EPS"), UNKNOWN),
    "icon.ico": (encode("ICO"), UNKNOWN),
    "layers.psd": (b"8BPS\0\1" + bytes(64), UNKNOWN),
    # JPEG
    "signature.jpg": (JPEG[:3], BROKEN),
    "header.jpg": (JPEG[: JPEG.index(b"\xff\xda")], BROKEN),
    "half.jpg": (JPEG[: len(JPEG) // 2], BROKEN),
    "three_quarters.jpg": (JPEG[: len(JPEG) * 3 // 4], BROKEN),
    "no_frame.jpg": (jpeg_without(0xC0), BROKEN),
    "no_quantisation.jpg": (jpeg_without(0xDB), BROKEN),
    "no_height.jpg": (jpeg_with(5, b"\0\0"), BROKEN),
    "no_width.jpg": (jpeg_with(7, b"\0\0"), BROKEN),
    "no_components.jpg": (jpeg_with(9, b"\0"), BROKEN),
    "five_components.jpg": (jpeg_with(9, b"\5"), BROKEN),
    "twelve_bits.jpg": (jpeg_with(4, b"\x0c"), BROKEN),
    "lossless.jpg": (jpeg_with(1, b"\xc3"), BROKEN),
    "vast.jpg": (jpeg_with(5, b"\xff\xdc\xff\xdc"), BROKEN),
    "shifted.jpg": (b"\0\0" + JPEG, UNKNOWN),
    "as_text.jpg": (JPEG.decode("utf-8", "replace").encode(), UNKNOWN),
    # PNG
    "signature.png": (SIGNATURE, BROKEN),
    "header.png": (PNG[:33], BROKEN),
    "half.png": (PNG[: len(PNG) // 2], BROKEN),
    "line_ends.png": (PNG.replace(b"\r\n", b"\n"), UNKNOWN),
    "wrong_header_sum.png": (overwrite(PNG, 29, b"\0\0\0\0"), BROKEN),
    "short_header.png": (SIGNATURE + chunk(b"IHDR", bytes(12)) + IEND, BROKEN),
    "no_data.png": (png(data=b""), BROKEN),
    "bad_block.png": (png(data=chunk(b"IDAT", b"\x78\x9c\xff" + bytes(64))), BROKEN),
    "no_stream.png": (png(data=chunk(b"IDAT", b"no zlib stream")), BROKEN),
    "short_stream.png": (png(data=chunk(b"IDAT", zlib.compress(ROWS[:999]))), BROKEN),
    "long_chunk.png": (png(data=chunk(b"IDAT", b"", length=2**31 - 1)), BROKEN),
    "bad_filter.png": (png(data=chunk(b"IDAT", zlib.compress(b"\t" + ROWS[1:]))), BROKEN),
    "no_width.png": (png(width=0), BROKEN),
    "no_height.png": (png(height=0), BROKEN),
    "three_bits.png": (png(depth=3), BROKEN),
    "colour_type_5.png": (png(colour=5), BROKEN),
    "bomb.png": (png(width=60_000, height=60_000), BROKEN),
    "claim.png": (png(width=10_000, height=10_000), "claims 10000 x 10000 pixels"),
    "just_too_large.png": (png(width=4097, height=4096), "claims 4097 x 4096 pixels"),
    "text_bomb.png": (
        png(before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))),
        BROKEN,
    ),
    # GIF
    "header.gif": (GIF[:13], BROKEN),
    "half.gif": (GIF[: len(GIF) // 2], BROKEN),
    "no_frame.gif": (b"GIF89a" + struct.pack("<HHBBB", 32, 32, 0, 0, 0) + b";", BROKEN),
    "vast.gif": (overwrite(GIF, 6, b"\xff\xff\xff\xff"), BROKEN),
    # BMP
    "header.bmp": (BMP[:14], BROKEN),
    "half.bmp": (BMP[: len(BMP) // 2], BROKEN),
    "five_bits.bmp": (overwrite(BMP, 28, b"\5\0"), BROKEN),
    "odd_compression.bmp": (overwrite(BMP, 30, b"\x63\0\0\0"), BROKEN),
    "no_width.bmp": (overwrite(BMP, 18, b"\0\0\0\0"), BROKEN),
    "claim.bmp": (overwrite(BMP, 18, struct.pack("<II", 9000, 9000)), "claims 9000 x 9000"),
    # TIFF
    "header.tiff": (TIFF[:8], BROKEN),
    "half.tiff": (TIFF[: len(TIFF) // 2], BROKEN),
    "lost_directory.tiff": (overwrite(TIFF, 4, struct.pack("<I", 2**31)), BROKEN),
    "odd_compression.tiff": (tiff_with(259, 9999), BROKEN),
    "no_width.tiff": (tiff_with(256, 0), BROKEN),
    "claim.tiff": (overwrite(tiff_with(256, 50_000), 0, b"II"), BROKEN),
    "float.tiff": (encode("TIFF", FLOAT), "holds float pixels, whose range nothing states"),
    "32_bits.tiff": (encode("TIFF", WIDE), "holds 32-bit pixels, whose range nothing states"),
    # WebP
    "header.webp": (WEBP[:12], BROKEN),
    "half.webp": (WEBP[: len(WEBP) // 2], BROKEN),
    "other_riff.webp": (b"RIFF" + WEBP[4:8] + b"WAVEfmt " + bytes(64), UNKNOWN),
    # JPEG 2000
    "header.jp2": (JP2[:12], BROKEN),
    "half.jp2": (JP2[: len(JP2) // 2], BROKEN),
    # PPM
    "header.ppm": (b"P6 32 32 255\n", BROKEN),
    "half.ppm": (b"P6 32 32 255\n" + bytes(1536), BROKEN),
    "words.ppm": (b"P6 wide high 255\n" + bytes(3072), BROKEN),
    "no_levels.ppm": (b"P6 32 32 0\n" + bytes(3072), BROKEN),
    "many_levels.ppm": (b"P6 32 32 70000\n" + bytes(6144), BROKEN),
    "claim.ppm": (b"P6 8192 4096 255\n", "claims 8192 x 4096 pixels"),
    # Decodes, but is nothing to learn from.
    "dot.png": (encode("PNG", IMAGE.resize((1, 1))), "is 1 x 1 pixels, shorter than 8"),
    "thin.png": (encode("PNG", IMAGE.resize((7, 64))), "is 64 x 7 pixels, shorter than 8"),
    "line.png": (encode("PNG", IMAGE.resize((4096, 1))), "is 1 x 4096 pixels, more than 16 : 1"),
    "strip.jpg": (encode("JPEG", IMAGE.resize((10, 170))), "is 170 x 10 pixels, more than 16 : 1"),
}  # fmt: skip
SMALL = ("dot.png", "thin.png", "line.png", "strip.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "train.csv").write_text("img_path\n" + "\n".join(FILES), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> AuditReport:
    return audit(folder / "train.csv", workers=1)


def test_there_are_enough() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_the_audit_names_it(name: str, report: AuditReport) -> None:
    faults = [fault for fault in report.faults if fault.path == name]
    assert any(FILES[name][1] in fault.reason for fault in faults), faults
    for fault in faults:
        assert (fault.row, fault.column) == (1 + list(FILES).index(name), "img_path")
        assert fault.remedy


@pytest.mark.parametrize("name", [name for name in FILES if name not in SMALL])
def test_decoding_names_it(name: str, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=re.escape(FILES[name][1])) as error:
            decode_image(folder / name)
    assert name in str(error.value)


def test_a_file_without_a_flaw_decodes(tmp_path: Path) -> None:
    for name, data in {
        "a.png": png(),
        "b.jpg": jpeg_with(0, b""),
        "c.tiff": tiff_with(256, 32),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert decode_image(tmp_path / name).shape == (3, 32, 32)
