import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

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


def class_counts(y: np.ndarray, splits: Any) -> np.ndarray:
    """Return ``(folds, K)`` how often each class is held out."""
    return np.array([np.bincount(y[rows], minlength=y.max() + 1) for _, rows in splits])


def can_be_dealt(has: np.ndarray, n_splits: int) -> bool:
    """Try every dealing of groups with classes ``has (G, K)`` for one with all classes in all."""
    dealings = np.array(list(itertools.product(range(n_splits), repeat=len(has))))
    good = np.ones(len(dealings), dtype=bool)
    for fold in range(n_splits):
        good &= ((dealings == fold).astype(int) @ has.astype(int) > 0).all(axis=1)
    return bool(good.any())


def random_data_set(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and groups of up to ten groups, with one to three images per class in it."""
    has = random.random((random.integers(3, 11), random.integers(1, 10))) < random.uniform(0.2, 1)
    has[0, 0] = True
    groups, y = (np.unique(part, return_inverse=True)[1] for part in np.nonzero(has))
    times = random.integers(1, 4, len(y))
    order = random.permutation(times.sum())
    return y.repeat(times)[order], groups.repeat(times)[order]


def test_a_thousand_data_sets() -> None:
    random = np.random.default_rng(0)
    dealt = impossible = left_out = ungrouped = 0
    for seed in range(1000):
        n_splits = int(random.integers(2, 4))
        y, groups = random_data_set(random)
        has = np.zeros((groups.max() + 1, y.max() + 1), dtype=bool)
        has[groups, y] = True
        in_groups = has.sum(axis=0)
        folds = StratifiedFolds(n_splits, seed=seed)
        if np.bincount(y).min() >= n_splits:
            theirs = StratifiedKFold(n_splits).split(y, y)
            assert np.array_equal(class_counts(y, folds.split(y)), class_counts(y, theirs))
            ungrouped += 1
        if (in_groups < n_splits).any():
            with pytest.raises(ValueError, match=r"classes cannot be in each of") as error:
                folds.split(y, groups)
            for name in np.flatnonzero(in_groups < n_splits):
                assert f"'{name}' ({in_groups[name]} " in str(error.value)
            continue
        try:
            splits = list(folds.split(y, groups))
        except ValueError as error:
            told = str(error)
            splits = []
        if not splits:
            assert re.search(r"no dealing of the groups was found .* class '\d'", told)
            assert not can_be_dealt(has, n_splits)
            impossible += 1
            continue
        for train, rows in splits:
            assert np.array_equal(np.sort(np.concatenate([train, rows])), np.arange(len(y)))
            assert not set(groups[train]) & set(groups[rows])
        assert (class_counts(y, splits) > 0).all()
        again = StratifiedFolds(n_splits, seed=seed).split(y, groups)
        assert all(np.array_equal(a[1], b[1]) for a, b in zip(splits, again, strict=True))
        greedy = StratifiedGroupKFold(n_splits).split(y, y, groups)
        left_out += bool((class_counts(y, greedy) == 0).any())
        dealt += 1
    # Both what cannot be dealt and what a greedy choice alone gets wrong did occur.
    assert dealt > 500
    assert impossible >= 5
    assert ungrouped > 500
    assert left_out > 50


def test_groups_of_one_are_no_groups() -> None:
    y = np.random.default_rng(0).integers(0, 4, 103)
    alone = StratifiedFolds(5, seed=2).split(y, np.arange(103))
    for (_, a), (_, b) in zip(alone, StratifiedFolds(5, seed=2).split(y), strict=True):
        assert np.array_equal(a, b)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_images_alone_even_out_what_pairs_left(seed: int, n_splits: int) -> None:
    random = np.random.default_rng(seed)
    y = np.repeat(np.arange(4), random.integers(4 * n_splits, 60, 4))
    groups = np.arange(len(y))
    first = np.flatnonzero((y[1:] == y[:-1]) & (random.random(len(y) - 1) < 0.15))
    groups[first + 1] = first  # pairs, some of them overlapping ones cut short
    counts = class_counts(y, StratifiedFolds(n_splits, seed=seed).split(y, groups))
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 2


def test_large_groups_are_spread_as_evenly_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    unevenness = []
    for seed in range(20):
        groups = np.sort(random.integers(0, 60, 600))
        y = (random.integers(0, 5, 60)[groups] + (random.random(600) < 0.3)) % 5
        ours = StratifiedFolds(5, seed=seed).split(y, groups)
        theirs = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(y, y, groups)
        unevenness.append(
            [(class_counts(y, splits) / np.bincount(y)).std() for splits in (ours, theirs)]
        )
    mine, peers = np.mean(unevenness, axis=0)
    assert mine < 1.02 * peers


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.2, 1 / 3, 0.5, 0.75]), st.booleans())
def test_a_hold_out_takes_its_share_of_every_class(seed: int, share: float, shuffle: bool) -> None:
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat(np.arange(12), random.integers(10, 60, 12)))
    train, held_out = StratifiedFolds(seed=seed, shuffle=shuffle).hold_out(y, share=share)
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(y)))
    counts = np.bincount(y[held_out], minlength=12)
    assert (np.abs(counts - share * np.bincount(y)) < 1 + 1e-9).all()
    assert abs(counts.sum() - share * len(y)) < 2
    _, theirs = train_test_split(np.arange(len(y)), test_size=share, stratify=y, random_state=seed)
    assert (np.abs(counts - np.bincount(y[theirs], minlength=12)) <= 1).all()


def test_a_hold_out_keeps_groups_and_both_sides_of_a_class() -> None:
    random = np.random.default_rng(0)
    for seed in range(100):
        groups = np.sort(random.integers(0, 40, 300))
        y = random.integers(0, 4, 40)[groups]
        train, held_out = StratifiedFolds(5, seed=seed).hold_out(y, groups)
        assert not set(groups[train]) & set(groups[held_out])
        assert set(y[train]) == set(y[held_out]) == set(y)
        assert abs(len(held_out) / 300 - 0.2) < 0.08
    train, held_out = StratifiedFolds().hold_out([0, 0, 1, 1], share=0.01)
    assert (len(train), len(held_out)) == (2, 2)


def test_what_a_hold_out_refuses() -> None:
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="`share` must be"):
            StratifiedFolds().hold_out([0, 0, 1, 1], share=share)
    with pytest.raises(ValueError, match=r"in each of 2 folds: '1' \(1 image\)"):
        StratifiedFolds().hold_out([0, 0, 1])


def test_repeats_have_seeds_of_their_own() -> None:
    repeats = StratifiedFolds(3, seed=4).repeated(5)
    assert repeats[0].seed == 4
    assert len({folds.seed for folds in repeats}) == 5
    assert repeats[1].seed != StratifiedFolds(3, seed=5).repeated(5)[0].seed
    assert [f.seed for f in repeats] == [f.seed for f in StratifiedFolds(3, seed=4).repeated(5)]
    y = np.repeat([0, 1], 30)
    held_out = [tuple(next(folds.split(y))[1]) for folds in repeats]
    assert len(set(held_out)) == 5
    with pytest.raises(ValueError, match="`times` must be >= 1"):
        repeats[0].repeated(0)
    with pytest.raises(ValueError, match="`shuffle` must be True for repeats to differ"):
        StratifiedFolds(3, shuffle=False).repeated(2)


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


def test_files_that_stand_twice_never_cross(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path, dirs_exist_ok=True)
    for first in range(0, 12, 2):
        name = f"train/TRAIN_{first:05}.png"
        shutil.copy(tmp_path / name, tmp_path / f"train/TRAIN_{first + 1:05}.png")
    manifest = Manifest.read_csv(tmp_path / "train.csv")
    for seed in range(10):
        fold_of = StratifiedFolds(4, seed=seed).assign(manifest)
        assert (fold_of[0:12:2] == fold_of[1:12:2]).all()
    (tmp_path / "train/TRAIN_00007.png").unlink()
    with pytest.raises(DataError, match=r"row 8, train/TRAIN_00007\.png: cannot be read"):
        StratifiedFolds(4).assign(manifest)
