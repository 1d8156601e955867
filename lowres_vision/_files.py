"""Files that appear whole or not at all."""

import errno
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# What file systems say that cannot sync a folder: some on a network, some in user space.
_CANNOT = {errno.EBADF, errno.EINVAL, errno.ENOTSUP}


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` under another name beside ``path``, sync it and rename it to ``path``.

    At any moment, a power failure included, ``path`` is all of the old file or all of the new one;
    when this has returned it is the new one, where the file system can sync a folder.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Write an npz of numbers and strings and return its SHA-256."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk; Windows has no such call."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written to and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(handle)
