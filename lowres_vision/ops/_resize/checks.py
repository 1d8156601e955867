"""What :func:`lowres_vision.ops.resize` refuses, and in which words."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_images(items: Sequence[Tensor], *, ragged: bool) -> None:
    """Raise unless ``items`` are images of one kind: a batch, or where ``ragged`` a list."""
    if not items:
        raise ValueError("`images` must hold at least one image, got an empty list")
    first = items[0]
    for item in items:
        if not isinstance(item, Tensor):
            raise TypeError(f"`images` must be a tensor or a list of tensors, got {type(item)}")
        if item.dtype != torch.uint8 and item.dtype not in FLOATS:
            raise TypeError(f"`images` must be uint8 or float, got {item.dtype}")
        if item.ndim != (3 if ragged else 4):
            rule = "a list of (C, H, W)" if ragged else "(B, C, H, W)"
            raise ValueError(f"`images` must be {rule}, got shape {tuple(item.shape)}")
        if 0 in item.shape[-3:]:
            raise ValueError(f"`images` must have C, H, W > 0, got shape {tuple(item.shape)}")
        if ragged and (item.dtype, item.device, item.shape[0]) != (
            first.dtype,
            first.device,
            first.shape[0],
        ):
            raise ValueError(
                "`images` must share dtype, device and channels, got "
                f"{first.dtype} {first.device} C={first.shape[0]} and "
                f"{item.dtype} {item.device} C={item.shape[0]}"
            )


def check_per_image(
    name: str,
    value: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise unless ``value`` is None or has this shape, dtype and device."""
    if value is None:
        return
    if value.dtype not in dtypes:
        raise TypeError(f"`{name}` must be {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"`{name}` must be on the images' device, {device}, got {value.device}")


def check_values(boxes: Tensor | None, partner: Tensor | None, items: Sequence[Tensor]) -> None:
    """Raise unless boxes lie inside their images and partners in the batch, where both are read.

    They are on the CPU, outside of traced graphs.
    """
    if torch.compiler.is_compiling():
        return
    if boxes is not None and boxes.device.type == "cpu":
        _check_boxes(boxes, items)
    if partner is not None and partner.device.type == "cpu" and len(partner):
        B = len(partner)
        low, high = (int(value) for value in partner.aminmax())
        if low < 0 or high >= B:
            raise ValueError(f"`mix.partner` must be in 0..{B - 1}, got {low if low < 0 else high}")


def box_slack(dtype: torch.dtype) -> float:
    """Return the share of an image that boxes of this dtype may reach beyond it.

    A box computed in its own precision may overshoot the edge by a rounding error.
    """
    return 4 * torch.finfo(dtype).eps


def check_mix(
    partner: Tensor, lam: Tensor, box: Tensor | None, B: int, device: torch.device
) -> None:
    """Raise unless the fields of a Mix fit the batch by shape, dtype and device."""
    check_per_image("mix.partner", partner, (B,), (torch.int64,), device)
    check_per_image("mix.lam", lam, (B,), FLOATS, device)
    check_per_image("mix.box", box, (B, 4), (torch.int64,), device)


def check_rounding(
    image_dtype: torch.dtype, dtype: torch.dtype, antialias: bool, *, plain: bool
) -> None:
    """Raise unless ``rounding="uint8"`` can be had; ``plain`` where nothing follows it."""
    if image_dtype != torch.uint8:
        raise TypeError(f"`rounding`='uint8' needs uint8 images, got {image_dtype}")
    if not antialias:
        raise ValueError("`rounding`='uint8' is Pillow's, which has no `antialias`=False")
    if dtype == torch.uint8 and not plain:
        raise ValueError("`dtype`=torch.uint8 leaves no room for `mean`, `std` and `mix`")


def check_out(
    out: Tensor, shape: tuple[int, ...], channels_last: bool, items: Sequence[Tensor]
) -> None:
    """Raise unless ``out`` can take the result."""
    if out.shape != shape or out.device != items[0].device:
        raise ValueError(
            f"`out` must have shape {shape} on {items[0].device}, "
            f"got {tuple(out.shape)} on {out.device}"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not out.is_contiguous(memory_format=layout):
        raise ValueError(f"`out` must be contiguous in {layout}, got strides {out.stride()}")
    tracked = out.requires_grad or any(item.requires_grad for item in items)
    if tracked and torch.is_grad_enabled():
        raise ValueError("`out` cannot be used where `images` or `out` requires gradients")


def _check_boxes(boxes: Tensor, items: Sequence[Tensor]) -> None:
    corners = boxes.detach().double().numpy()  # whose small operations are cheaper than torch's
    starts, extents = corners[:, :2], corners[:, 2:]  # (B, 2) each
    limits = np.array([item.shape[-2:] for item in items], dtype=np.float64)  # (B or 1, 2)
    slack = box_slack(boxes.dtype)
    inside = (starts >= 0) & (extents > 0) & (starts + extents <= limits + slack * limits)
    if not inside.all():
        bad = int((~inside.all(axis=-1)).nonzero()[0][0])
        H, W = items[bad if len(items) > 1 else 0].shape[-2:]
        raise ValueError(
            "`boxes` must be (top, left, height, width) inside the image with sides > 0, got "
            f"{boxes[bad].tolist()} for image {bad} of {H} x {W} pixels"
        )
