import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistBackendError

from lowres_vision.training._advice import advice, full_disk


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
    with (
        pytest.raises(OSError, match="what was saved before is intact") as raised,
        full_disk(tmp_path),
    ):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert f"no space is left to write {tmp_path / 'file'}" in str(raised.value)
    assert raised.value.errno == number


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 11, 12) exited unexpectedly",
        "DataLoader worker (pid 11) is killed by signal: Segmentation fault. ",
    ],
)
def test_a_dead_loader_process_is_named_with_its_rows(text: str, tmp_path: Path) -> None:
    rows = {11: [5, 7], 12: [9]}
    with (
        pytest.raises(
            RuntimeError,
            match=rf"of the 2 loader processes of {tmp_path} died, with rows 5, 7(, 9)? being read",
        ),
        advice(
            tmp_path,
            batch_size=8,
            precision="32-true",
            workers=2,
            rows_of=lambda numbers: [row for number in numbers or () for row in rows[number]],
        ),
    ):
        raise RuntimeError(text)


def _try_get_data() -> None:
    """Fail as PyTorch's loader does when it fetches a batch from a process that is gone."""
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_batch_that_cannot_be_fetched_is_a_dead_loader_process(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "precision": "32-true", "workers": 2}
    with (
        pytest.raises(RuntimeError, match=r"processes of .* died, with rows 3 being read"),
        advice(tmp_path, rows_of=lambda numbers: [3], **settings),
    ):
        _try_get_data()
    with pytest.raises(ConnectionResetError), advice(tmp_path, **settings):
        raise ConnectionResetError(errno.ECONNRESET, "of something else")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:545] Read [::1]:1: Connection reset by peer"),
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
