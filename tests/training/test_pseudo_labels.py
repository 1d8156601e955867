import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import BalancedSampler, DataError, Manifest, StratifiedFolds, collate
from lowres_vision.ensemble import make_views, summarise
from lowres_vision.ensemble._runs import read_test_votes
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import Classifier, PseudoLabels, cross_validate, predict_views

FOLDS = StratifiedFolds(2, seed=0)


def build() -> Classifier:
    return Classifier(
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        CrossEntropyLoss(),
        transform=BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3),
        optimizer=partial(torch.optim.Adam, lr=0.03),
    )


@pytest.fixture(scope="module")
def train(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


@pytest.fixture(scope="module")
def test(toy: Path, train: Manifest) -> Manifest:
    return Manifest.read_csv(toy / "test.csv", classes=train.classes)


@pytest.fixture
def first(train: Manifest, test: Manifest, tmp_path: Path) -> Path:
    cross_validate(train, build, out=tmp_path / "first", folds=FOLDS, test=test, epochs=1)
    return tmp_path / "first"


def rewrite(run: Path, **arrays: Any) -> None:
    file = run / "test_probabilities.npz"
    with np.load(file) as stored:
        np.savez(file, **{**stored, **arrays})


def vote(run: Path, labels: list[list[int]], sure: list[list[float]]) -> None:
    """Let the run's fold models vote for ``labels`` of its first test rows, the rest unsure."""
    with np.load(run / "test_probabilities.npz") as stored:
        votes = np.full_like(stored["probabilities"], 1 / 3)
    for fold, (classes, shares) in enumerate(zip(labels, sure, strict=True)):
        for row, (label, share) in enumerate(zip(classes, shares, strict=True)):
            votes[0, fold, row] = (1 - share) / 2
            votes[0, fold, row, label] = share
    rewrite(run, probabilities=votes)


def second(train: Manifest, first: Path, out: Path, **options: Any) -> Any:
    options = {"epochs": 1, "batch_size": 64, "folds": FOLDS, **options}
    options.setdefault("pseudo_labels", PseudoLabels([first], confidence=0.0))
    return cross_validate(train, build, out=out, **options)


def test_each_fold_trains_on_the_labels_that_its_own_models_vote_for(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    vote(first, [[0, 1, 2], [2, 0]], [[0.9, 0.61, 0.59], [0.8, 0.7]])
    batches = []

    def spy(samples: Any) -> Any:
        batch = collate(samples)
        batches.append(dict(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)))
        return batch

    sure = PseudoLabels([first], confidence=0.6)
    second(train, first, tmp_path / "second", test=test, collate=spy, pseudo_labels=sure)
    fold_of = FOLDS.assign(train)
    for fold, added in enumerate([{0: 0, 1: 1}, {0: 2, 1: 0}]):
        own = {row: int(train.labels[row]) for row in np.flatnonzero(fold_of != fold)}
        assert batches[fold] == own | {len(train) + place: label for place, label in added.items()}


def test_all_runs_seeds_and_views_have_the_same_weight(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    cross_validate(
        train, build, out=other, folds=FOLDS, test=test, epochs=1, seeds=(1, 2), batch_size=16
    )
    found = PseudoLabels([first, other], confidence=0).label(
        test, classes=train.classes, fold_hash=_fold_hash(first)
    )
    stacks = [np.load(run / "test_probabilities.npz")["probabilities"] for run in (first, other)]
    expected = np.concatenate(stacks).mean(axis=0).argmax(axis=-1)
    assert [rows.labels.tolist() for rows in found] == expected.tolist()
    assert all(rows.ids == test.ids for rows in found)


def test_a_run_that_is_found_twice_has_the_weight_of_one(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    cross_validate(train, build, out=other, folds=FOLDS, test=test, epochs=1, batch_size=16)
    shutil.copytree(first, tmp_path / "copy")
    summarise([first], merged=first / "merged")
    monkeypatch.chdir(tmp_path)
    options = {"classes": train.classes, "fold_hash": _fold_hash(first)}
    once = read_test_votes([other, first], **options)[1]
    twice = read_test_votes([other, "first", tmp_path / "copy", first], **options)[1]
    np.testing.assert_array_equal(twice, once)


def test_rows_are_found_by_id_whatever_their_order(
    train: Manifest, test: Manifest, first: Path
) -> None:
    vote(first, [[0, 1], [2, 0]], [[0.9, 0.9], [0.9, 0.9]])
    turned = test.take(np.arange(len(test))[::-1])
    for fold, labels in enumerate([[1, 0], [0, 2]]):
        found = PseudoLabels([first]).label(
            turned, classes=train.classes, fold_hash=_fold_hash(first)
        )[fold]
        assert found.ids == (test.ids[1], test.ids[0])
        assert found.labels.tolist() == labels


def test_what_is_scored_and_written_stays_that_of_the_known_rows(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    result = second(train, first, tmp_path / "second", test=test)
    assert result.probabilities.shape == (len(train), 3)
    assert result.test_stack.shape == (1, 2, len(test), 3)


def test_a_finished_run_is_read_back_and_other_labels_are_refused(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    once = second(train, first, out, test=test)
    again = second(train, first, out, test=test)
    np.testing.assert_array_equal(once.probabilities, again.probabilities)
    vote(first, [[0, 1], [2, 0]], [[0.9, 0.9], [0.9, 0.9]])
    with pytest.raises(FileExistsError, match="pseudo_labels_sha256"):
        second(train, first, out, test=test)
    with pytest.raises(FileExistsError, match="pseudo_labels_sha256"):
        second(train, first, out, test=test, pseudo_labels=None)
    for fold in out.glob("fold_*"):
        shutil.rmtree(fold)
    with pytest.raises(ValueError, match=r"second.ledger holds another ledger: .*, or delete it"):
        second(train, first, out, test=test)


def test_both_rounds_of_one_model_and_seed_are_blended(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    second(train, first, out, test=test)
    predict_views(train, build, make_views(), out=out, test=test)
    summary = summarise([first, out], weights="equal")
    assert summary.members == (f"model of {first}, seed 0", f"model of {out}, seed 0")
    assert summary.differ == ("files",)
    assert summary.test_predictions is not None


def test_the_sampler_meets_the_added_labels(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    vote(first, [[0, 0, 0], [0, 0, 0]], [[0.9] * 3] * 2)
    met = []

    def sampling(labels: Any, **options: Any) -> BalancedSampler:
        met.append(np.bincount(labels).tolist())
        return BalancedSampler(labels, **options)

    sure = PseudoLabels([first], confidence=0.6)
    second(train, first, tmp_path / "second", test=test, sampler=sampling, pseudo_labels=sure)
    fold_of = FOLDS.assign(train)
    for fold in range(2):
        counts = np.bincount(train.labels[fold_of != fold])
        assert met[fold] == [counts[0] + 3, *counts[1:]]


def test_a_test_set_of_another_folder_and_of_the_same_ids_joins(
    toy: Path, train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    ids = train.ids[: len(test)]
    rewrite(first, ids=np.array(ids))
    names = {file: Path(file).name for file in test.low}
    folders = {Path(file).parent for file in test.low}
    assert len(folders) == 1
    moved = replace(
        test,
        root=test.root / folders.pop(),
        low=tuple(names[file] for file in test.low),
        ids=ids,
        classes=(),
        label_column=None,
    )
    result = second(train, first, tmp_path / "second", test=moved)
    assert np.isfinite(result.probabilities).all()


def test_a_test_set_is_found_from_a_training_set_behind_a_link(
    toy: Path, train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copytree(toy, tmp_path / "deep" / "toy")
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "toy", target_is_directory=True)
    linked = replace(train, root=tmp_path / "linked")
    result = second(linked, first, tmp_path / "second", test=test)
    assert np.isfinite(result.probabilities).all()


def test_the_folds_share_a_cache_of_both_sets(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    vote(first, [[0, 1, 2], [2, 0]], [[0.9, 0.9, 0.9], [0.9, 0.9]])
    sure = PseudoLabels([first], confidence=0.6)
    cache = tmp_path / "cache"
    second(train, first, tmp_path / "second", test=test, pseudo_labels=sure, cache=cache)
    assert len(list(cache.glob("*.images"))) == 3  # trained on, held out, test


def test_high_images_are_trained_on_where_both_sets_have_them(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"test\.csv.* no high-resolution column"):
        second(train, first, tmp_path / "no", test=test, resolution="both")
    rows = []

    def spy(samples: Any) -> Any:
        batch = collate(samples)
        rows.extend(batch.rows.tolist())
        return batch

    second(
        train,
        first,
        tmp_path / "yes",
        test=replace(test, high=test.low),
        resolution="both",
        collate=spy,
    )
    assert sum(row >= len(train) for row in rows) == 2 * 2 * len(test)  # folds, resolutions


def test_runs_that_may_have_seen_what_is_held_out_are_refused(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="may have seen what is held out"):
        second(train, first, tmp_path / "second", test=test, folds=StratifiedFolds(2, seed=1))


def test_what_does_not_fit_is_told_before_training(
    train: Manifest, test: Manifest, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    with pytest.raises(ValueError, match="`test` must be given"):
        second(train, first, out)
    with pytest.raises(TypeError, match="`pseudo_labels` must be a PseudoLabels"):
        second(train, first, out, test=test, pseudo_labels=first)
    with pytest.raises(TypeError, match="`runs` must be a list of folders"):
        PseudoLabels(str(first))
    with pytest.raises(ValueError, match="`runs` must name at least one"):
        PseudoLabels([])
    with pytest.raises(ValueError, match="`confidence`"):
        PseudoLabels([first], confidence=1.5)
    with pytest.raises(ValueError, match="must have predicted the rows of `test`: 7 stand in"):
        second(train, first, out, test=test.take(range(5)))
    with pytest.raises(ValueError, match="`confidence` must be reached by some test row"):
        second(train, first, out, test=test, pseudo_labels=PseudoLabels([first], 1.0))
    for runs in (tmp_path, os.path.relpath(out)):
        with pytest.raises(ValueError, match="`out` must lie outside of the runs"):
            second(train, first, out, test=test, pseudo_labels=PseudoLabels([runs]))
    (first / "test_probabilities.npz").unlink()
    with pytest.raises(FileNotFoundError, match="give `test` to the run"):
        second(train, first, out, test=test)
    with pytest.raises(FileNotFoundError, match="holds no ledger"):
        second(train, tmp_path / "none", out, test=test)
    assert not list(out.glob("fold_*"))


def _fold_hash(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["folds_sha256"])
