import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError
from torch.utils.data import DataLoader, Dataset

from lowres_vision.training._advice import advice


def said(error: BaseException, tmp_path: Path, batch_size: int = 64) -> BaseException:
    with (
        pytest.raises(type(error)) as raised,
        advice(tmp_path, batch_size=batch_size, precision="32-true", workers=2),
    ):
        raise error
    return raised.value


def test_out_of_memory_says_what_to_give(tmp_path: Path) -> None:
    error = said(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), tmp_path)
    assert f"out of memory in {tmp_path} with batches of 64 in 32-true" in str(error)
    assert "`batch_size=32` with twice the `accumulate`" in str(error)
    assert "bf16-mixed" in str(error)
    assert "Tried to allocate 2 GiB" in str(error)
    assert "model itself is too large" in str(said(torch.OutOfMemoryError(), tmp_path, 1))


def test_memory_of_the_machine_too(tmp_path: Path) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match="batches of 8 in bf16-mixed"),
        advice(tmp_path, batch_size=8, precision="bf16-mixed", workers=0),
    ):
        torch.empty(2**60)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_that_nothing_is_lost(number: int, tmp_path: Path) -> None:
    error = said(OSError(number, os.strerror(number), str(tmp_path / "file")), tmp_path)
    assert f"no space is left to write {tmp_path / 'file'}" in str(error)
    assert "what was saved before is intact" in str(error)
    assert isinstance(error, OSError)
    assert error.errno == number


class Deadly(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_dead_loader_process_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=f"one of the 2 loader processes of {tmp_path} died"),
        advice(tmp_path, batch_size=8, precision="32-true", workers=2),
    ):
        list(DataLoader(Deadly(), num_workers=2))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[gloo/transport/tcp/pair.cc:545] Read [::1]:1: Connection reset by peer"
        ),
        DistBackendError("NCCL communicator was aborted on rank 1"),
    ],
)
def test_a_lost_process_of_the_run_is_named(error: RuntimeError, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=f"another process of {tmp_path} is gone.*goes on"),
        advice(tmp_path, batch_size=8, precision="32-true", workers=0),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2"), FileNotFoundError(errno.ENOENT, "no"), KeyError("k")]
)
def test_other_errors_pass_as_they_are(error: Exception, tmp_path: Path) -> None:
    assert said(error, tmp_path) is error
