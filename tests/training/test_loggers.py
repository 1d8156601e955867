import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowres_vision.training import make_loggers


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
