from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from lowres_vision.data import DataError, Manifest, StratifiedFolds


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    n_splits = draw(st.integers(2, 6))
    counts = draw(st.lists(st.integers(n_splits, 20), min_size=1, max_size=6))
    y = np.repeat(np.arange(len(counts)), counts)
    return n_splits, np.random.default_rng(draw(st.integers(0, 99))).permutation(y)


@given(labelled(), st.booleans())
def test_folds_partition_the_rows_with_even_classes(
    case: tuple[int, np.ndarray], shuffle: bool
) -> None:
    n_splits, y = case
    splits = list(StratifiedFolds(n_splits, shuffle=shuffle, seed=3).split(y))
    held_out = np.concatenate([rows for _, rows in splits])
    assert np.array_equal(np.sort(held_out), np.arange(len(y)))
    for train, rows in splits:
        assert np.array_equal(np.sort(np.concatenate([train, rows])), np.arange(len(y)))
    counts = np.array([np.bincount(y[rows], minlength=y.max() + 1) for _, rows in splits])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


@given(labelled())
def test_class_counts_are_those_of_scikit_learn(case: tuple[int, np.ndarray]) -> None:
    n_splits, y = case
    ours = [np.bincount(y[rows]) for _, rows in StratifiedFolds(n_splits).split(y)]
    theirs = [np.bincount(y[rows]) for _, rows in StratifiedKFold(n_splits).split(y, y)]
    assert [c.tolist() for c in ours] == [c.tolist() for c in theirs]


def test_unshuffled_folds_are_those_of_scikit_learn() -> None:
    y = np.random.default_rng(0).integers(0, 4, 103)
    ours = StratifiedFolds(5, shuffle=False).split(y)
    theirs = StratifiedKFold(5).split(y, y)
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert np.array_equal(a, b)


def test_the_seed_decides() -> None:
    y = np.repeat([0, 1], 50)

    def folds(seed: int) -> list[list[int]]:
        return [rows.tolist() for _, rows in StratifiedFolds(5, seed=seed).split(y)]

    assert folds(0) == folds(0) != folds(1)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_groups_never_cross_and_every_class_is_in_every_fold(seed: int, n_splits: int) -> None:
    random = np.random.default_rng(seed)
    group_class = np.repeat(np.arange(3), 3 * n_splits)
    groups = np.repeat(np.arange(len(group_class)), random.integers(1, 6, len(group_class)))
    y = group_class[groups]
    splits = list(StratifiedFolds(n_splits, seed=seed).split(y, groups.tolist()))
    assert np.array_equal(np.sort(np.concatenate([rows for _, rows in splits])), np.arange(len(y)))
    for train, rows in splits:
        assert not set(groups[train]) & set(groups[rows])
        assert set(y[rows]) == {0, 1, 2}


def test_group_shares_stay_close() -> None:
    random = np.random.default_rng(0)
    groups = np.sort(random.integers(0, 120, 1000))
    y = random.integers(0, 5, 120)[groups]
    for _, rows in StratifiedFolds(5, seed=0).split(y, groups.tolist()):
        share = np.bincount(y[rows], minlength=5) / np.bincount(y, minlength=5)
        assert np.abs(share - 0.2).max() < 0.08


def test_a_rare_class_is_named() -> None:
    y = ["tit"] * 9 + ["finch"] * 2 + ["rail"]
    with pytest.raises(
        ValueError, match=r"2 of 3 classes.*'finch' \(2 images\), 'rail' \(1 image\)"
    ):
        StratifiedFolds(3).split(y)
    with pytest.raises(ValueError, match=r"'tit' \(2 groups\).*use fewer folds"):
        StratifiedFolds(3).split(["tit"] * 9, [0] * 5 + [1] * 4)


def test_refusals_come_before_the_first_fold() -> None:
    with pytest.raises(ValueError, match="`n_splits` must be >= 2, got 1"):
        StratifiedFolds(1)
    with pytest.raises(ValueError, match=r"`y` must be \(N,\) classes, got shape \(2, 1\)"):
        StratifiedFolds(2).split([[0], [1]])
    with pytest.raises(ValueError, match="`y` is empty"):
        StratifiedFolds(2).split([])
    with pytest.raises(ValueError, match="one entry per item: 3 for 4"):
        StratifiedFolds(2).split([0, 0, 1, 1], [1, 2, 3])


def test_assign_names_the_file_and_keeps_groups(toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    fold_of = StratifiedFolds(4).assign(manifest)
    assert np.bincount(fold_of).tolist() == [9, 9, 9, 9]
    lines = (toy / "train.csv").read_text().splitlines()
    rare = tmp_path / "train.csv"
    rare.write_text("\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",Lone Bird"]) + "\n")
    with pytest.raises(DataError, match=r"train\.csv: 1 of 4 classes.*'Lone Bird' \(1 image\)"):
        StratifiedFolds(4).assign(Manifest.read_csv(rare, root=toy))
