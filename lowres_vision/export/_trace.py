"""What both exporters need: a Module at rest, its outputs, and which dimensions may vary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lowres_vision._modes import evaluation_mode

_LARGEST_SIDE = 4096


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Within, ``module`` is in eval mode and keeps no gradients; afterwards it is as it was."""
    with evaluation_mode(module), torch.no_grad():
        yield


def check_images(images: Tensor) -> None:
    """Refuse a batch from which no dynamic batch could be traced."""
    if images.ndim != 4:
        raise ValueError(f"`images` must be (B, C, H, W), got {tuple(images.shape)}")
    if len(images) < 2:
        raise ValueError(
            f"`images` must hold at least two images, got {len(images)}: "
            f"a batch of one is traced as a constant"
        )


def varying(dynamic_size: bool) -> tuple[dict[int, Any]]:
    """Return the dimensions of ``images`` that may vary."""
    shapes: dict[int, Any] = {0: Dim("batch")}
    if dynamic_size:
        shapes[2] = Dim("height", min=2, max=_LARGEST_SIDE)
        shapes[3] = Dim("width", min=2, max=_LARGEST_SIDE)
    return (shapes,)
