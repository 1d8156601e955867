import shutil
from pathlib import Path

import numpy as np
import pytest

from lowres_vision.data import Manifest, StratifiedFolds, linked_rows


def test_rows_with_one_file_or_one_group_are_linked(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "train/TRAIN_00003.png", tmp_path / "train/TRAIN_00010.png")
    shutil.copy(tmp_path / "upscale_train/TRAIN_00010.jpg", tmp_path / "train/TRAIN_00020.png")
    manifest = Manifest.read_csv(tmp_path / "train.csv")
    links = linked_rows(manifest)
    expected = np.arange(36)
    expected[[10, 20]] = 3  # 10 shows 3 in low resolution, 20 shows 10 in high
    _, expected = np.unique(expected, return_inverse=True)
    assert links.tolist() == expected.tolist()

    groups = [0, 0, 1, 1, *range(2, 34)]
    linked = linked_rows(manifest, groups=groups)
    assert linked[0] == linked[1] != linked[2]
    assert linked[2] == linked[3] == linked[10] == linked[20]
    assert linked.max() == 35 - 4
    with pytest.raises(ValueError, match="`groups` must have one entry per row: 2 for 36"):
        linked_rows(manifest, groups=[0, 1])


def test_the_manifests_groups_and_those_given_are_joined(toy: Path, tmp_path: Path) -> None:
    header, *lines = (toy / "train.csv").read_text().splitlines()
    text = [f"{header},series", *(f"{line},{row // 2}" for row, line in enumerate(lines))]
    (tmp_path / "train.csv").write_text("\n".join(text) + "\n")
    manifest = Manifest.read_csv(tmp_path / "train.csv", group="series", root=toy)
    given = np.arange(36)
    given[[1, 6]] = 99
    links = linked_rows(manifest, groups=given)
    assert links[:8].tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    fold_of = StratifiedFolds(3).assign(manifest, groups=given)
    assert all(len(set(fold_of[links == link])) == 1 for link in links)
    assert np.bincount(fold_of).tolist() == pytest.approx([12] * 3, abs=4)
