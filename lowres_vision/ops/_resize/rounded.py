"""Bytes to bytes as Pillow resizes them: ``rounding="uint8"`` of :func:`lowres_vision.ops.resize`.

Pillow filters columns, then rows, rounds to eight bits after each, and computes with weights that
are integers over 2^22. Integer sums have no rounding of their own, so equal weights give equal
bytes: the result is Pillow's to the bit. It is a step of its own before the resize, which then
normalises, casts and mixes at the final size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowres_vision.ops._resize import cuda, native
from lowres_vision.ops._resize.pool import output_pool
from lowres_vision.ops._resize.settings import Settings
from lowres_vision.ops._resize.taps import tap_matrix

_ONE = 1 << 22  # a weight of 1; Pillow's PRECISION_BITS


def resize_uint8(
    images: Sequence[Tensor],
    height: int,
    width: int,
    settings: Settings,
    *,
    ragged: bool,
    kernels: bool,
) -> Tensor:
    """Return :func:`resize_uint8_reference` of the one batch, or where ``ragged`` of a list.

    ``kernels`` allows others than the reference to do the work.
    """
    operation = resize_uint8_op if kernels else resize_uint8_reference
    size = (height, width)
    if not ragged:
        return operation(images[0], *size, settings.boxes, settings.flip, settings.mode)
    results = []
    for index, image in enumerate(images):
        mine = settings.of_image(index)
        results.append(operation(image[None], *size, mine.boxes, mine.flip, mine.mode))
    return torch.cat(results)


def resize_uint8_reference(
    images: Tensor, height: int, width: int, boxes: Tensor | None, flip: Tensor | None, mode: str
) -> Tensor:
    """Crop, flip and resize ``(B, C, H, W)`` uint8 images to ``(B, C, height, width)`` uint8.

    ``round(round(image S^T) R^T)`` with the antialiased tap matrices R and S of each box in whole
    multiples of 2^-22, and ``round`` half up, within 0 and 255. float64 holds the sums exactly.
    """
    H, W = images.shape[-2:]
    if boxes is None:
        boxes = torch.tensor([[0.0, 0.0, H, W]], dtype=torch.float64, device=images.device)
    top, left, extent_y, extent_x = boxes.to(torch.float64).unbind(-1)  # (B or 1,) each
    rows = _fixed(tap_matrix(top, extent_y, H, height, mode=mode, antialias=True))
    columns = _fixed(tap_matrix(left, extent_x, W, width, mode=mode, antialias=True))
    between = _round(images.to(torch.float64) @ columns[:, None].mT)  # (B, C, H, width)
    result = _round(rows[:, None] @ between).to(torch.uint8)
    if flip is None:
        return result
    return torch.where(flip[:, None, None, None], result.flip(-1), result)


@torch.library.custom_op("lowres_vision::resize_uint8", mutates_args=())
def resize_uint8_op(
    images: Tensor,
    height: int,
    width: int,
    boxes: Tensor | None,
    flip: Tensor | None,
    interpolation: str,
) -> Tensor:
    """Return :func:`resize_uint8_reference` from a kernel, where one can serve."""
    settings = Settings(boxes, flip, mode=interpolation)
    shape = (*images.shape[:2], height, width)
    if images.device.type == "cpu" and native.serves([images], torch.uint8, height, width):
        out = output_pool.empty(shape, torch.uint8, channels_last=False)
        native.run(out, [images], settings)
        return out
    if cuda.serves([images], torch.uint8, height, width) and cuda.works(images.device):
        out = images.new_empty(shape)
        cuda.run(out, [images], settings)
        return out
    return resize_uint8_reference(images, height, width, boxes, flip, interpolation)


def _fixed(weights: Tensor) -> Tensor:
    """Return weights times 2^22, rounded half away from zero."""
    return torch.trunc(weights * _ONE + torch.copysign(torch.full_like(weights, 0.5), weights))


def _round(sums: Tensor) -> Tensor:
    return torch.floor(sums / _ONE + 0.5).clamp(0, 255)


@resize_uint8_op.register_fake
def _(images: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    return images.new_empty((*images.shape[:2], height, width))


@resize_uint8_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    def fold(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        many = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
        return many.flatten(0, 1)

    result = resize_uint8_op(*map(fold, arguments, in_dims))
    return result.unflatten(0, (info.batch_size, -1)), 0
