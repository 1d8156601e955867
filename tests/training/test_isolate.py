import os
import threading
from pathlib import Path

import pytest

from lowres_vision.data import DataError, Fault
from lowres_vision.training._isolate import _portable, in_own_process


def test_its_error_arrives_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError) as raised:
        in_own_process(os.mkdir, str(tmp_path), name="work")
    assert "in the run's own process" in raised.value.__notes__[0]


def test_a_death_is_told_with_its_code() -> None:
    with pytest.raises(RuntimeError, match=r"the process of fold 3 died with code 7; start"):
        in_own_process(os._exit, 7, name="fold 3")


def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(TypeError, match=r"one of them cannot be sent .*top of a module"):
        in_own_process(print, threading.Lock(), name="work")


def test_an_error_that_cannot_travel_sends_its_words() -> None:
    class LocalError(Exception):
        pass

    try:
        raise LocalError("my words")
    except LocalError as error:
        portable = _portable(error)
    assert type(portable) is RuntimeError
    assert "my words" in str(portable)
    fault = DataError(Path("train.csv"), [Fault("is wrong", "do better")])
    assert "is wrong" in str(_portable(fault))
