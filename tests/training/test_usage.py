import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lowres_vision.training import UsageRecord
from lowres_vision.training._usage import _gpu_percent

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)


class Worker(L.LightningModule):
    """Keeps the CPU busy for a while, or waits for a while, or dies."""

    def __init__(self, *, busy: float = 0.0, idle: float = 0.0, dies: bool = False) -> None:
        super().__init__()
        self.busy, self.idle, self.dies = busy, idle, dies
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        if self.dies:
            raise RuntimeError("the roof fell in")
        end = time.process_time() + self.busy
        while time.process_time() < end:
            pass
        time.sleep(self.idle)
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Logged(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)


def fit(
    module: Worker,
    directory: Path,
    *,
    epochs: int = 2,
    workers: int = 0,
    samples: Any = None,
) -> Logged:
    logged = Logged()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logged, callbacks=[UsageRecord(directory)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1,
    )  # fmt: skip
    samples = torch.rand(2, 1) if samples is None else samples
    loader = DataLoader(samples, num_workers=workers, persistent_workers=workers > 0)
    trainer.fit(module, loader)
    return logged


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "usage.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_time_and_cpu_are_those_of_the_epoch(tmp_path: Path) -> None:
    logged = fit(Worker(busy=0.2, idle=0.3), tmp_path)
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == ["0", "1"]
    for row, seen in zip(found, [r for r in logged.rows if "usage/cpus" in r], strict=True):
        seconds = float(row["seconds"])
        assert 1.0 <= seconds < 20  # two batches of half a second; the machine may be busy
        assert 0.35 <= float(row["cpus"]) * seconds <= 0.4 + 1.5  # CPU seconds
        assert 50 < float(row["memory_mib"]) < 20_000
        assert row["gpu_percent"] == row["gpu_memory_mib"] == row["loader_memory_mib"] == ""
        assert seen["usage/seconds"] == seconds


class Slow(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return torch.rand(1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_loader_processes_count(tmp_path: Path) -> None:
    fit(Worker(), tmp_path, workers=1, samples=Slow())
    for row in rows(tmp_path):
        assert float(row["cpus"]) * float(row["seconds"]) > 0.55
        assert int(row["loader_memory_mib"]) > 30


def test_a_resumed_run_adds_its_rows(tmp_path: Path) -> None:
    fit(Worker(), tmp_path, epochs=1)
    fit(Worker(), tmp_path, epochs=1)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "0"]


def test_a_row_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    fit(Worker(), tmp_path, epochs=1)
    path = tmp_path / "usage.csv"
    path.write_bytes(path.read_bytes()[:-5])
    fit(Worker(), tmp_path, epochs=2)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "0", "1"]
    assert all(float(row["seconds"]) > 0 for row in rows(tmp_path))


def test_an_error_is_told_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "errors.txt").mkdir()  # a file of this name cannot be opened
    with pytest.raises(RuntimeError, match="the roof fell in"):
        fit(Worker(dies=True), tmp_path)


def test_where_the_system_tells_no_memory_the_cell_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowres_vision.training._usage.resource", None)
    fit(Worker(), tmp_path, epochs=1)
    assert [row["memory_mib"] for row in rows(tmp_path)] == [""]


def test_a_run_that_dies_leaves_its_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the roof fell in"):
            fit(Worker(dies=True), tmp_path)
    text = (tmp_path / "errors.txt").read_text()
    assert text.count("RuntimeError: the roof fell in") == 2
    assert "process 0, epoch 0, step 0" in text
    assert "in training_step" in text
    fit(Worker(), tmp_path / "sound")
    assert not (tmp_path / "sound" / "errors.txt").exists()


def test_without_the_package_the_gpu_is_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert _gpu_percent(torch.device("cuda")) is None
