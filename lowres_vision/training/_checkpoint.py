"""Training checkpoints: one file of tensors and plain values that loading can only read.

The file is a line that names the format, a line with the SHA-256 of the rest, and the rest: a
safetensors archive whose metadata holds the structure as JSON. It is written under another name,
synced and renamed, so under its own name it is whole or not there. Reading checks the digest
before it parses anything, and neither safetensors nor JSON can hold code.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lowres_vision._files import write_whole
from lowres_vision.training._writer import Writer

_MAGIC = b"lowres-vision checkpoint 1\n"
_DIGEST = 64  # hexadecimal digits of a SHA-256


def write_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write tensors, numbers, strings, lists, tuples and dicts to ``path``, whole or not at all.

    Raises:
        TypeError: If ``state`` holds anything else, e.g. a function; the place is named.
    """
    _prepared(path, state)()


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Return what :func:`write_checkpoint` wrote, on the CPU, memory formats included.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not, byte for byte, a file that was written here.
    """
    data = Path(path).read_bytes()
    head = len(_MAGIC) + _DIGEST + 1
    archive = data[head:]
    expected = _MAGIC + hashlib.sha256(archive).hexdigest().encode() + b"\n"
    if data[:head] != expected:
        reason = "is damaged" if data.startswith(_MAGIC) else "is no checkpoint of this library"
        raise ValueError(f"{path} {reason}; delete it to train this run from its beginning")
    try:
        tensors = load(archive)
        return _unpack(json.loads(_metadata(archive)["structure"]), tensors)
    except (AttributeError, LookupError, SafetensorError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"{path} holds no training state: {e}") from None


class PlainCheckpoints(CheckpointIO):
    """Makes a Lightning trainer write and read checkpoints with the functions above.

    Args:
        writer: What writes them while training goes on.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Copy ``checkpoint``, to be written to ``path``."""
        self._writer.submit(partial(_prepared, path, checkpoint))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint at ``path``, on the CPU."""
        checkpoint: dict[str, Any] = read_checkpoint(path)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete ``path``."""
        Path(path).unlink(missing_ok=True)


def _prepared(path: str | os.PathLike[str], state: Any) -> Callable[[], None]:
    """Copy ``state`` and return what writes the copy to ``path``."""
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, tensors, "state")

    def write() -> None:
        archive = save(tensors, metadata={"structure": json.dumps(structure)})
        digest = hashlib.sha256(archive).hexdigest().encode()
        write_whole(Path(path), _MAGIC + digest + b"\n" + archive)

    return write


def _pack(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """Return ``value`` as JSON, its tensors moved into ``tensors``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        order = _memory_order(value)
        # A copy, as safetensors refuses tensors that share memory, which tied weights do.
        dense = value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        tensors[name] = dense
        return {"tensor": name, "order": order}
    if isinstance(value, dict):
        items = [
            [_pack(key, tensors, f"a key of {place}"), _pack(entry, tensors, f"{place}[{key!r}]")]
            for key, entry in value.items()
        ]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, tensors, f"{place}[{i}]") for i, v in enumerate(value)]}
    raise TypeError(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, "
        f"None, lists, tuples and dicts, so that loading one can never run code"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order = value["order"]
        return tensors[value["tensor"]].permute([order.index(axis) for axis in range(len(order))])
    if "dict" in value:
        return {_unpack(k, tensors): _unpack(entry, tensors) for k, entry in value["dict"]}
    kind = list if "list" in value else tuple
    return kind(_unpack(entry, tensors) for entry in value[kind.__name__])


def _memory_order(tensor: Tensor) -> list[int]:
    """Return the axes of ``tensor`` from the one with the widest stride to the narrowest.

    Written in this order and turned back, channels_last tensors come back channels_last, and
    arithmetic on them takes the same path as before.
    """
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda axis: -strides[axis])


def _metadata(archive: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors archive."""
    length = int.from_bytes(archive[:8], "little")
    metadata: dict[str, str] = json.loads(archive[8 : 8 + length])["__metadata__"]
    return metadata
