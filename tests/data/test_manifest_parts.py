"""Manifests taken apart and put together again."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowres_vision.data import Manifest, make_toy_folders


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Manifest]:
    make_toy_folders(tmp_path, classes=2, per_class={"train": 3, "val": 2}, size=8)
    return Manifest.read_splits(tmp_path)


def test_what_is_joined_and_taken_apart_is_what_it_was(splits: dict[str, Manifest]) -> None:
    whole = Manifest.join(splits.values())
    assert len(whole) == 10
    assert whole.class_counts() == {"Amber Finch": 5, "Azure Tit": 5}
    for part, rows in zip(splits.values(), (range(6), range(6, 10)), strict=True):
        again = whole.take([*rows])
        assert again.digest() == part.digest()


def test_taken_rows_keep_order_and_columns(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv", high_resolution="upscale_img_path")
    rows = np.array([5, 0, 7])
    part = manifest.take(rows)
    assert part.classes == manifest.classes
    assert part.low == tuple(manifest.low[row] for row in rows)
    assert part.high is not None
    assert part.high == tuple(manifest.high[row] for row in rows)  # type: ignore[index]
    assert part.labels.tolist() == manifest.labels[rows].tolist()


def test_the_high_images_alone_are_single_images(toy: Path) -> None:
    both = Manifest.read_csv(toy / "train.csv")
    alone = Manifest.read_csv(toy / "train.csv", image="upscale_img_path")
    assert alone.low == both.high
    assert alone.high is None
    assert alone.columns["img_path"][0] == f"./{both.low[0]}"


def test_a_split_column_makes_two_sets(toy: Path, tmp_path: Path) -> None:
    lines = (toy / "train.csv").read_text().splitlines()
    marked = [f"{line},{'split' if not n else 'ab'[n % 2]}" for n, line in enumerate(lines)]
    (tmp_path / "marked.csv").write_text("\n".join(marked))
    manifest = Manifest.read_csv(tmp_path / "marked.csv", root=toy)
    first, second = (manifest.take(manifest.rows("split", value)) for value in "ab")
    assert len(first) + len(second) == len(manifest)
    assert set(first.columns["split"]) == {"a"}
    assert Manifest.join([first, second]).columns["split"].count("b") == len(second)


@pytest.mark.parametrize(("rows", "error"), [([0, 10], IndexError), ([-1], IndexError)])
def test_rows_outside(splits: dict[str, Manifest], rows: list[int], error: type) -> None:
    with pytest.raises(error, match=r"`rows` must be in 0\.\.5"):
        splits["train"].take(rows)


def test_a_mask_is_no_rows(splits: dict[str, Manifest]) -> None:
    """As numbers, True and False would be rows 1 and 0."""
    with pytest.raises(TypeError, match=r"got bool of shape \(2,\); of a mask give"):
        splits["train"].take([True, False])
    assert len(splits["train"].take([])) == 0


def test_refusals(splits: dict[str, Manifest], toy: Path) -> None:
    train = splits["train"]
    with pytest.raises(ValueError, match="must not repeat"):
        train.take([0, 0])
    with pytest.raises(ValueError, match="at least one"):
        Manifest.join([])
    with pytest.raises(ValueError, match="different ids"):
        Manifest.join([train, train])
    with pytest.raises(ValueError, match="must have one `root`"):
        Manifest.join([train, Manifest.read_csv(toy / "train.csv")])


def test_what_is_written_is_read_back(toy: Path, tmp_path: Path) -> None:
    lines = (toy / "train.csv").read_text().splitlines()
    odd = ['a "b", c', "two\nlines", "an old\rMac's", " spaces ", "끝", ""]
    cells = [["genre", "site", "id"], *([odd[n % 6], f"s{n % 3}", f"#{n}"] for n in range(36))]
    with (tmp_path / "all.csv").open("w", newline="", encoding="utf-8") as file:
        rows = (line.split(",") + more for line, more in zip(lines, cells, strict=True))
        csv.writer(file, delimiter="\t").writerows(rows)
    whole = Manifest.read_csv(tmp_path / "all.csv", root=toy, group="site")
    part = whole.take([7, 3, 20])
    for manifest in (whole, part, Manifest.read_csv(toy / "test.csv")):
        file_written = manifest.write_csv(tmp_path / "again.csv")
        again = Manifest.read_csv(
            file_written,
            root=manifest.root,
            group="group" if manifest.groups else None,
            classes=manifest.classes,
        )
        assert again.digest() == manifest.digest()
        assert again.groups == manifest.groups
        assert again.columns == manifest.columns
    assert file_written.read_text().splitlines()[0] == "id,img_path"


def test_folders_become_a_table(splits: dict[str, Manifest], tmp_path: Path) -> None:
    for name, rows in splits.items():
        rows.write_csv(tmp_path / f"{name}.csv", image="picture", label="bird")
    again = Manifest.read_csv(tmp_path / "val.csv", image="picture", label="bird")
    assert again.digest() == splits["val"].digest()
    assert (tmp_path / "train.csv").read_text().startswith("picture,bird\ntrain/Amber Finch/0.png,")


def test_what_could_not_be_read_back_is_not_written(
    splits: dict[str, Manifest], tmp_path: Path
) -> None:
    file, train = tmp_path / "out.csv", splits["train"]
    with pytest.raises(ValueError, match="would be named 'label'"):
        train.write_csv(file, image="label")
    with pytest.raises(ValueError, match=r"'\.\./x\.png' could not be read back"):
        replace(train, low=("../x.png", *train.low[1:])).write_csv(file)
    with pytest.raises(ValueError, match=r"' x\.png' could not be read back"):
        replace(train, low=(" x.png", *train.low[1:])).write_csv(file)
    with pytest.raises(ValueError, match="only some rows have labels"):
        replace(train, labels=np.array([-1, *train.labels[1:]])).write_csv(file)
    assert not file.exists()
