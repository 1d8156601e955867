import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lowres_vision import ensemble
from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs
from lowres_vision.ensemble import Member, OutOfFold, View, summarise
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import Classifier, cross_validate, load_weights, predict_views

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)
COLOURS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
VIEWS = (View(), View("flip", flip=True), View("corner", box=(0, 0, 0.75, 0.75)))


@pytest.fixture(scope="module")
def builds(patch_net) -> dict:  # type: ignore[no-untyped-def]
    def build(width: int) -> Classifier:
        optimizer = partial(torch.optim.SGD, lr=0.1)
        transform = BatchTransform(16, **COLOURS)
        return Classifier(
            patch_net(width), CrossEntropyLoss(), transform=transform, optimizer=optimizer
        )

    return {"narrow": partial(build, 4), "wide": partial(build, 8)}


def augment(classifier: Classifier, **changes: object) -> ensemble.TestTimeAugmentation:
    options = {"views": VIEWS, "size": 16, **COLOURS, **changes}
    probabilities = classifier.loss.probabilities
    return ensemble.TestTimeAugmentation(
        classifier.scored_model,
        probabilities=probabilities,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, builds) -> tuple[Manifest, Manifest, Path]:  # type: ignore[no-untyped-def]
    folder = make_toy_pairs(
        tmp_path_factory.mktemp("toy"), classes=3, per_class=6, test_per_class=2
    )
    manifest = Manifest.read_csv(folder / "train.csv")
    test = Manifest.read_csv(folder / "test.csv", classes=manifest.classes)
    out = tmp_path_factory.mktemp("out")
    folds = np.arange(18) % 2
    cross_validate(manifest, builds, out=out, folds=folds, test=test, epochs=1, batch_size=9)
    return manifest, test, out


def test_views_are_entered_and_blended(finished, builds) -> None:  # type: ignore[no-untyped-def]
    manifest, test, out = finished
    with np.load(out / "test_probabilities.npz") as stored:
        before = stored["probabilities"].copy()
    for _ in range(2):  # the second time changes nothing
        seconds = predict_views(manifest, builds, augment, out=out, test=test, batch_size=4)
    assert set(seconds) == {"narrow", "wide"}
    assert set(seconds["wide"]) == {"plain", "flip", "corner"}
    ledger = OutOfFold(out / "ledger")
    assert len(ledger.members()) == 6

    classifier = builds["wide"]().eval()
    load_weights(classifier.scored_model, out / "wide" / "fold_1" / "best.safetensors")
    rows = [manifest.ids.index(name) for name in np.array(ledger.ids)[ledger.fold_of == 1]]
    images = torch.stack([sample.image for sample in MultiResolutionDataset(manifest, rows=rows)])
    expected = augment(classifier).each(images).detach().numpy()
    for view, answer in zip(("plain", "flip", "corner"), expected, strict=True):
        found = ledger.probabilities([Member("wide", 0, view)])[0, ledger.fold_of == 1]
        np.testing.assert_allclose(found, answer, atol=1e-5)
    assert np.abs(expected[1] - expected[0]).max() > 1e-4

    with np.load(out / "test_probabilities.npz") as stored:
        assert stored["probabilities"].shape == (6, 2, 6, 3)
        np.testing.assert_array_equal(stored["probabilities"][:2], before)
        assert sorted(zip(stored["models"], stored["views"], strict=True)) == sorted(
            (model, view) for model in builds for view in ("plain", "flip", "corner")
        )
        place = list(zip(stored["models"], stored["views"], strict=True)).index(("wide", "flip"))
        unseen = torch.stack([sample.image for sample in MultiResolutionDataset(test)])
        expected = augment(classifier).each(unseen).detach().numpy()[1]
        np.testing.assert_allclose(stored["probabilities"][place, 1], expected, atol=1e-5)
    summary = summarise([out])
    assert summary.members == ("narrow, seed 0", "wide, seed 0")
    assert summary.test_predictions is not None
    assert len(summary.test_predictions) == 6


@pytest.mark.parametrize(
    "changes", [{"mean": (0.2,) * 3}, {"std": None, "mean": None}], ids=["mean", "none"]
)
def test_views_of_other_images_than_the_runs_are_refused(
    changes: dict[str, object], finished, builds
) -> None:  # type: ignore[no-untyped-def]
    manifest, _, out = finished
    with pytest.raises(ValueError, match=r"its plain view is off the run's own predictions by"):
        predict_views(manifest, builds, partial(augment, **changes), out=out)


def test_runs_that_are_missing_or_unfinished_are_named(finished, builds, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    manifest, _, out = finished
    with pytest.raises(FileNotFoundError, match="holds no ledger"):
        predict_views(manifest, builds, augment, out=tmp_path)
    with pytest.raises(ValueError, match=r"`build` has no 'wide', of which .*fold_0 is a run"):
        predict_views(manifest, {"narrow": builds["narrow"]}, augment, out=out)
    book = out / "wide" / "fold_1" / "run.json"
    text = book.read_text()
    book.write_text(text.replace('"done"', '"trained"'))
    try:
        with pytest.raises(ValueError, match="fold_1 is not finished"):
            predict_views(manifest, builds, augment, out=out)
    finally:
        book.write_text(text)


def test_views_alone_are_shown_as_the_runs_images_were(finished, builds) -> None:  # type: ignore[no-untyped-def]
    manifest, test, out = finished
    predict_views(manifest, builds, augment, out=out, test=test)
    ledger = OutOfFold(out / "ledger")
    before, members = ledger.probabilities(), ledger.members()
    # What is in a ledger with other numbers is refused, so this call compares them, bit for bit.
    predict_views(manifest, builds, VIEWS, out=out, test=test)
    assert ledger.members() == members
    np.testing.assert_array_equal(ledger.probabilities(), before)


def test_views_alone_have_the_transforms_own_evaluation(
    finished, patch_net, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    manifest, _, _ = finished

    def build() -> Classifier:
        # Size, colours and kernel of evaluation, each other than its default.
        transform = BatchTransform(16, **COLOURS, mode="bicubic", eval_size=20)
        optimizer = partial(torch.optim.SGD, lr=0.1)
        return Classifier(
            patch_net(4), CrossEntropyLoss(), transform=transform, optimizer=optimizer
        )

    cross_validate(manifest, build, out=tmp_path, folds=np.arange(18) % 2, epochs=1)
    predict_views(manifest, build, VIEWS, out=tmp_path)  # refuses a plain view that is off
    assert len(OutOfFold(tmp_path / "ledger").members()) == 3


@pytest.mark.parametrize(
    ("transform", "error", "words"),
    [
        (torch.nn.Identity(), TypeError, "no BatchTransform, .* got views for Identity"),
        (BatchTransform(16, **COLOURS, via=8), ValueError, r"first resized to \(8, 8\), the `via`"),
    ],
)
def test_views_alone_of_another_transform_are_refused(
    transform: torch.nn.Module, error: type, words: str, finished, builds
) -> None:  # type: ignore[no-untyped-def]
    manifest, _, out = finished

    def build(name: str) -> Classifier:
        classifier = builds[name]()
        classifier.transform = transform
        return classifier

    with pytest.raises(error, match=words):
        predict_views(manifest, {name: partial(build, name) for name in builds}, VIEWS, out=out)


def test_views_stay_when_the_runs_are_read_back(finished, builds) -> None:  # type: ignore[no-untyped-def]
    manifest, test, out = finished
    predict_views(manifest, builds, augment, out=out, test=test)
    file = out / "test_probabilities.npz"
    before = file.read_bytes()
    settings = {"folds": np.arange(18) % 2, "test": test, "epochs": 1, "batch_size": 9}
    cross_validate(manifest, builds, out=out, **settings)
    assert file.read_bytes() == before
    cross_validate(manifest, {"wide": builds["wide"]}, out=out, **settings)
    assert file.read_bytes() == before


def test_test_rows_of_another_order_are_refused(finished, builds, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    manifest, test, out = finished
    for rows in (range(5), range(5, -1, -1)):
        with pytest.raises(ValueError, match=r"`test` must have the rows that .*, in their order"):
            predict_views(manifest, builds, augment, out=out, test=test.take(rows))
    shutil.copytree(out, tmp_path / "without")
    (tmp_path / "without" / "test_probabilities.npz").unlink()
    with pytest.raises(FileNotFoundError, match="give `test` to cross_validate first"):
        predict_views(manifest, builds, augment, out=tmp_path / "without", test=test)
