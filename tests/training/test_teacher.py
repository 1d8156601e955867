import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, StratifiedFolds
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import (
    Classifier,
    Distillation,
    Fold,
    cross_validate,
    load_teacher,
    save_weights,
)
from lowres_vision.training._teacher import call_build

DATA = "0" * 64


def fold(index: int = 0, rows: tuple[int, ...] = (1, 4, 7), data: str = DATA) -> Fold:
    return Fold(index, np.array(rows), data)


@pytest.fixture
def weights(patch_net: Any, tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(patch_net(seed=3), path, fold=fold().record())
    return path


def test_a_record_is_of_the_rows_and_the_data_alone() -> None:
    record = fold().record()
    assert json.loads(json.dumps(record)) == record
    assert record["index"] == 0
    assert record["held_out"] == 3
    digest = record["held_out_sha256"]
    assert fold(rows=(7, 1, 4)).record()["held_out_sha256"] == digest
    others = [fold(rows=(1, 4)), fold(rows=(1, 4, 8)), fold(data="1" * 64)]
    assert digest not in [other.record()["held_out_sha256"] for other in others]


def test_the_same_folds_teacher_is_loaded_frozen(weights: Path, patch_net: Any) -> None:
    teacher = load_teacher(patch_net(seed=9), weights, fold=fold())
    for ours, saved in zip(teacher.parameters(), patch_net(seed=3).parameters(), strict=True):
        assert torch.equal(ours, saved)
        assert not ours.requires_grad
    assert not teacher.training


@pytest.mark.parametrize("other", [fold(1, (2, 5)), fold(rows=(1, 4)), fold(data="1" * 64)])
def test_a_teacher_that_may_have_seen_the_rows_is_refused(
    other: Fold, weights: Path, patch_net: Any
) -> None:
    with pytest.raises(ValueError, match=r"other rows held out .* may have seen what this fold"):
        load_teacher(patch_net(), weights, fold=other)


def test_weights_that_do_not_say_are_refused(tmp_path: Path, patch_net: Any) -> None:
    save_weights(patch_net(), tmp_path / "w.safetensors", epoch=3)
    with pytest.raises(ValueError, match="does not say which rows it was not trained on"):
        load_teacher(patch_net(), tmp_path / "w.safetensors", fold=fold())


def test_build_learns_its_fold_if_it_asks(patch_net: Any) -> None:
    def build(fold: Fold | None = None) -> Classifier:
        asked.append(fold)
        return Classifier(patch_net(), CrossEntropyLoss(), optimizer=torch.optim.Adam)

    asked: list[Fold | None] = []
    this = fold()
    call_build(build, this)
    call_build(lambda: build(), this)
    assert asked == [this, None]


def test_a_teacher_kept_from_another_fold_is_refused(weights: Path, patch_net: Any) -> None:
    teacher = load_teacher(patch_net(), weights, fold=fold())

    def build() -> Classifier:
        pairing = Distillation(teacher)
        return Classifier(
            patch_net(), CrossEntropyLoss(), optimizer=torch.optim.Adam, pairing=pairing
        )

    assert call_build(build, fold()).pairing.teacher is teacher
    with pytest.raises(ValueError, match=r"the teacher was trained with other rows held out"):
        call_build(build, fold(1, (2, 5)))


@pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)
def test_a_teacher_of_each_fold_teaches_the_student_of_that_fold(
    patch_net: Any, toy_manifest: Manifest, tmp_path: Path
) -> None:
    def classifier(**settings: Any) -> Classifier:
        return Classifier(
            patch_net(),
            CrossEntropyLoss(),
            transform=BatchTransform(16, mean=(0.5,) * 3, std=(0.25,) * 3, scale=(0.8, 1)),
            optimizer=partial(torch.optim.Adam, lr=0.03),
            **settings,
        )

    def student(*, fold: Fold, shift: int = 0) -> Classifier:
        path = tmp_path / "high" / f"fold_{(fold.index + shift) % 2}" / "best.safetensors"
        teacher = load_teacher(patch_net(), path, fold=fold)
        return classifier(pairing=Distillation(teacher, features=0.5))

    run = partial(cross_validate, toy_manifest, folds=StratifiedFolds(2), epochs=4, batch_size=9)
    run(classifier, out=tmp_path / "high", resolution="high")
    result = run(student, out=tmp_path / "pair", resolution="pair")
    assert result.accuracy > 0.4  # chance is 1/3
    with pytest.raises(ValueError, match="take the weights of the same fold"):
        run(partial(student, shift=1), out=tmp_path / "leak", resolution="pair")
