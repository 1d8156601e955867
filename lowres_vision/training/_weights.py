"""Weights on disk: safetensors that appear whole or not at all, with a checksum beside them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lowres_vision._files import write_whole
from lowres_vision.training._sharding import load_whole


def save_weights(model: nn.Module, path: str | os.PathLike[str], /, **about: Any) -> None:
    """Write ``model``'s weights to ``path`` and a JSON sidecar to ``path`` + ``.json``.

    Each file is written under another name, synced and renamed. The sidecar holds ``about``
    (whatever JSON can hold: classes, scores, settings) and the SHA-256 of the weights file.
    """
    write_weights(copied(model.state_dict()), Path(path), about)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU, one for each name of tied weights, which safetensors refuses."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def write_weights(weights: dict[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """Write what :func:`copied` returned, as :func:`save_weights` does."""
    data = save(weights)
    write_whole(path, data)
    sidecar = {**about, "sha256": hashlib.sha256(data).hexdigest()}
    write_whole(_sidecar(path), json.dumps(sidecar, indent=2).encode())


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load what :func:`save_weights` wrote into ``model`` and return the sidecar.

    Raises:
        FileNotFoundError: If the weights or their sidecar are missing.
        ValueError: If the file is not what was written, or does not fit the model.
    """
    path = Path(path)
    data = path.read_bytes()
    about: dict[str, Any] = json.loads(_sidecar(path).read_text())
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ValueError(f"{path} differs from the file that its .json describes; train again")
    try:
        load_whole(model, load_file(path, device="cpu"))
    except (RuntimeError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit {type(model).__name__}: {detail}") from error
    return about


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")
