import errno
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lowres_vision.data import Manifest
from lowres_vision.training import _checkpoint, cross_validate
from lowres_vision.training._checkpoint import PlainCheckpoints, read_checkpoint
from lowres_vision.training._writer import Writer


def nothing() -> None:
    pass


def divide_by_zero() -> Any:
    return 1 / 0


def test_calls_are_done_in_order_while_the_caller_goes_on() -> None:
    done: list[int] = []
    gate = threading.Event()
    writer = Writer(most=4)
    writer.submit(lambda: gate.wait)
    for number in range(2):
        writer.submit(lambda number=number: partial(done.append, number))
    assert done == []
    gate.set()
    writer.wait()
    assert done == [0, 1]


def test_nothing_is_done_behind_an_error_and_it_is_raised_once() -> None:
    """A checkpoint behind weights that could not be written would know of weights not there."""
    done: list[str] = []
    gate = threading.Event()

    def full() -> None:
        gate.wait()
        raise OSError(errno.ENOSPC, "No space left")

    writer = Writer()
    writer.submit(lambda: full)
    writer.submit(lambda: partial(done.append, "checkpoint"))
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    assert done == []
    writer.submit(lambda: partial(done.append, "again"))
    writer.wait()
    assert done == ["again"]


def test_the_next_call_raises_the_error_of_an_earlier_one() -> None:
    writer = Writer(most=1)
    writer.submit(lambda: divide_by_zero)
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: nothing)  # waits for the first


def test_of_three_checkpoints_the_third_is_copied_when_the_first_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the disk is, two copies are the most that are in memory."""
    gate = threading.Event()
    write_whole = _checkpoint.write_whole

    def slow(path: Path, data: bytes) -> None:
        gate.wait()
        write_whole(path, data)

    monkeypatch.setattr(_checkpoint, "write_whole", slow)
    writer = Writer()
    checkpoints, weight = PlainCheckpoints(writer), torch.zeros(2)
    for number in (1, 2):
        checkpoints.save_checkpoint({"weight": weight}, tmp_path / str(number))
        weight += 1
    third = threading.Thread(
        target=checkpoints.save_checkpoint, args=({"weight": weight}, tmp_path / "3")
    )
    third.start()
    third.join(0.2)
    assert third.is_alive()
    weight += 10  # as nothing that training does can, which waits for the call to return
    gate.set()
    third.join()
    writer.wait()
    found = [read_checkpoint(tmp_path / str(number))["weight"].tolist() for number in (1, 2, 3)]
    assert found == [[0.0, 0.0], [1.0, 1.0], [12.0, 12.0]]


def test_a_copy_that_cannot_be_made_is_an_error_of_that_call_alone() -> None:
    done: list[str] = []
    writer = Writer()
    with pytest.raises(ZeroDivisionError):
        writer.submit(divide_by_zero)
    writer.submit(lambda: partial(done.append, "next"))
    writer.wait()
    assert done == ["next"]


def test_an_error_of_the_block_is_not_hidden_by_one_of_writing() -> None:
    def write_and_fail() -> None:
        with Writer() as writer:
            writer.submit(lambda: divide_by_zero)
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        write_and_fail()
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.submit(lambda: divide_by_zero)


def test_no_thread_is_left_when_all_is_written() -> None:
    before = threading.active_count()
    writer = Writer()
    writer.submit(lambda: nothing)
    writer.wait()
    assert threading.active_count() == before


def test_a_thread_that_cannot_start_is_an_error_and_nothing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = Writer()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            writer.submit(lambda: nothing)
    waiting = threading.Thread(target=writer.wait, daemon=True)
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive()


class StopOnce(L.Callback):
    """Ends the first call in the first step of the second epoch."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and not self.flag.exists():
            self.flag.touch()
            raise InterruptedError


def test_no_loader_process_is_forked_while_files_are_written(
    toy_manifest: Manifest, patch_classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disks take longer than a toy epoch; each validation forks a process, and so does a resume."""
    threads: list[list[str]] = []
    fork, write_whole = os.fork, _checkpoint.write_whole

    def watched() -> int:
        threads.append([thread.name for thread in threading.enumerate()])
        return fork()

    def slow(path: Path, data: bytes) -> None:
        time.sleep(0.5)
        write_whole(path, data)

    def train() -> None:
        cross_validate(
            toy_manifest,
            patch_classifier,
            out=tmp_path / "out",
            folds=np.arange(len(toy_manifest)) % 3 - 1,
            epochs=2,
            workers=1,
            callbacks=[StopOnce(tmp_path / "stopped")],
        )

    monkeypatch.setattr(os, "fork", watched)
    monkeypatch.setattr(_checkpoint, "write_whole", slow)
    with pytest.raises(InterruptedError):
        train()
    assert len(threads) == 2  # training, and the first epoch's validation
    train()
    assert len(threads) >= 4 + 3  # one epoch, and another fold's two
    assert not [names for names in threads if "writer" in names]
