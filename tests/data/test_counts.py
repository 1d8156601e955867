from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowres_vision.data import (
    DataError,
    Manifest,
    count_by_class,
    count_values,
    decode_image,
    format_table,
    image_sizes,
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    cells = [("Monet", "sea"), ("Manet", "city"), ("Monet", "sea"), ("Monet", ""), ("Manet", "sea")]
    lines = [f"a.png,{artist},{genre}" for artist, genre in cells]
    (tmp_path / "train.csv").write_text("\n".join(["img_path,artist,genre", *lines]))
    return Manifest.read_csv(tmp_path / "train.csv", label="artist")


def test_values_are_counted_with_the_empty_ones(manifest: Manifest) -> None:
    assert list(count_values(manifest, "genre").items()) == [("sea", 3), ("", 1), ("city", 1)]
    assert count_values(manifest, "genre", rows=[1, 1, 4]) == {"city": 2, "sea": 1}
    born = {"Monet": "1840", "Manet": "1832"}
    looked_up = [born[manifest.classes[label]] for label in manifest.labels]
    assert count_values(manifest, looked_up) == {"1840": 3, "1832": 2}


def test_values_by_class_are_those_counted_one_by_one(manifest: Manifest) -> None:
    values, counts = count_by_class(manifest, "genre")
    assert values == ("", "city", "sea")
    assert counts.tolist() == [[0, 1, 1], [1, 0, 2]]
    assert counts.sum(axis=1).tolist() == list(manifest.class_counts().values())
    _, some = count_by_class(manifest, "genre", rows=np.array([2, 0, 1]))
    assert some.tolist() == [[0, 1, 0], [0, 0, 2]]


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    names = []
    for orientation in range(9):
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        for suffix in ("jpg", "png", "webp", "tiff"):
            names.append(f"{orientation}.{suffix}")
            Image.new("RGB", (30, 20)).save(tmp_path / names[-1], exif=exif)
    (tmp_path / "test.csv").write_text("\n".join(["img_path", *names]))
    manifest = Manifest.read_csv(tmp_path / "test.csv")
    sizes = image_sizes(manifest)
    assert sizes.tolist() == [list(decode_image(tmp_path / name).shape[1:]) for name in names]
    assert set(map(tuple, sizes.tolist())) == {(20, 30), (30, 20)}
    assert image_sizes(manifest, rows=[4, 20]).tolist() == [[20, 30], [30, 20]]
    assert image_sizes(manifest, rows=[]).shape == (0, 2)


def test_files_without_a_header_are_named_all_at_once(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"row 5, a\.png: cannot be decoded") as error:
        image_sizes(manifest, rows=[0, 4])
    assert [fault.row for fault in error.value.faults] == [1, 5]
    with pytest.raises(DataError, match="has no high-resolution images; use"):
        image_sizes(manifest, resolution="high")


def test_tables_are_aligned_for_wide_letters_too() -> None:
    assert format_table({"tit": 5, "참새": 12}) == "tit    5\n참새  12"
    table = format_table(np.array([[1, 20], [300, 4]]), rows=["a", "bb"], columns=["city", "바다"])
    assert table.splitlines() == [
        "    city  바다",
        "a      1    20",
        "bb   300     4",
    ]
    assert format_table({(64, 64): 7}) == "(64, 64)  7"
    assert format_table({}) == ""


def test_refusals(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"`column` must be one of \['genre'\], got 'style'"):
        count_values(manifest, "style")
    with pytest.raises(ValueError, match="one value per row: 2 for 5"):
        count_by_class(manifest, ["x", "y"])
    with pytest.raises(ValueError, match="`resolution` must be one of 'low', 'high', got 'both'"):
        image_sizes(manifest, resolution="both")  # type: ignore[arg-type]
    mask = manifest.labels == 0
    for count in (count_values, count_by_class):
        with pytest.raises(TypeError, match=r"`rows` must be \(n,\) row numbers, got bool"):
            count(manifest, "genre", rows=mask)
        with pytest.raises(IndexError, match=r"`rows` must be in 0\.\.4, got -1\.\.0"):
            count(manifest, "genre", rows=[-1, 0])
    with pytest.raises(TypeError, match=r"`rows` must be \(n,\) row numbers, got bool"):
        image_sizes(manifest, rows=mask)
    with pytest.raises(ValueError, match="`rows` must name the rows"):
        format_table(np.ones((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="`columns` must name 2 columns, got 1"):
        format_table(np.ones((1, 2), dtype=np.int64), rows=["a"], columns=["x"])
