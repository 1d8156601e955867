"""One process per folder: a lock file that names its owner and outlives no process."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows; two processes that start in one moment are not told apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Own ``path`` within the block.

    A lock left behind by a process of this host that is gone is taken over. Whether a process of
    another host is gone cannot be seen from here.

    Raises:
        FileExistsError: If a process that may be alive owns it.
    """
    _acquire(path)
    try:
        yield
    finally:
        with _exclusively(path):
            path.unlink(missing_ok=True)


def _acquire(path: Path) -> None:
    with _exclusively(path) as file:
        owner = _read_owner(file)
        if owner and _may_be_alive(owner):
            raise FileExistsError(
                f"{path.parent} is in use by process {owner['pid']} on host {owner['host']}; wait "
                f"for it or name another folder. If that process is gone, delete {path}"
            )
        pid = os.getpid()
        me = {"pid": pid, "host": socket.gethostname(), "started": _start_time(pid)}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(me))


@contextmanager
def _exclusively(path: Path) -> Iterator[TextIOWrapper]:
    """Open ``path``, made if missing, with no other process between reading and writing it.

    The system's own lock is held for that moment only. Loader processes would inherit it, and
    survive a killed run by seconds.
    """
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have deleted the file while this one waited.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _read_owner(file: TextIOWrapper) -> dict[str, Any] | None:
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:  # empty: just made, or its owner died while writing
        return None
    return owner if isinstance(owner, dict) else None


def _may_be_alive(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname() or os.name == "nt":  # where asking is Ctrl-C
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # A number is given out again after a while, and in a restarted container at once.
    return bool(owner["started"] == _start_time(owner["pid"]))


def _start_time(pid: int) -> str | None:
    """Return when a process started, as Linux counts; None elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
