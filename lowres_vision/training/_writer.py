"""Files written while training goes on, one after the other."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import Self


class Writer:
    """Writes in a thread of its own, in the order of the calls, and stops at the first error.

    What is written has to be a copy that training does not change. It is made when there is room
    for it, so that no more than ``most`` copies are in memory, however slow the disk is. A process
    killed at any moment has written the first so many of the files, and none of those behind: a
    checkpoint that is on disk has the weights and scores beside it that it knows of.

    The thread ends when there is nothing left to write, so that no loader process is forked with a
    thread that waits. As a context it is done with all of them at the end of the block.

    Args:
        most: Copies not written yet, that under way among them, from which on the next one waits.
    """

    def __init__(self, *, most: int = 2) -> None:
        self._most = most
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._at_work = False
        self._error: BaseException | None = None

    def submit(self, copy: Callable[[], Callable[[], None]]) -> None:
        """Call ``copy`` as soon as there is room for one, and have what it returns called soon.

        Raises:
            BaseException: What ``copy`` raised, or an earlier call: it was not done, and neither
                are those behind it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._calls) < self._most)
            self._raise()
            call = copy()
            if not self._at_work:
                thread = Thread(target=self._work, name="writer", daemon=True)
                thread.start()  # which fails where there may be no more
                self._thread, self._at_work = thread, True
            self._calls.append(call)

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            BaseException: What a call raised.
        """
        if self._thread is not None:
            self._thread.join()
        self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        else:
            with suppress(Exception):  # the block's error is told as it is
                self.wait()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._at_work = False
                    return
                call = self._calls[0]
            try:
                call()
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._calls.clear()
            else:
                with self._changed:
                    self._calls.popleft()
            with self._changed:
                self._changed.notify_all()
