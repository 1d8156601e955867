"""What to do about a machine that ran out of something, in place of what the machine says."""

import errno
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import DistError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
# As PyTorch says it where it waits for a batch, and where its signal handler happens to run.
_WORKER_DIED = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited|is killed by)"
_PEER_DIED = ("reset by peer", "closed by peer", "Broken pipe")  # gloo; NCCL raises a DistError
GO_ON = "start the same command again, and the run goes on from its last checkpoint"


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Say of a full disk what to do about it, in an OSError of a run in ``directory``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        words = f"no space is left to write {error.filename or directory}; files are replaced whole"
        raise OSError(
            error.errno, f"{words}, so what was saved before is intact. Free some, and {GO_ON}"
        ) from error


@contextmanager
def advice(
    directory: Path,
    *,
    batch_size: int,
    precision: str,
    workers: int,
    rows_of: Callable[[Collection[int] | None], Sequence[int]] = lambda _: (),
) -> Iterator[None]:
    """Say what ran out and what to do, in errors of a run in ``directory``.

    Args:
        directory: The run's.
        batch_size: Samples in a batch.
        precision: Lightning's name of the arithmetic.
        workers: Loader processes.
        rows_of: From numbers of loader processes, None for all, to the rows that they last began
            to read.

    Raises:
        torch.OutOfMemoryError: Of a device or of the machine.
        RuntimeError: Of a loader process, or another process of the run, that died.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise torch.OutOfMemoryError(_no_memory(directory, batch_size, precision, error)) from error
    except (ConnectionError, EOFError) as error:
        # A batch that a loader process had ready is fetched from it, and it is gone.
        calls = traceback.extract_tb(error.__traceback__)
        if not any(call.name == "_try_get_data" for call in calls):
            raise
        text = _dead_worker(directory, workers, rows_of(None), error)
        raise RuntimeError(text) from error
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in _NO_MEMORY):
            text = _no_memory(directory, batch_size, precision, error)
            raise torch.OutOfMemoryError(text) from error
        if died := re.search(_WORKER_DIED, text):
            rows = rows_of([int(number) for number in died[1].split(",")])
            raise RuntimeError(_dead_worker(directory, workers, rows, error)) from error
        if isinstance(error, DistError) or any(words in text for words in _PEER_DIED):
            raise RuntimeError(
                f"another process of {directory} is gone, and this one cannot go on alone. What it "
                f"died of is in its own output and in errors.txt; one that the system killed left "
                f"no words. To all of them: {GO_ON}. The connection said: {_short(error)}"
            ) from error
        raise


def _dead_worker(directory: Path, workers: int, rows: Sequence[int], error: BaseException) -> str:
    read = f", with rows {', '.join(map(str, rows))} being read" if rows else ""
    return (
        f"one of the {workers} loader processes of {directory} died{read}. As a rule the system "
        f"killed it for want of memory: give fewer `workers`, or another machine; the outcome is "
        f"the same with any number. If it dies at the same rows again, one of their files is at "
        f"fault: `audit` finds it. Then {GO_ON}. PyTorch said: {_short(error)}"
    )


def _no_memory(directory: Path, batch_size: int, precision: str, error: BaseException) -> str:
    half = batch_size // 2
    smaller = (
        f"`batch_size={half}` with twice the `accumulate` takes the same steps in half the memory"
        if half
        else "the model itself is too large"
    )
    cheaper = "; so does `precision='bf16-mixed'`, nearly" if precision == "32-true" else ""
    return (
        f"out of memory in {directory} with batches of {batch_size} in {precision}. "
        f"{smaller}{cheaper}; in another folder, as these are other settings. "
        f"The device said: {_short(error)}"
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
