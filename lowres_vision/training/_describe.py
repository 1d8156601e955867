"""What a run was made of, in JSON: enough to tell two runs apart and to say where they differ."""

import dis
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Set
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PACKAGES = ("lowres-vision", "torch", "torchvision", "timm", "lightning", "numpy")
_KNOWN = {name.replace("-", "_") for name in _PACKAGES}


def describe(value: Any) -> Any:
    """Return ``value`` as JSON by its class and public attributes, never by its address.

    A function of the packages above is its name. Of any other, whose body may be edited between two
    calls, the constants, names and enclosed values are told as well; what it calls is not.
    """
    return _describe(value, ())


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Return a module's class and public attributes, its layers as one hash with their weights."""
    layers = [
        f"{name}: {type(layer).__qualname__} {json.dumps(describe(layer))}"
        for name, layer in module.named_modules()
    ]
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


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    """Describe ``value``, which is a part of what has the ids ``above``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # NaN would differ from itself
    if isinstance(value, Tensor | np.ndarray):
        return {"sha256": _digest({"": torch.as_tensor(value)})}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if id(value) in above:
        return "a whole that this is a part of"
    inner = partial(_describe, above=(*above, id(value)))
    if isinstance(value, Mapping):
        return {str(key): inner(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [inner(entry) for entry in value]
    if isinstance(value, Set):
        return sorted((inner(entry) for entry in value), key=repr)
    if isinstance(value, partial):
        return {
            "call": inner(value.func),
            **({"arguments": inner(value.args)} if value.args else {}),
            **inner(value.keywords),
        }
    if isinstance(value, MethodType):
        return {"call": inner(value.__func__), "of": inner(value.__self__)}
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class or a function
        name = f"{value.__module__}.{name}"
        own = isinstance(value, FunctionType) and value.__module__.partition(".")[0] not in _KNOWN
        return {"call": name, **inner(_contents(value))} if own else name
    return {
        "class": f"{type(value).__module__}.{type(value).__qualname__}",
        **(inner(_public(value)) or _words(value)),
    }


def _public(value: Any) -> dict[str, Any]:
    """Return the public attributes of an object."""
    slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
    found = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    found |= getattr(value, "__dict__", {})
    return {key: found[key] for key in found if not key.startswith("_") and key != "training"}


def _words(value: Any) -> dict[str, str]:
    """Return what an object without attributes says of itself, e.g. a dtype, unless an address."""
    words = repr(value)
    return {} if isinstance(value, nn.Module) or " at 0x" in words else {"is": words}


def _contents(function: FunctionType) -> dict[str, Any]:
    """Return what a function's outcome depends on, but for what it calls."""
    constants: list[Any] = []
    codes = [function.__code__]
    for code in codes:  # grows by the functions within
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_SMALL_INT":
                constants.append(step.arg)
            elif step.opcode in dis.hasconst and step.arg is not None:
                constant = code.co_consts[step.arg]
                if isinstance(constant, CodeType):
                    codes.append(constant)
                else:  # names of arguments are a tuple
                    constants += constant if isinstance(constant, tuple) else [constant]
    names = [name for code in codes for name in code.co_names]
    read = {name: function.__globals__.get(name) for name in names}
    enclosed = {
        name: cell.cell_contents
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
        if cell != CellType()  # one that is not set yet
    }
    return {
        "constants": [value for value in constants if value is not None],
        "names": names,
        "defaults": [*(function.__defaults__ or ()), function.__kwdefaults__],
        "enclosed": enclosed,
        "globals": {n: v for n, v in read.items() if isinstance(v, bool | int | float | str)},
    }


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
