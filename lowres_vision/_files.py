"""Files that appear whole or not at all."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` under another name beside ``path``, sync it and rename it to ``path``."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Write an npz of numbers and strings and return its SHA-256."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()
