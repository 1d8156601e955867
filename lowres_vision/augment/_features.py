"""Feature maps of a frozen network, by layer name."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_VGG19_BLOCKS = (2, 2, 4, 4, 4)  # convolutions between the poolings


def vgg19_layers() -> dict[str, str]:
    """Return the name in ``torchvision.models.vgg19`` of each convolution's ReLU.

    Example:
        >>> vgg19_layers()["conv4_2"]
        'features.22'
    """
    names, index = {}, 0
    for block, count in enumerate(_VGG19_BLOCKS, start=1):
        for number in range(1, count + 1):
            names[f"conv{block}_{number}"] = f"features.{index + 1}"
            index += 2
        index += 1
    return names


def vgg19(checkpoint_path: str | os.PathLike[str] | None) -> nn.Module:
    """Return VGG-19's convolutions with ImageNet weights of torchvision, or of a file."""
    import torchvision  # which imports torch's compiler, for 2 s

    if checkpoint_path is None:
        try:
            weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1
            network: nn.Module = torchvision.models.vgg19(weights=weights)
        except OSError:
            raise OSError(
                "the weights of VGG-19 are not in the local cache and could not be downloaded; "
                "give their file with `checkpoint_path`, or another network with `network`"
            ) from None
        return network
    path = Path(checkpoint_path)
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint_path` {path} is not a file")
    state: dict[str, Any]
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    network = torchvision.models.vgg19(init_weights=False)
    network.classifier = nn.Identity()  # 124 of the 144 million parameters
    state = {name: value for name, value in state.items() if name.startswith("features.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(f"`checkpoint_path` {path} does not fit VGG-19: {detail}") from error
    return network


class Features(nn.Module):
    """Run a copy of a network up to the last of some layers and return what these give.

    The copy is frozen, in evaluation mode and without in-place activations, which would overwrite
    the map of the layer before them.

    Args:
        network: From images ``(B, 3, H, W)``.
        layers: Names as in ``network.named_modules()``.
        average_pooling: Put average poolings in place of max poolings.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], *, average_pooling: bool = False
    ) -> None:
        super().__init__()
        known = dict(network.named_modules())
        for name in layers:
            if name not in known:
                raise ValueError(
                    f"`network` has no layer {name!r}; its layers are "
                    f"{', '.join(repr(layer) for layer in known if layer)}"
                )
        network = copy.deepcopy(network).eval().requires_grad_(False)
        for module in list(network.modules()):
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
            for name, child in module.named_children():
                if average_pooling and isinstance(child, nn.MaxPool2d):
                    setattr(module, name, _as_average(child))
        self.network = network
        self.layers = tuple(layers)

    def train(self, mode: bool = True) -> "Features":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps ``(B, N, h, w)`` by layer name."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                found[name] = output
                if len(found) == len(self.layers):
                    raise _AllFoundError

            return hook

        modules = dict(self.network.named_modules())
        handles = [modules[name].register_forward_hook(keep(name)) for name in set(self.layers)]
        try:
            self.network(images)
        except _AllFoundError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found


class _AllFoundError(Exception):
    """Ends a forward pass after the last layer that is asked for."""


def _as_average(pool: nn.MaxPool2d) -> nn.AvgPool2d:
    return nn.AvgPool2d(
        pool.kernel_size,
        pool.stride,
        pool.padding,
        ceil_mode=pool.ceil_mode,
        count_include_pad=False,
    )
