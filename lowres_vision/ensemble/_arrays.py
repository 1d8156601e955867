"""Arrays and records on disk that appear whole or not at all and hold no code."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_whole


def read_arrays(path: Path, *, sha256: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz, or raise ValueError unless it is the file with that hash."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged or was changed: its SHA-256 is not the one recorded")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no archive of plain arrays: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or raise ValueError if there is none."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return about


def write_json(path: Path, about: dict[str, Any]) -> None:
    """Write a JSON object that people can read."""
    write_whole(path, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
