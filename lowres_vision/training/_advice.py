"""What to do about a machine that ran out of something, in place of what the machine says."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import DistError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
_WORKER_DIED = ("DataLoader worker", "exited unexpectedly")
_PEER_DIED = ("reset by peer", "closed by peer", "Broken pipe")  # gloo; NCCL raises a DistError


@contextmanager
def advice(directory: Path, *, batch_size: int, precision: str, workers: int) -> Iterator[None]:
    """Say what ran out and what to do, in errors of a run in ``directory``.

    Raises:
        torch.OutOfMemoryError: Of a device or of the machine.
        OSError: Of a disk.
        RuntimeError: Of a loader process, or another process of the run, that died.
    """
    go_on = "start the same command again, and the run goes on from its last checkpoint"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise torch.OutOfMemoryError(_no_memory(directory, batch_size, precision, error)) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        words = f"no space is left to write {error.filename or directory}; files are replaced whole"
        raise OSError(
            error.errno, f"{words}, so what was saved before is intact. Free some, and {go_on}"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in _NO_MEMORY):
            text = _no_memory(directory, batch_size, precision, error)
            raise torch.OutOfMemoryError(text) from error
        if all(words in text for words in _WORKER_DIED):
            raise RuntimeError(
                f"one of the {workers} loader processes of {directory} died; as a rule the system "
                f"killed it for want of memory. Give fewer `workers`, or another machine: the "
                f"outcome is the same with any number. Then {go_on}"
            ) from error
        if isinstance(error, DistError) or any(words in text for words in _PEER_DIED):
            raise RuntimeError(
                f"another process of {directory} is gone, and this one cannot go on alone. What it "
                f"died of is in its own output and in errors.txt; one that the system killed left "
                f"no words. To all of them: {go_on}. The connection said: {_short(error)}"
            ) from error
        raise


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
