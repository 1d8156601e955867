"""A training step that went wrong, on disk: all that it takes to run it again, in plain files.

``weights.safetensors`` holds the classifier as it was before the step, ``batch.safetensors`` the
batch as the loader gave it, the random states and the model's outputs, ``failure.json`` the rest
and the checksums of both. None of them can execute code.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lowres_vision._batch import Batch, PairBatch
from lowres_vision._files import write_whole
from lowres_vision.ops import Mix

_BATCHES: dict[str, type[Batch] | type[PairBatch]] = {"Batch": Batch, "PairBatch": PairBatch}
_JSON, _WEIGHTS, _BATCH = "failure.json", "weights.safetensors", "batch.safetensors"


@dataclass
class FailedStep:
    """A step to be run again.

    Attributes:
        kind: What was not finite, "loss" or "gradient".
        batch: As the loader gave it.
        weights: ``state_dict`` of the classifier before the step; of SAM's second pass at the moved
            weights it runs at.
        random_state: PyTorch's on the CPU when the pass began, and on the GPU where there is one.
        epoch: From 0.
        batch_index: From 0, within the epoch.
        seed: The classifier's.
        second_pass: Whether it was the second pass of SAM.
        precision: Lightning's name of the arithmetic.
        device: Type of the device it ran on.
        threads: PyTorch's threads, on which the last bits of a sum can depend.
        rank: Number of the process whose share of the batch it was.
        world: Number of processes.
        evaluating: Modules that were in evaluation mode.
        frozen: Parameters that were not trained.
        images_sha256: Of the images as the model read them.
        outputs: What the loss read of the model, call by call.
        found: What was learned on the spot, for the reader of the JSON.
    """

    kind: Literal["loss", "gradient"]
    batch: Batch | PairBatch
    weights: dict[str, Tensor]
    random_state: dict[str, Tensor]
    epoch: int
    batch_index: int
    seed: int
    second_pass: bool = False
    precision: str = "32-true"
    device: str = "cpu"
    threads: int = 1
    rank: int = 0
    world: int = 1
    evaluating: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    images_sha256: str = ""
    outputs: list[Tensor] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write the three files into ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = dict(_named(self.batch))
        tensors |= {f"random.{name}": state for name, state in self.random_state.items()}
        tensors |= {f"outputs.{number}": output for number, output in enumerate(self.outputs)}
        files = {_WEIGHTS: save(_plain(self.weights)), _BATCH: save(_plain(tensors))}
        for name, data in files.items():
            write_whole(directory / name, data)
        about = {
            name: value
            for name, value in vars(self).items()
            if name not in ("batch", "weights", "random_state", "outputs")
        }
        about["batch"] = type(self.batch).__name__
        about["rows"] = self.batch.rows.tolist()
        about["channels_last"] = [name for name, value in tensors.items() if _channels_last(value)]
        about["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        write_whole(directory / _JSON, json.dumps(about, indent=2).encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "FailedStep":
        """Read the three files.

        Raises:
            FileNotFoundError: If one is missing.
            ValueError: If one is not what was written.
        """
        directory = Path(directory)
        about: dict[str, Any] = json.loads((directory / _JSON).read_text())
        files = {}
        for name, digest in about.pop("sha256").items():
            data = (directory / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(
                    f"{directory / name} differs from the file that {_JSON} beside it describes"
                )
            try:
                files[name] = load(data)
            except SafetensorError as error:
                raise ValueError(f"{directory / name} cannot be read: {error}") from error
        tensors = files[_BATCH]
        for name in about.pop("channels_last"):
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        del about["rows"]
        about["batch"] = _batch(_BATCHES[about["batch"]], tensors)
        about["random_state"] = _under("random.", tensors)
        outputs = _under("outputs.", tensors)
        about["outputs"] = [outputs[str(number)] for number in range(len(outputs))]
        return cls(weights=files[_WEIGHTS], **about)


def _named(batch: Batch | PairBatch) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a batch by name; of a list or a mix ``name.part``."""
    for name, value in batch._asdict().items():
        if isinstance(value, Mix):
            parts: Any = value._asdict().items()
        elif isinstance(value, Tensor):
            parts = [("", value)]
        else:
            parts = enumerate(value or [])
        for part, tensor in parts:
            if tensor is not None:
                yield f"{name}.{part}".rstrip("."), tensor


def _batch(kind: type[Batch] | type[PairBatch], tensors: dict[str, Tensor]) -> Batch | PairBatch:
    values: dict[str, Any] = {}
    for name in kind._fields:
        parts = _under(f"{name}.", tensors)
        if name in tensors:
            values[name] = tensors[name]
        elif name == "mix":
            values[name] = Mix(**parts) if parts else None
        else:
            values[name] = [parts[str(number)] for number in range(len(parts))]
    return kind(**values)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU; safetensors takes no two names of one memory."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _channels_last(value: Tensor) -> bool:
    return (
        value.ndim == 4
        and value.is_contiguous(memory_format=torch.channels_last)
        and not value.is_contiguous()
    )
