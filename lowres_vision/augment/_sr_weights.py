"""Super-resolution networks in files: our own SRCNN, and others through spandrel."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lowres_vision import _optional
from lowres_vision._files import write_whole
from lowres_vision.augment._srcnn import SRCNN

_KEY = "lowres_vision.srcnn"


def save_srcnn(network: SRCNN, path: Path) -> None:
    """Write weights and constructor arguments to one safetensors file."""
    settings = {
        "scale": network.scale,
        "kernel_sizes": network.kernel_sizes,
        "residual": network.residual,
    }
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_whole(path, save(state, metadata={_KEY: json.dumps(settings)}))


def load_network(path: Path) -> "SRCNN | ForeignNetwork":
    """Load what :func:`save_srcnn` wrote, or a network that spandrel knows."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
            with safe_open(path, framework="pt") as file:
                settings = (file.metadata() or {}).get(_KEY)
            if settings is not None:
                network = SRCNN(**json.loads(settings))
                network.load_state_dict(state)
                return network
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`path` {path} is no file of plain tensors ({detail}); give a .safetensors file, or "
            f"a .pth of a state_dict"
        ) from error
    return ForeignNetwork(state, path)


class ForeignNetwork(nn.Module):
    """A network that spandrel recognised, with the padding it needs and its output in [0, 1]."""

    def __init__(self, state: dict[str, Any], path: Path) -> None:
        super().__init__()
        spandrel = _optional.require("spandrel", extra="sr")
        try:
            found = spandrel.ModelLoader().load_from_state_dict(
                spandrel.canonicalize_state_dict(state)
            )
        except (spandrel.UnsupportedModelError, RuntimeError, ValueError, AttributeError) as error:
            detail = " ".join(str(error).split())[:200]
            raise ValueError(
                f"`path` {path} fits no architecture of spandrel"
                f"{f' ({detail})' if detail else ''}; its weights must be those of one of them"
            ) from error
        if (getattr(found, "input_channels", 0), getattr(found, "output_channels", 0)) != (3, 3):
            raise ValueError(f"`path` {path} holds {found.architecture.name}, not for RGB images")
        self.network = found.model
        self.scale = int(found.scale)
        self.name = str(found.architecture.name)
        self._descriptor = found

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge ``(B, 3, H, W)`` in [0, 1]."""
        # It runs in inference mode, whose tensors nothing else may touch.
        output: Tensor = self._descriptor(images).clone()
        return output
