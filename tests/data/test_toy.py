import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowres_vision.data import Manifest, decode_image, make_toy_folders, make_toy_pairs


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    sizes = {"classes": 2, "per_class": 2, "test_per_class": 1}
    folders = [
        make_toy_pairs(tmp_path / name, seed=seed, **sizes)
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    ]
    first, again, other = map(digest, folders)
    assert first == again != other


def test_answers_and_sample_fit_the_test_set(toy: Path) -> None:
    def column(name: str, key: str) -> list[str]:
        with (toy / name).open() as file:
            return [row[key] for row in csv.DictReader(file)]

    ids = column("test.csv", "id")
    assert len(ids) == 12
    assert column("test_answers.csv", "id") == column("sample_submission.csv", "id") == ids
    assert len(set(column("test_answers.csv", "label"))) == 3


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 26}, {"per_class": 0}])
def test_refusals(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        make_toy_pairs(tmp_path, **wrong)


def test_folders_hold_the_images_asked_for(tmp_path: Path) -> None:
    make_toy_folders(tmp_path, classes=3, per_class={"train": np.int64(3), "test": 1}, size=32)
    for split, count in (("train", 3), ("test", 1)):
        classes = sorted((tmp_path / split).iterdir())
        assert len(classes) == 3
        assert [len(list(place.iterdir())) for place in classes] == [count] * 3
    assert decode_image(tmp_path / "test" / classes[0].name / "0.png").shape == (3, 32, 32)


def test_folders_hold_as_many_of_each_class_as_asked_for(tmp_path: Path) -> None:
    make_toy_folders(tmp_path, classes=3, per_class={"train": (4, 2, 1), "test": 1}, size=8)
    train = Manifest.read_splits(tmp_path)["train"]
    assert [*train.class_counts().values()] == [4, 2, 1]


def test_folders_come_with_a_csv_of_each_split(tmp_path: Path) -> None:
    make_toy_folders(tmp_path, classes=2, per_class={"train": (2, 11), "all": 1}, label="artist")
    for split, folders in Manifest.read_splits(tmp_path, splits=("train", "all")).items():
        table = Manifest.read_csv(tmp_path / f"{split}.csv", label="artist")
        assert table.digest() == folders.digest()
    plain = make_toy_folders(tmp_path / "plain", classes=2, per_class={"train": 1})
    assert not [*plain.glob("*.csv")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 26},
        {"size": 4},
        {"per_class": {"train": (1, 2)}},
        {"per_class": {"train": (1, 2, 3, 0)}},
        {"per_class": {"train": 0}},
    ],
)
def test_folders_refusals(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        make_toy_folders(tmp_path, **wrong)
