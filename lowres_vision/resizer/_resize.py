"""The plain resize as a layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lowres_vision import ops
from lowres_vision._checks import check_choice, check_size


class Resize(nn.Module):
    """Module of :func:`lowres_vision.ops.resize`: resize, normalise and cast in one pass.

    Takes uint8 images, which it scales to [0, 1], or float ones. It has no parameters and nothing
    in its ``state_dict``.

    Args:
        size: Output height and width, > 0; an int stands for a square.
        mean: ``(C,)`` in [0, 1] units. None: 0.
        std: ``(C,)`` in [0, 1] units, > 0. None: 1.
        mode: "bilinear" or "bicubic".
        antialias: When shrinking, widen the filter by the scale.
        rounding: "uint8" resizes uint8 images exactly as Pillow does. None: no rounding.
        dtype: Of the result. None: float32 for uint8 images, else the images'.
        channels_last: Return the result in ``torch.channels_last`` memory format.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> Resize(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))(images).shape
        torch.Size([2, 3, 224, 224])
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        mode: Literal["bilinear", "bicubic"] = "bilinear",
        antialias: bool = True,
        rounding: Literal["uint8"] | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.size = check_size("size", size)
        check_choice("mode", mode, ("bilinear", "bicubic"))
        if rounding is not None:
            check_choice("rounding", rounding, ("uint8",))
        self.mean = None if mean is None else tuple(float(value) for value in mean)
        self.std = None if std is None else tuple(float(value) for value in std)
        self.mode: Literal["bilinear", "bicubic"] = mode
        self.antialias = antialias
        self.rounding: Literal["uint8"] | None = rounding
        self.dtype = dtype
        self.channels_last = channels_last

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the resized ``(B, C, *size)``; see :func:`lowres_vision.ops.resize`."""
        return ops.resize(
            images,
            self.size,
            mean=self.mean,
            std=self.std,
            mode=self.mode,
            antialias=self.antialias,
            rounding=self.rounding,
            dtype=self.dtype,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        """Return the arguments as ``repr`` shows them."""
        return (
            f"size={self.size}, mean={self.mean}, std={self.std}, mode={self.mode!r}, "
            f"antialias={self.antialias}, rounding={self.rounding!r}, dtype={self.dtype}, "
            f"channels_last={self.channels_last}"
        )
