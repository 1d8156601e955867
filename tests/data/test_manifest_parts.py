"""Manifests taken apart and put together again."""

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
