"""What a run makes of a stop, of callbacks, of loggers and of Ctrl-C."""

import csv
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from lowres_vision.data import BalancedSampler, Manifest
from lowres_vision.optim import SAM
from lowres_vision.training import Classifier, CrossValidation, cross_validate, parameter_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)


class Interrupt(L.Callback):
    """Raises in the second epoch, or presses Ctrl-C."""

    def __init__(self, *, batch: int = 0, key: bool = False) -> None:
        self.batch, self.key = batch, key

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, __: Any, batch: int) -> None:
        if trainer.current_epoch == 1 and batch == self.batch:
            if not self.key:
                raise InterruptedError
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # the signal comes at once


class Count(L.Callback):
    """Counts the steps that were done."""

    done = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.done += 1

    def __deepcopy__(self, memo: object) -> "Count":
        return self


def train(build: Any, manifest: Manifest, out: Path, **settings: Any) -> CrossValidation:
    folds = np.arange(len(manifest)) % 2 - 1
    return cross_validate(manifest, build, out=out, folds=folds, **{"epochs": 2, **settings})


@pytest.mark.parametrize(
    ("built", "settings"),
    [
        ({"lr": 0.0}, {"epochs": 9, "patience": 2}),  # stops after three
        (
            {"optimizer": partial(SAM, base_optimizer=torch.optim.AdamW, lr=0.01)},
            {"clip_norm": 0.1},
        ),
        ({}, {"accumulate": 2, "sampler": BalancedSampler, "samples_per_epoch": 30}),
        ({"unfreeze": {0: "head", 1: "*"}}, {"keep": 2, "monitor": "val_loss"}),
        ({"groups": partial(parameter_groups, rates={"head": 5})}, {"precision": "bf16-mixed"}),
    ],
    ids=["patience", "sam", "accumulate", "unfreeze", "bf16"],
)
@pytest.mark.parametrize("batch", [0, 2], ids=["between", "within"])
def test_whatever_keeps_a_count_goes_on_with_it(
    batch: int,
    built: dict[str, Any],
    settings: dict[str, Any],
    patch_classifier: Any,
    toy_manifest: Any,
    tmp_path: Path,
) -> None:
    """Each together with an average of the weights; every file is that of an unbroken run."""
    build = partial(patch_classifier, ema=partial(ModelEmaV3, decay=0.8, use_warmup=True), **built)
    usual = {"batch_size": 6, "checkpoint_every": 1, **settings}
    train(build, toy_manifest, tmp_path / "unbroken", **usual)
    out = tmp_path / "broken"
    with pytest.raises(InterruptedError):
        train(build, toy_manifest, out, callbacks=[Interrupt(batch=batch)], **usual)
    train(build, toy_manifest, out, **usual)
    files = {"metrics.csv", "predictions.npz", "best.safetensors", "best.safetensors.json"}
    found = [{p.name: p.read_bytes() for p in (tmp_path / n / "fold_0").iterdir() if p.name in files
              or p.name.startswith("epoch_")} for n in ("unbroken", "broken")]  # fmt: skip
    assert found[0] == found[1]
    assert files <= found[0].keys()
    epochs = len(found[0]["metrics.csv"].splitlines()) // 2
    assert epochs == (3 if "patience" in settings else 2)


@pytest.mark.parametrize(
    ("callback", "instead"),
    [
        (ModelCheckpoint(), "see `checkpoint_every` and `keep`"),
        # Its average would be scored, and the weights without it saved.
        (EMAWeightAveraging(), "give the Classifier an `ema`"),
        (StochasticWeightAveraging(0.1), "give the Classifier an `ema`"),
        (GradientAccumulationScheduler({0: 2}), "give `accumulate`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_go_past_the_run_are_refused(
    callback: L.Callback, instead: str, patch_classifier: Any, toy_manifest: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"must have no {type(callback).__name__}, .*{instead}"):
        train(patch_classifier, toy_manifest, tmp_path, callbacks=[callback])


def test_arguments_are_refused_in_the_first_step_at_the_latest(
    patch_classifier: Any, toy_manifest: Any, tmp_path: Path
) -> None:
    def wide() -> Classifier:
        built: Classifier = patch_classifier()
        built.model.head = nn.Linear(16, 5)
        return built

    steps = Count()
    with pytest.raises(ValueError, match=r"each of 3 classes, got outputs of shape \(\d+, 5\)"):
        train(wide, toy_manifest, tmp_path, callbacks=[steps])
    assert steps.done == 0
    with pytest.raises(TypeError, match="`callbacks` must be callbacks of Lightning's, got <class"):
        train(patch_classifier, toy_manifest, tmp_path / "1", callbacks=[L.Callback])
    with pytest.raises(ValueError, match="`clip_norm` must be > 0, got 0"):
        train(patch_classifier, toy_manifest, tmp_path / "2", clip_norm=0)


def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(
    patch_classifier: Any, toy_manifest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(patch_classifier, toy_manifest, tmp_path, callbacks=[TQDMProgressBar()])
    shown = capsys.readouterr().out
    assert "Epoch 1" in shown
    assert "━" not in shown  # which the other is made of


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("csv", ["csv", "tensorboard"]),
        (["csv", "tensorboard"], "csv"),
        (["tensorboard", "csv"], ["csv", "tensorboard"]),
        ("tensorboard", "csv"),
    ],
)
def test_a_run_goes_on_with_other_loggers(
    before: Any, after: Any, patch_classifier: Any, toy_manifest: Any, tmp_path: Path
) -> None:
    """They show what comes out and do not change it."""
    expected = train(patch_classifier, toy_manifest, tmp_path / "unbroken")
    out = tmp_path / "broken"
    with pytest.raises(InterruptedError):
        train(patch_classifier, toy_manifest, out, logger=before, callbacks=[Interrupt()])
    found = train(patch_classifier, toy_manifest, out, logger=after)
    np.testing.assert_array_equal(found.stack, expected.stack)
    if "csv" in before:
        both = [(tmp_path / name / "fold_0" / "metrics.csv") for name in ("unbroken", "broken")]
        assert both[0].read_bytes() == both[1].read_bytes()
    else:  # nobody has written the first epoch down for it
        with (out / "fold_0" / "metrics.csv").open(newline="") as file:
            assert {row["epoch"] for row in csv.DictReader(file)} == {"1"}


def test_ctrl_c_stops_a_run_and_not_the_process(
    patch_classifier: Any, toy_manifest: Any, tmp_path: Path
) -> None:
    expected = train(patch_classifier, toy_manifest, tmp_path / "unbroken")
    handler, out = signal.default_int_handler, tmp_path / "broken"
    before = signal.signal(signal.SIGINT, handler)  # shells have it ignored in what they put behind
    try:
        with pytest.raises(KeyboardInterrupt, match="fold_0 was interrupted; start the same"):
            train(patch_classifier, toy_manifest, out, callbacks=[Interrupt(key=True)])
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (out / "fold_0" / "run.lock").exists()
    found = train(patch_classifier, toy_manifest, out)
    np.testing.assert_array_equal(found.stack, expected.stack)


@pytest.mark.parametrize("place", [".", "out/fold_0"])
def test_what_slurm_made_lightning_save_is_no_start_of_a_run(
    place: str,
    patch_classifier: Any,
    toy_manifest: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fold would go on from another fold's weights, which have seen its held-out rows."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"}
    job |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in {**job, "SLURM_NODEID": "0", "SLURM_NNODES": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "hpc_ckpt_1.ckpt").write_bytes(b"another fold's")
    train(patch_classifier, toy_manifest, tmp_path / "out")
