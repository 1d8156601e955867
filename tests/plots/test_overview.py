"""The tables and pictures of a data set, against the files they count."""

import csv
from pathlib import Path

import pytest

from lowres_vision.data import DataError, Manifest
from lowres_vision.plots import write_overview


def test_it_counts_classes_sizes_and_further_columns(toy: Path, tmp_path: Path) -> None:
    with (toy / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "time of day", "note"])
        writer.writeheader()
        for number, row in enumerate(rows):
            day = "night" if number % 3 == 0 else "day"
            writer.writerow({**row, "time of day": day, "note": f"no. {number}"})
    manifest = Manifest.read_csv(path, root=toy)
    text = write_overview(manifest, tmp_path / "out").read_text()
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["class_counts.png", "column_time_of_day.png", "counts.txt", "sizes.png"]
    for name, count in manifest.class_counts().items():
        assert any(line.split() == [*name.split(), str(count)] for line in text.splitlines())
    nights = -(-len(rows) // 3)
    assert f"by time of day\nday    {len(rows) - nights}\nnight  {nights}\n" in text
    assert f"{len(rows)} rows; empty cells: img_path 0" in text
    assert "height and width: least 64 x 64, median 64 x 64, most 64 x 64" in text
    assert "note" not in text.split("\n", 1)[1]
    high = write_overview(manifest, tmp_path / "high", resolution="high").read_text()
    assert "median 256 x 256" in high


def test_rows_without_labels_have_sizes(toy: Path, tmp_path: Path) -> None:
    test = Manifest.read_csv(toy / "test.csv")
    write_overview(test, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counts.txt", "sizes.png"]
    with pytest.raises(DataError, match="no high-resolution images"):
        write_overview(test, tmp_path, resolution="high")


def test_columns_of_names_that_files_confuse_have_a_picture_each(toy: Path, tmp_path: Path) -> None:
    with (toy / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    further = ["a b", "a_b", "A-B", "a_b_2", "?", "ж" * 140, "ж" * 141]
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *further])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, **dict.fromkeys(further, number % 2)})
    write_overview(Manifest.read_csv(path, root=toy), tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").glob("column_*.png")}
    assert len(names) == len({name.casefold() for name in names}) == len(further)
    assert {"column_a_b.png", "column_a_b_2.png", "column_A_B_3.png"} <= names
