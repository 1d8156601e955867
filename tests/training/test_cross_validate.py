import csv
import json
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import DataError, Manifest, MultiResolutionDataset, StratifiedFolds
from lowres_vision.losses import ArcFaceLoss, CosineLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.models import LowResClassifier
from lowres_vision.optim import SAM
from lowres_vision.training import Classifier, PairsDataModule, cross_validate, load_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)


class ColourNet(nn.Module):
    """Sees the mean colour of the middle: enough to tell toy birds apart."""

    outputs = "logits"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images[:, :, 3:5, 3:5].mean(dim=(2, 3)))


def build(loss: nn.Module | None = None, lr: float = 0.03) -> Classifier:
    return Classifier(
        ColourNet(),
        loss or CrossEntropyLoss(),
        transform=BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3, scale=(0.8, 1.0)),
        optimizer=partial(torch.optim.Adam, lr=lr),
    )


@pytest.fixture(scope="module")
def manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


@pytest.fixture(scope="module")
def run(manifest: Manifest, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("runs") / "first"
    test = Manifest.read_csv(toy / "test.csv", classes=manifest.classes)
    folds = StratifiedFolds(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        result = cross_validate(
            manifest, build, out=out, folds=folds, test=test, epochs=12, batch_size=8
        )
    return {"out": out, "result": result, "test": test}


def test_it_learns_well_above_chance(run: dict) -> None:
    assert run["result"].accuracy > 0.7  # chance is 1/3


def test_scores_are_of_the_pooled_out_of_fold_predictions(run: dict, manifest: Manifest) -> None:
    result = run["result"]
    assert result.probabilities.shape == (36, 3)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    predicted = result.probabilities.argmax(axis=1)
    assert result.accuracy == pytest.approx((predicted == manifest.labels).mean())
    assert result.macro_f1 == pytest.approx(f1_score(manifest.labels, predicted, average="macro"))


def test_each_row_is_predicted_by_the_model_that_did_not_see_it(
    run: dict, manifest: Manifest
) -> None:
    """Rebuild each fold's best model from disk and predict its held-out rows by hand."""
    result = run["result"]
    for fold in range(3):
        classifier = build().eval()
        about = load_weights(classifier.model, run["out"] / f"fold_{fold}" / "best.safetensors")
        assert about["classes"] == list(manifest.classes)
        assert about["epoch"] == result.best_epochs[fold]
        rows = np.flatnonzero(result.fold_of == fold)
        dataset = MultiResolutionDataset(manifest, rows=rows)
        images = torch.stack([dataset[i].image for i in range(len(dataset))])
        with torch.no_grad():
            expected = classifier(classifier.transform(images)).softmax(dim=1)
        np.testing.assert_allclose(result.probabilities[rows], expected, atol=1e-6)


def test_the_best_epoch_is_the_best_in_the_log(run: dict) -> None:
    for fold, best in enumerate(run["result"].best_epochs):
        with (run["out"] / f"fold_{fold}" / "metrics.csv").open() as file:
            scores = {
                int(row["epoch"]): float(row["val_macro_f1"])
                for row in csv.DictReader(file)
                if row["val_macro_f1"]
            }
        assert len(scores) == 12
        assert best == max(scores, key=lambda epoch: (scores[epoch], -epoch))


def test_the_files_hold_the_result(run: dict, manifest: Manifest) -> None:
    out, result = run["out"], run["result"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] == result.accuracy
    assert summary["data_sha256"] == manifest.digest()
    assert summary["settings"]["epochs"] == 12
    stored = np.load(out / "out_of_fold.npz")
    assert np.array_equal(stored["probabilities"], result.probabilities)
    assert stored["test_probabilities"].shape == (3, len(run["test"]), 3)
    assert sorted(path.name for path in (out / "fold_0").iterdir()) == [
        "best.safetensors",
        "best.safetensors.json",
        "metrics.csv",
        "predictions.npz",
        "run.json",
        "usage.csv",
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "fold_0",
        "fold_1",
        "fold_2",
        "ledger",
        "out_of_fold.npz",
        "summary.json",
        "test_probabilities.npz",
    ]


def test_the_same_seed_repeats_bit_for_bit_with_any_workers(
    run: dict, manifest: Manifest, tmp_path: Path
) -> None:
    again = cross_validate(
        manifest, build, out=tmp_path, folds=StratifiedFolds(3), epochs=12, batch_size=8, workers=2
    )
    assert np.array_equal(again.probabilities, run["result"].probabilities)


@pytest.mark.parametrize("resolution", ["high", "both"])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CosineLoss()])
def test_resolutions_and_mixed_labels(
    resolution: str, loss: nn.Module, manifest: Manifest, tmp_path: Path
) -> None:
    result = cross_validate(
        manifest,
        partial(build, loss),
        out=tmp_path,
        folds=StratifiedFolds(2),
        resolution=resolution,  # type: ignore[arg-type]
        collate=CutMixCollator(3, p=0.5, size=8),
        epochs=10,
        batch_size=8,
    )
    assert result.accuracy > 0.5


def test_sam_sees_the_same_batch_twice_and_moves_statistics_once(manifest: Manifest) -> None:
    seen = []

    class Normed(ColourNet):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach().clone())
            return self.norm(super().forward(images))

    classifier = Classifier(
        Normed(),
        CrossEntropyLoss(),
        transform=BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3),
        optimizer=partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1),
    )
    dataset = MultiResolutionDataset(manifest)
    trainer = L.Trainer(
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, PairsDataModule(dataset, dataset, batch_size=12))
    assert len(seen) == 6
    assert all(
        torch.equal(first, second) for first, second in zip(seen[::2], seen[1::2], strict=True)
    )
    assert not torch.equal(seen[0], seen[2])
    assert int(classifier.model.norm.num_batches_tracked) == 3


def test_the_learning_rate_is_a_function_of_the_step(manifest: Manifest) -> None:
    rates = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    classifier = build(lr=1.0)
    classifier.warmup = 0.25
    dataset = MultiResolutionDataset(manifest)
    trainer = L.Trainer(
        max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[Spy()], enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, PairsDataModule(dataset, dataset, batch_size=12))
    warm = [(step + 1) / 4 for step in range(3)]
    cosine = [0.5 * (1 + np.cos(np.pi * step / 9)) for step in range(9)]
    np.testing.assert_allclose(rates, warm + cosine)


def test_faults_are_told_before_training(manifest: Manifest, toy: Path, tmp_path: Path) -> None:
    def never() -> Classifier:
        raise AssertionError("training started")

    unlabelled = Manifest.read_csv(toy / "test.csv")
    with pytest.raises(DataError, match="has no column `label`"):
        cross_validate(unlabelled, never, out=tmp_path)
    with pytest.raises(DataError, match=r"'Amber Finch' \(12 images\)"):
        cross_validate(manifest, never, out=tmp_path, folds=StratifiedFolds(13))
    with pytest.raises(DataError, match="has no high-resolution column"):
        cross_validate(manifest, never, out=tmp_path, test=unlabelled, held_out_resolution="high")
    with pytest.raises(ValueError, match="`precision` must be one of"):
        cross_validate(manifest, never, out=tmp_path, precision="8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got \['a/b'\]"):
        cross_validate(manifest, {"a/b": never}, out=tmp_path)
    with pytest.raises(ValueError, match=r"`seeds` must be different ints, .* got \(1, 1\)"):
        cross_validate(manifest, never, out=tmp_path, seeds=(1, 1))
    for folds in (np.zeros(36, dtype=int), [0, 2] * 18, [0.5] * 36, [0, 1]):
        with pytest.raises(ValueError, match="`folds` must give each of 36 rows a fold"):
            cross_validate(manifest, never, out=tmp_path, folds=folds)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_diverges_stops_the_run(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"val_loss is (nan|inf) after epoch 0; lower"):
        cross_validate(
            manifest, partial(build, lr=1e30), out=tmp_path, folds=StratifiedFolds(2), epochs=2
        )


def test_a_head_and_a_loss_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="ArcFaceLoss reads cosines, ColourNet gives logits"):
        build(ArcFaceLoss())


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"folds": 5}, TypeError, r"got 5; for 5 folds give StratifiedFolds\(5, seed=0\)"),
        ({"manifest": "train.csv"}, TypeError, "as Manifest.read_csv returns it, got 'train.csv'"),
        ({"test": "test.csv"}, TypeError, "`test` must be a Manifest"),
        ({"build": build()}, TypeError, "returns a Classifier, .* got a Classifier"),
        ({"build": {"net": "build"}}, TypeError, "returns a Classifier, .* got a str"),
        ({"build": ColourNet}, TypeError, "`build` must return a Classifier, got a ColourNet"),
    ],
)
def test_what_a_newcomer_gives_first_is_refused_in_words(
    manifest: Manifest, tmp_path: Path, changed: dict, kind: type[Exception], words: str
) -> None:
    arguments = {"manifest": manifest, "build": build, "folds": StratifiedFolds(3), **changed}
    with pytest.raises(kind, match=words):
        cross_validate(**arguments, out=tmp_path / "run")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("K", [2, 4])
def test_a_model_of_other_classes_is_refused_before_it_trains(
    manifest: Manifest, tmp_path: Path, K: int
) -> None:
    def make() -> Classifier:
        model = LowResClassifier("test_resnet", K, image_size=32)
        return Classifier(model, CrossEntropyLoss(), optimizer=torch.optim.AdamW)

    with pytest.raises(ValueError, match=f"a model of 3 classes, those of .*, got one of {K}"):
        cross_validate(manifest, make, out=tmp_path / "run", folds=StratifiedFolds(3))
    assert not [*tmp_path.iterdir()]
