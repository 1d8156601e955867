"""What a run was made of, in JSON: enough to tell two runs apart and to say where they differ."""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PACKAGES = ("lowres-vision", "torch", "torchvision", "timm", "lightning", "numpy")


def describe(value: Any) -> Any:
    """Return ``value`` as JSON by its class and public attributes, never by its address."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return {"sha256": _digest({"": torch.as_tensor(value)})}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    if isinstance(value, partial):
        return {
            "call": describe(value.func),
            **({"arguments": describe(value.args)} if value.args else {}),
            **describe(value.keywords),
        }
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class or a function
        return f"{value.__module__}.{name}"
    public = {
        key: describe(entry)
        for key, entry in getattr(value, "__dict__", {}).items()
        if not key.startswith("_") and key != "training"
    }
    return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **public}


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Return a module's class and public attributes, its layers as one hash with their weights."""
    layers = [f"{name}: {type(layer).__qualname__}" for name, layer in module.named_modules()]
    trained = [f"{name}: {weight.requires_grad}" for name, weight in module.named_parameters()]
    text = "\n".join([repr(module), *layers, *trained])
    state = {name: value for name, value in module.state_dict().items() if torch.is_tensor(value)}
    return {
        **describe(module),
        **({"layers_sha256": hashlib.sha256(text.encode()).hexdigest()} if layers[1:] else {}),
        **({"weights_sha256": _digest(state)} if state else {}),
    }


def describe_classifier(classifier: nn.Module) -> dict[str, Any]:
    """Return what ``build`` built: model, loss, transform, optimiser, schedule and so on."""
    own = {
        name: describe(value)
        for name, value in vars(classifier).items()
        if not name.startswith("_") and name not in ("seed", "training")
    }
    return {**own, **{name: describe_module(part) for name, part in classifier.named_children()}}


def versions() -> dict[str, str]:
    """Return the versions of the packages that an outcome depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # used from a checkout that is not installed
            continue
    return found


def commit() -> str | None:
    """Return the commit of the working folder, ``-dirty`` where files differ; None without git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Yield ``place: there, here`` for every leaf of two descriptions that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            inner = f"{place}.{key}" if place else str(key)
            yield from differences(there.get(key), here.get(key), inner)
    elif there != here:
        yield f"{place}: {_short(there)} there, {_short(here)} here"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _digest(state: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
