import errno
import threading

import pytest

from lowres_vision.training._writer import Writer


def test_calls_are_done_in_order_while_the_caller_goes_on() -> None:
    done: list[int] = []
    gate = threading.Event()
    writer = Writer()
    writer.submit(gate.wait)
    for number in range(3):
        writer.submit(lambda number=number: done.append(number))
    assert done == []
    gate.set()
    writer.wait()
    assert done == [0, 1, 2]


def test_nothing_is_done_behind_an_error_and_it_is_raised_once() -> None:
    """A checkpoint behind weights that could not be written would know of weights not there."""
    done: list[str] = []
    gate = threading.Event()

    def full() -> None:
        gate.wait()
        raise OSError(errno.ENOSPC, "No space left")

    writer = Writer()
    writer.submit(full)
    writer.submit(lambda: done.append("checkpoint"))
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    assert done == []
    writer.submit(lambda: done.append("again"))
    writer.wait()
    assert done == ["again"]


def test_the_next_call_raises_the_error_of_an_earlier_one() -> None:
    writer = Writer(most=1)
    writer.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: None)  # waits for the first


def test_a_caller_that_is_too_fast_waits() -> None:
    gate = threading.Event()
    writer = Writer(most=2)
    for _ in range(2):
        writer.submit(gate.wait)
    third = threading.Thread(target=writer.submit, args=(lambda: None,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    gate.set()
    third.join()
    writer.wait()


def test_an_error_of_the_block_is_not_hidden_by_one_of_writing() -> None:
    def write_and_fail() -> None:
        with Writer() as writer:
            writer.submit(lambda: 1 / 0)
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        write_and_fail()
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.submit(lambda: 1 / 0)


def test_no_thread_is_left_when_all_is_written() -> None:
    before = threading.active_count()
    writer = Writer()
    writer.submit(lambda: None)
    writer.wait()
    for thread in threading.enumerate():
        if thread.name == "writer":
            thread.join(5)
    assert threading.active_count() == before
