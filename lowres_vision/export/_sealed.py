"""A safetensors file with a record in its header and a checksum over every one of its bytes.

The record is JSON under one key of the header's metadata, and the checksum is a field of the
record: the SHA-256 of the whole file with zeros in the checksum's own place. Any safetensors reader
opens the file; the same content gives the same bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lowres_vision._files import write_whole

Record = dict[str, Any]

_KEY = "lowres_vision"
_FORMAT = 1
_LENGTH = 64  # of a SHA-256 in hexadecimal digits
_SEAL = rb"{\"sha256\": \""  # begins the record, as it stands within the header's own JSON


def write_sealed(path: Path, record: Record, tensors: dict[str, Tensor]) -> None:
    """Write the file whole or not at all.

    Args:
        path: The file.
        record: What JSON can hold.
        tensors: Contiguous, on the CPU, no two of them in the same memory.
    """
    text = json.dumps({"sha256": "0" * _LENGTH, "format": _FORMAT, **record}, allow_nan=False)
    data = save(tensors, metadata={_KEY: text})
    start = data.index(_SEAL) + len(_SEAL)
    digest = hashlib.sha256(data).hexdigest().encode()
    write_whole(path, data[:start] + digest + data[start + _LENGTH :])


def read_sealed(path: Path) -> tuple[Record, dict[str, Tensor]]:
    """Return what :func:`write_sealed` was given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is another one, was changed, or has a format of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give one that `Predictor.save` wrote")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    start = data.find(_SEAL, 8, 8 + length) + len(_SEAL)
    if start < len(_SEAL):
        raise ValueError(
            f"{path} is no predictor that `Predictor.save` wrote, or its head is damaged; give "
            f"such a file, or copy it again"
        )
    digest = hashlib.sha256(data[:start])
    digest.update(b"0" * _LENGTH)
    digest.update(data[start + _LENGTH :])
    if digest.hexdigest().encode() != data[start : start + _LENGTH]:
        raise ValueError(
            f"{path} is damaged: its content is not what its checksum says; copy or download it "
            f"again"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        record: Record = json.loads(header["__metadata__"][_KEY])
        found = record["format"]
        tensors = load(data) if found == _FORMAT else {}
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        detail = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{path} has a checksum that fits and cannot be read: {detail}") from error
    if found != _FORMAT:
        raise ValueError(
            f"{path} has format {found!r:.20}, this version of lowres-vision reads {_FORMAT}; "
            f"install the version that wrote it, or a later one"
        )
    return record, tensors
