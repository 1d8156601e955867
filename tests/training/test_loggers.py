import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowres_vision.data import Manifest, StratifiedFolds
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import cross_validate, make_loggers
from lowres_vision.training._loggers import closing


def test_csv_and_tensorboard_hold_what_was_logged(tmp_path: Path) -> None:
    loggers = make_loggers(
        ["csv", "tensorboard"],
        tmp_path,
        tags=("night", "small"),
        settings={"lr": 1e-3, "folds": {"seed": 3}, "size": (64, 64)},
    )
    for step, loss in enumerate((2.0, 0.5)):
        for logger in loggers:
            logger.log_metrics({"train_loss": loss}, step=step)
    for logger in loggers:
        logger.save()
        logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == "step,train_loss\n0,2.0\n1,0.5\n"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(0, 2.0), (1, 0.5)]
    conditions = (tmp_path / "tensorboard" / "hparams.yaml").read_text()
    for line in ("tags: night small", "lr: 0.001", "folds.seed: 3", "size: (64, 64)"):
        assert line in conditions.splitlines()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_service_is_named_with_its_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=f"the logger '{name}' .*: pip install {name}$"):
        make_loggers(["csv", name], tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_missing_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lowres-vision\[track\]'"):
        make_loggers("tensorboard", tmp_path)


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be of 'csv', .* got 'neptune'"):
        make_loggers("neptune", tmp_path)
    with pytest.raises(ValueError, match="`names` has 'csv' 2 times"):
        make_loggers(["csv", "csv"], tmp_path)


class NotFinite(CrossEntropyLoss):
    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nan * super().forward(logits, targets)


def train(service: str, manifest: Manifest, build: Any, out: Path) -> None:
    """Train two folds of two epochs; then one that dies."""
    for loss in (CrossEntropyLoss, NotFinite):
        cross_validate(
            manifest,
            partial(build, loss()),
            out=out / loss.__name__,
            folds=StratifiedFolds(2),
            epochs=2,
            logger=["csv", service],
            tags=["night", "small images"],
        )


services = pytest.mark.filterwarnings("ignore")  # of the services' own packages


@services
@pytest.mark.slow
def test_mlflow_keeps_conditions_scores_use_and_errors(
    toy_manifest: Manifest, patch_classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back by MLflow's own client."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(FloatingPointError):
        train("mlflow", toy_manifest, patch_classifier, tmp_path)
    found = {}
    for file in tmp_path.glob("*/fold_*/mlflow.db"):
        client = tracking.MlflowClient(f"sqlite:///{file}")
        experiment = client.get_experiment_by_name("lowres-vision")
        (run,) = client.search_runs([experiment.experiment_id])
        found[run.data.tags["mlflow.runName"]] = run
        assert {"night", "small images"} < run.data.tags.keys()
        assert run.data.params["made_of.build.make_optimizer.lr"] == "0.125"
        assert run.data.params["versions.torch"] == torch.__version__.split("+")[0]
        assert {"commit", "host", "made_of.data_sha256"} < run.data.params.keys()
        if run.info.status == "FINISHED":
            scores = client.get_metric_history(run.info.run_id, "val_accuracy")
            assert len(scores) == 2
            assert {"train_loss", "usage/cpus", "usage/memory_mib"} < run.data.metrics.keys()
    assert {name: run.info.status for name, run in found.items()} == {
        "CrossEntropyLoss/fold_0": "FINISHED",
        "CrossEntropyLoss/fold_1": "FINISHED",
        "NotFinite/fold_0": "FAILED",
    }
    error = found["NotFinite/fold_0"].data.tags["error"]
    assert error.startswith("FloatingPointError: the loss is not finite in epoch 0, batch 0")


def records(file: Path) -> Iterator[Any]:
    """Yield what an offline run of W&B wrote: LevelDB's log, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768  # a record's head is never across two blocks
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def values(items: Any) -> dict[str, Any]:
    return {
        (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
        for item in items
        if item.value_json
    }


@services
@pytest.mark.slow
def test_wandb_keeps_conditions_scores_use_and_errors(
    toy_manifest: Manifest, patch_classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run for each fold, read from the files that it would send."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(FloatingPointError):
        train("wandb", toy_manifest, patch_classifier, tmp_path)
    ended = {}
    for file in tmp_path.glob("*/fold_*/wandb/offline-run-*/run-*.wandb"):
        config: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        history: dict[str, list[Any]] = {}
        for record in records(file):
            if record.HasField("run"):
                name = record.run.display_name
                assert set(record.run.tags) == {"night", "small images"}
                config |= values(record.run.config.update)
            config |= values(record.config.update)
            summary |= values(record.summary.update)
            for key, value in values(record.history.item).items():
                history.setdefault(key, []).append(value)
            if record.HasField("exit"):
                ended[name] = record.exit.exit_code
        assert config["made_of.build.make_optimizer.lr"] == 0.125
        assert {"commit", "host", "made_of.data_sha256", "versions.torch"} < config.keys()
        if ended[name]:
            assert summary["error"].startswith("FloatingPointError: the loss is not finite in")
        else:
            assert len(history["val_accuracy"]) == len(history["train_loss"]) == 2
            assert {"usage/cpus", "usage/memory_mib"} < history.keys()
    assert ended == {
        "CrossEntropyLoss/fold_0": 0,
        "CrossEntropyLoss/fold_1": 0,
        "NotFinite/fold_0": 1,
    }


def test_an_error_is_told_as_it_is_where_a_service_is_gone(tmp_path: Path) -> None:
    class Gone(WandbLogger):
        def __init__(self) -> None:
            pass

        @property
        def experiment(self) -> Any:
            raise ConnectionError("of the service")

    with pytest.raises(KeyError, match="of the run"), closing([Gone()]):
        raise KeyError("of the run")
    with pytest.raises(ConnectionError, match="of the service"), closing([Gone()]):
        pass


def test_a_run_that_only_predicts_again_is_none_to_the_loggers(
    toy_manifest: Manifest, patch_classifier: Any, tmp_path: Path
) -> None:
    """Nobody would end it, and W&B would take the next fold for a part of it."""

    def validate() -> list[Path]:
        cross_validate(
            toy_manifest,
            patch_classifier,
            out=tmp_path,
            folds=StratifiedFolds(2),
            epochs=1,
            logger="tensorboard",
        )
        return sorted(tmp_path.rglob("events.*"))

    events = validate()
    (tmp_path / "fold_0" / "predictions.npz").unlink()
    assert validate() == events
    assert (tmp_path / "fold_0" / "predictions.npz").is_file()
