"""What a run used of the machine, epoch by epoch, and the words of the error it died of."""

import csv
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from lowres_vision.training._metrics_file import MetricsFile

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

_MIB = 2**20


class UsageRecord(L.Callback):
    """Writes ``usage.csv``, a row per epoch, and appends to ``errors.txt`` if the run dies.

    ======================= =============================================================
    ``time``                when the epoch ended, UTC
    ``epoch``               from 0
    ``seconds``             that it took, validation included
    ``cpus``                CPUs kept busy on average, by this process and its loaders
    ``memory_mib``          most memory that this process has had at any time so far
    ``loader_memory_mib``   memory of the loader processes now, shared pages counted in each
    ``gpu_percent``         share of time in which the GPU was at work, sampled once a second;
                            needs the package nvidia-ml-py
    ``gpu_memory_mib``      most memory that tensors took on the GPU in the epoch
    ======================= =============================================================

    A cell is empty where there is no such device or no way to know. Other loggers than the CSV get
    the same numbers as ``usage/...``; ``metrics.csv`` is left alone, as it has to come out the same
    in every repetition. A resumed run adds its rows to the file. Times are those of process 0.

    Args:
        directory: Where the files go.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._start = self._cpu_start = self._sampled = 0.0
        self._percent: list[float] = []

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clocks of a run that goes on within an epoch."""
        self.on_train_epoch_start(trainer, module)

    @rank_zero_only
    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clocks."""
        self._start, self._cpu_start = time.monotonic(), _cpu_seconds()
        self._percent = []
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    @rank_zero_only
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Sample the GPU, at most once a second."""
        if module.device.type == "cuda" and time.monotonic() - self._sampled > 1:
            self._sampled = time.monotonic()
            percent = _gpu_percent(module.device)
            if percent is not None:
                self._percent.append(percent)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write a row."""
        seconds = time.monotonic() - self._start
        row: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "epoch": trainer.current_epoch,
            "seconds": round(seconds, 3),
            "cpus": round((_cpu_seconds() - self._cpu_start) / max(seconds, 1e-9), 2),
            "memory_mib": _peak_memory(),
            "loader_memory_mib": _loader_memory(),
            "gpu_percent": None,
            "gpu_memory_mib": None,
        }
        if module.device.type == "cuda":
            row["gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(module.device) / _MIB)
            if self._percent:
                row["gpu_percent"] = round(sum(self._percent) / len(self._percent))
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "usage.csv"
        with path.open("ab+") as last:  # what a full disk has cut off ends in its own line
            last.seek(max(0, last.tell() - 1))
            cut = last.read() not in (b"", b"\n")
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if cut:
                file.write("\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        numbers = {
            f"usage/{name}": float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "epoch"
        }
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsFile):
                logger.log_metrics(numbers, step=trainer.global_step)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write down what the run died of."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        words = "".join(traceback.format_exception(exception))
        with suppress(OSError):  # a disk that is full must not hide what the run died of
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / "errors.txt").open("a", encoding="utf-8") as file:
                file.write(
                    f"{now}, process {trainer.global_rank}, epoch {trainer.current_epoch}, "
                    f"step {trainer.global_step}\n{words}\n"
                )


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children, those alive and those that were."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for process in multiprocessing.active_children():
        try:
            # Past the name in brackets, which may hold spaces; user and system time in ticks.
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):  # no /proc here, or it has just ended
            continue
    return total


def _peak_memory() -> int | None:
    """Return the MiB that this process has had at most, None where the system does not say."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (_MIB if sys.platform == "darwin" else 1024))  # Linux counts in KiB


def _loader_memory() -> int | None:
    """Return the MiB of the loader processes, None where there are none or no ``/proc``."""
    pages = []
    for process in multiprocessing.active_children():
        try:
            pages.append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]))
        except (OSError, IndexError, ValueError):
            continue
    return round(sum(pages) * os.sysconf("SC_PAGE_SIZE") / _MIB) if pages else None


def _gpu_percent(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):  # without nvidia-ml-py, or without permission
        return None
