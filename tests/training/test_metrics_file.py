import csv
from pathlib import Path

import pytest
import torch

from lowres_vision.training._metrics_file import MetricsFile
from lowres_vision.training._writer import Writer


def test_a_row_per_call_and_a_column_per_name(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "fold_0")
    logger.log_metrics({"epoch": 0, "loss": torch.tensor(0.5)}, step=3)
    logger.log_metrics({"epoch": 0, "accuracy": 1 / 3}, step=3)
    logger.finalize("success")
    with (tmp_path / "fold_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"accuracy": "", "epoch": "0", "loss": "0.5", "step": "3"},
        {"accuracy": "0.3333333333333333", "epoch": "0", "loss": "", "step": "3"},
    ]
    assert (logger.name, logger.version) == ("", "fold_0")


def test_nothing_logged_is_no_file(tmp_path: Path) -> None:
    MetricsFile(tmp_path).save()
    assert not list(tmp_path.iterdir())


def test_a_resumed_file_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    def log(logger: MetricsFile, steps: range) -> None:
        for step in steps:
            logger.log_metrics({"epoch": step // 2, "loss": 1 / (step + 1)}, step=step)
            if step >= 4:  # a name that is new late: the columns of earlier rows change
                logger.log_metrics({"late": step}, step=step)

    unbroken = MetricsFile(tmp_path / "unbroken")
    log(unbroken, range(6))
    unbroken.save()

    first = MetricsFile(tmp_path / "resumed")
    log(first, range(3))
    state = first.state_dict()
    log(first, range(3, 6))
    first.save()  # rows that the checkpoint does not know of
    second = MetricsFile(tmp_path / "resumed")
    second.load_state_dict(state)
    log(second, range(3, 6))
    second.save()
    assert second.path.read_bytes() == unbroken.path.read_bytes()


def test_with_a_writer_rows_wait_for_a_checkpoint(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.writer = Writer()
    logger.log_metrics({"loss": 1.0})
    logger.save()
    logger.writer.wait()
    assert not logger.path.exists()
    assert logger.state_dict() == {"rows": 1}
    logger.writer.wait()
    assert logger.path.read_text() == "loss,step\n1.0,0\n"


def test_a_file_that_lost_rows_is_told(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"loss": 1.0})
    state = logger.state_dict()
    logger.path.unlink()
    with pytest.raises(ValueError, match=r"metrics.csv has 0 rows, the checkpoint .* knows of 1"):
        MetricsFile(tmp_path).load_state_dict(state)
