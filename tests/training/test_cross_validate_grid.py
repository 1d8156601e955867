"""Models x seeds x folds in one folder: what is skipped, refused, and said."""

import errno
import json
import os
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import BalancedSampler, Manifest, make_toy_pairs
from lowres_vision.ensemble import Member, OutOfFold
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import Classifier, CrossValidation, Fold, cross_validate
from lowres_vision.training._lock import lock

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)


class Tiny(nn.Module):
    outputs = "logits"

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.mean(dim=(2, 3)))


def build(width: int = 4, lr: float = 0.1, dtype: torch.dtype = torch.float32) -> Classifier:
    transform = BatchTransform(4, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=dtype)
    optimizer = partial(torch.optim.SGD, lr=lr)
    return Classifier(Tiny(width), CrossEntropyLoss(), transform=transform, optimizer=optimizer)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = make_toy_pairs(tmp_path_factory.mktemp("few"), classes=3, per_class=4)
    return Manifest.read_csv(folder / "train.csv")


HOLD_OUT = np.array([-1, -1, 0, 0] * 3)


def once(manifest: Manifest, out: Path, **changes: object) -> CrossValidation:
    arguments = {"build": build, "folds": HOLD_OUT, "epochs": 1, "batch_size": 6, **changes}
    return cross_validate(manifest, out=out, **arguments)  # type: ignore[arg-type]


def test_models_and_seeds_share_a_folder_and_may_be_added(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"narrow": build, "wide": partial(build, 8)}
    folds = np.array([0, 0, 1, 1] * 3)
    first = once(manifest, tmp_path, build={"narrow": build}, seeds=[0], folds=folds)
    assert first.members == (Member("narrow", 0, "plain"),)
    result = once(manifest, tmp_path, build=models, seeds=[0, 1], folds=folds, test=None)
    assert "wide, seed 1, fold 1: run 8 of 8" in capsys.readouterr().out
    assert (tmp_path / "wide" / "seed_1" / "fold_1" / "predictions.npz").is_file()
    assert result.members == tuple(
        Member(model, seed, "plain") for model in models for seed in (0, 1)
    )
    assert np.array_equal(result.stack[0], first.stack[0])

    ledger = OutOfFold(tmp_path / "ledger")
    assert ledger.members() == list(result.members)
    assert np.array_equal(ledger.probabilities(result.members), result.stack)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [member["seed"] for member in summary["members"]] == [0, 1, 0, 1]

    alone = result.of("wide", seed=1)
    assert np.array_equal(alone.probabilities, result.stack[3])
    assert alone.accuracy == summary["members"][3]["accuracy"]
    assert len(alone.best_epochs) == 2
    with pytest.raises(ValueError, match=r"`accuracy` is of one model and seed, and there are 4"):
        _ = result.accuracy
    with pytest.raises(KeyError, match=r"2 members are 'wide', seed None; there are 'narrow'"):
        result.of("wide")
    assert not np.array_equal(result.stack[0], result.stack[1])


def test_finished_runs_are_skipped_and_read_back(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = once(manifest, tmp_path, test=manifest)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    def started(*_: object, **__: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(L.Trainer, "fit", started)
    again = once(manifest, tmp_path, test=manifest, workers=1, checkpoint_every=3)
    assert np.array_equal(again.probabilities, first.probabilities, equal_nan=True)
    assert again.test_probabilities is not None
    assert np.array_equal(again.test_probabilities, first.test_probabilities)
    assert (again.best_epochs, again.seconds) == (first.best_epochs, first.seconds)
    in_fold = tmp_path / "fold_0"
    assert all(
        path.stat().st_mtime_ns == at for path, at in files.items() if in_fold in [path.parent]
    )


def test_a_hold_out_scores_its_rows_alone(manifest: Manifest, tmp_path: Path) -> None:
    result = once(manifest, tmp_path)
    rows = np.flatnonzero(HOLD_OUT == 0)
    assert np.isnan(result.probabilities[HOLD_OUT == -1]).all()
    predicted = result.probabilities[rows].argmax(axis=1)
    assert result.accuracy == (predicted == manifest.labels[rows]).mean()
    assert result.macro_f1 == f1_score(manifest.labels[rows], predicted, average="macro")
    assert OutOfFold(tmp_path / "ledger").ids == tuple(manifest.ids[row] for row in rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 2}, r"settings.epochs: 1 there, 2 here"),
        ({"batch_size": 5}, r"settings.batch_size: 6 there, 5 here"),
        ({"resolution": "high"}, r"settings.resolution: 'low' there, 'high' here"),
        ({"build": partial(build, 8)}, r"build.model.layers_sha256: .* build.model.weights_sha256"),
        ({"build": partial(build, lr=0.2)}, r"build.make_optimizer.lr: 0.1 there, 0.2 here"),
        (
            {"build": partial(build, dtype=torch.bfloat16)},
            r"build.transform.dtype.is: 'torch.float",
        ),
        ({"folds": HOLD_OUT[::-1]}, r"folds_sha256: "),
        ({"seed": 1}, r"seed: 0 there, 1 here"),
    ],
)
def test_other_settings_are_refused_by_name(
    changes: dict, words: str, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / "first_of_all"
    once(manifest, out)  # trained by the first case, found by the others
    book = (out / "fold_0" / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=f"holds a run with other settings: .*{words}"):
        once(manifest, out, **changes)
    assert (out / "fold_0" / "run.json").read_bytes() == book


@pytest.mark.parametrize("name", ["predictions.npz", "best.safetensors", "best.safetensors.json"])
def test_a_damaged_file_is_made_again(
    name: str, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = once(manifest, tmp_path)
    file = tmp_path / "fold_0" / name
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = once(manifest, tmp_path)
    assert f"fold_0: {name} not as written; made again" in capsys.readouterr().out
    assert np.array_equal(again.probabilities, first.probabilities, equal_nan=True)
    assert file.read_bytes() == data


def test_two_processes_cannot_be_at_one_run(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    with (
        lock(tmp_path / "fold_0" / "run.lock"),
        pytest.raises(FileExistsError, match="fold_0 is in use by process"),
    ):
        once(manifest, tmp_path)


@pytest.mark.parametrize("synced", [14, 22])  # in the second epoch, and after training
def test_a_full_disk_loses_nothing(
    synced: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = once(manifest, tmp_path / "unbroken", epochs=3)
    fsync, left = os.fsync, [synced]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space is left .* start the same command again"):
        once(manifest, tmp_path / "full", epochs=3)
    monkeypatch.setattr(os, "fsync", fsync)
    fold = tmp_path / "full" / "fold_0"
    if synced == 14:
        assert (fold / "training.checkpoint").exists()
        assert "No space left" in (fold / "errors.txt").read_text()
    else:
        assert json.loads((fold / "run.json").read_text())["stage"] == "trained"
    found = once(manifest, tmp_path / "full", epochs=3)
    assert np.array_equal(found.probabilities, expected.probabilities, equal_nan=True)
    for name in ("metrics.csv", "best.safetensors", "predictions.npz"):
        same = [(tmp_path / out / "fold_0" / name).read_bytes() for out in ("full", "unbroken")]
        assert same[0] == same[1]


def test_the_books_say_what_a_run_is_made_of(manifest: Manifest, tmp_path: Path) -> None:
    once(manifest, tmp_path)
    book = json.loads((tmp_path / "fold_0" / "run.json").read_text())
    made_of = book["made_of"]
    assert book["stage"] == "done"
    assert set(book["files"]) == {"best.safetensors", "best.safetensors.json", "predictions.npz"}
    assert made_of["classes"] == list(manifest.classes)
    assert made_of["data_sha256"] == manifest.digest()
    assert made_of["build"]["transform"]["size"] == [4, 4]
    assert made_of["build"]["make_optimizer"] == {"call": "torch.optim.sgd.SGD", "lr": 0.1}
    assert torch.__version__.startswith(book["versions"]["torch"])
    about = json.loads((tmp_path / "fold_0" / "best.safetensors.json").read_text())
    assert about["fold"] == Fold(0, np.flatnonzero(HOLD_OUT == 0), manifest.digest()).record()


def test_the_best_weights_are_kept_by_epoch(manifest: Manifest, tmp_path: Path) -> None:
    result = once(manifest, tmp_path, epochs=4, keep=2, monitor="val_loss")
    names = sorted(path.name for path in (tmp_path / "fold_0").glob("epoch_*.safetensors"))
    assert len(names) == 2
    best = tmp_path / "fold_0" / f"epoch_{result.best_epochs[0]}.safetensors"
    assert best.read_bytes() == (tmp_path / "fold_0" / "best.safetensors").read_bytes()


def test_the_last_epoch_is_kept_where_none_is_chosen(manifest: Manifest, tmp_path: Path) -> None:
    still = partial(
        build, lr=0.0
    )  # every epoch scores alike, and of those a choice keeps the first
    assert once(manifest, tmp_path / "best", build=still, epochs=3).best_epochs[0] == 0
    assert once(manifest, tmp_path, build=still, epochs=3, monitor="last").best_epochs[0] == 2
    with pytest.raises(ValueError, match="`patience` must be None with monitor='last'"):
        once(manifest, tmp_path, monitor="last", patience=2)


def test_patience_ends_a_run(manifest: Manifest, tmp_path: Path) -> None:
    still = partial(build, lr=0.0)
    once(manifest, tmp_path, build=still, epochs=9, patience=2)
    rows = (tmp_path / "fold_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3  # a first epoch, and two no better


def test_a_class_balanced_sampler_draws_each_epoch(manifest: Manifest, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Spy(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            seen.append(batch.rows.tolist())

        def __deepcopy__(self, memo: object) -> "Spy":
            return self

    sampler = partial(BalancedSampler, scheme="inverse")
    once(manifest, tmp_path, sampler=sampler, samples_per_epoch=20, epochs=2, callbacks=[Spy()])
    assert [len(rows) for rows in seen] == [5, 5, 5, 5] * 2
    assert seen[:4] != seen[4:]
    assert {row for rows in seen for row in rows} <= set(np.flatnonzero(HOLD_OUT == -1).tolist())


def test_a_run_in_a_process_of_its_own_is_the_same(manifest: Manifest, tmp_path: Path) -> None:
    def sendable() -> partial[Classifier]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        transform = BatchTransform(4, mean=(0.5,) * 3, std=(0.25,) * 3)
        optimizer = partial(torch.optim.SGD, lr=0.1)
        return partial(
            Classifier, model, CrossEntropyLoss(), transform=transform, optimizer=optimizer
        )

    here = once(manifest, tmp_path / "here", build=sendable())
    there = once(manifest, tmp_path / "there", build=sendable(), isolate=True)
    assert np.array_equal(here.probabilities, there.probabilities, equal_nan=True)


def test_what_cannot_be_sent_to_a_process_is_said(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="define `build` at the top of a module"):
        once(manifest, tmp_path, build=lambda: build(), isolate=True)


@pytest.mark.parametrize("several", [{"devices": 2}, {"num_nodes": 2}, {}], ids=str)
def test_a_process_for_each_run_is_for_one_device(
    several: dict, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun the second run would wait for ever."""
    if not several:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`isolate` must be False with several devices"):
        once(manifest, tmp_path, isolate=True, **several)
    assert not any(tmp_path.iterdir())


def test_strategies_that_split_the_weights_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be 'fsdp' to share .* got 'deepspeed'"):
        once(manifest, tmp_path, strategy="deepspeed")


def test_a_cache_changes_nothing_but_the_reading(manifest: Manifest, tmp_path: Path) -> None:
    plain = once(manifest, tmp_path / "plain")
    cached = once(manifest, tmp_path / "cached", cache=tmp_path / "cache")
    np.testing.assert_array_equal(plain.stack, cached.stack)
    assert any((tmp_path / "cache").iterdir())
    again = once(manifest, tmp_path / "plain", cache=tmp_path / "cache")  # is no other setting
    np.testing.assert_array_equal(plain.stack, again.stack)


def test_numbers_of_numpy_are_numbers(manifest: Manifest, tmp_path: Path) -> None:
    one = {"epochs": np.int64(1), "batch_size": np.int32(6), "seeds": np.arange(1)}
    first = once(manifest, tmp_path, **one)
    again = once(manifest, tmp_path, seeds=[0])
    assert np.array_equal(first.stack, again.stack, equal_nan=True)
    with pytest.raises(TypeError, match=r"`epochs` must be an int, got 1\.5"):
        once(manifest, tmp_path, epochs=1.5)


@pytest.mark.parametrize("name", ["a/b", "..", "ledger", "summary.json", "NUL", "con.v1", "v1."])
def test_a_models_name_is_a_folder_of_its_own(
    name: str, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="make a folder of its own on every system, got"):
        once(manifest, tmp_path, build={name: build})
    once(manifest, tmp_path, build={"console-v1.5_b+": build})


def test_names_differ_in_more_than_case(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"differ in more than case, .* got \['Net', 'net'\]"):
        once(manifest, tmp_path, build={"Net": build, "net": partial(build, 5)})
