"""How a draw changes images."""

import torch
from torch import Tensor

from lowres_vision.ops import Mix


def check_images(images: Tensor, targets: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` is ``(B, C, H, W)`` beside B targets."""
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape (B, C, H, W), got {tuple(images.shape)}")
    if targets.ndim == 0 or len(targets) != len(images):
        raise ValueError(
            f"`targets` must have one row for each of {len(images)} images, "
            f"got shape {tuple(targets.shape)}"
        )
    if targets.device != images.device:
        raise ValueError(
            f"`targets` must be on the images' device, {images.device}, got {targets.device}"
        )


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Return ``(B, C, H, W)`` images mixed with their partners, in new memory."""
    # One by one, what is in between stays in the cache: for 64 uint8 images of 224 x 224, drawn
    # per sample, on one thread, CutMix takes 1.6 ms against 13 ms and MixUp 7.0 ms against 75 ms
    # (medians of 21, interleaved). With gradients it would be one node of the graph per image.
    one_by_one = images.device.type == "cpu" and not (
        images.requires_grad or torch.compiler.is_compiling()
    )
    if mix.box is not None:
        paste = _paste_one_by_one if one_by_one else _paste
        return paste(images, mix.partner, mix.box)
    blend = _blend_one_by_one if one_by_one else _blend
    return blend(images, mix.partner, mix.lam)


def _paste(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    top, left, height, width = box[:, :, None].unbind(1)  # (B, 1) each
    ys = torch.arange(images.shape[-2], device=images.device)
    xs = torch.arange(images.shape[-1], device=images.device)
    in_rows = (ys >= top) & (ys < top + height)  # (B, H)
    in_columns = (xs >= left) & (xs < left + width)  # (B, W)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # (B, 1, H, W)
    return torch.where(inside, images[partner], images)


def _paste_one_by_one(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    starts = box[:, :2]
    edges = torch.cat([starts, starts + box[:, 2:]], dim=1).clamp(min=0)  # (B, 4)
    mixed = images.clone()
    for own, (other, (y0, x0, y1, x1)) in enumerate(
        zip(partner.tolist(), edges.tolist(), strict=True)
    ):
        mixed[own, :, y0:y1, x0:x1] = images[other, :, y0:y1, x0:x1]
    return mixed


def _blend(images: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    dtype = torch.promote_types(images.dtype, torch.float32)
    own, share = images.to(dtype), lam.to(dtype)[:, None, None, None]
    return _as(torch.lerp(own[partner], own, share), images.dtype)


def _blend_one_by_one(images: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    dtype = torch.promote_types(images.dtype, torch.float32)
    mixed = torch.empty_like(images)
    for own, (other, share) in enumerate(zip(partner.tolist(), lam.tolist(), strict=True)):
        blended = torch.lerp(images[other].to(dtype), images[own].to(dtype), share)
        mixed[own] = _as(blended, images.dtype)
    return mixed


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.round().to(dtype) if dtype == torch.uint8 else values.to(dtype)
