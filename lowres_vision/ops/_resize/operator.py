"""The resize as torch operators, so that it can be compiled, differentiated and mapped.

``lowres_vision::resize`` and its transpose ``lowres_vision::resize_backward`` are each other's
gradient, to any order. ``resize_ragged`` takes images of several sizes, ``resize_out`` writes into
a given tensor and carries no gradient. Each chooses by itself between the C kernel on
the CPU, the Triton kernels on CUDA and, where these cannot serve, the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowres_vision.ops._resize import cuda, native
from lowres_vision.ops._resize.pool import output_pool
from lowres_vision.ops._resize.reference import (
    MixTensors,
    Settings,
    compose,
    mix_backward_reference,
    resize_backward_reference,
    sum_dtype,
)


@torch.library.custom_op("lowres_vision::resize", mutates_args=())
def resize_op(
    images: Tensor,
    height: int,
    width: int,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    interpolation: str,
    antialias: bool,
    dtype: torch.dtype,
    channels_last: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> Tensor:
    """Return ``(B, C, height, width)``; arguments as in the reference.

    Its ``mode`` is called ``interpolation`` here: torch functionalises a mutating operator with
    a ``mode`` of its own.
    """
    out = _empty((*images.shape[:2], height, width), dtype, channels_last, images)
    settings = (boxes, flip, gain, bias, interpolation, antialias)
    _fill(out, [images], settings, (partner, lam, paste), ragged=False)
    return out


@torch.library.custom_op("lowres_vision::resize_backward", mutates_args=())
def resize_backward_op(
    gradient: Tensor,
    height: int,
    width: int,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    interpolation: str,
    antialias: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient of images of ``height`` and ``width``, in their ``dtype``."""
    out = _empty((*gradient.shape[:2], height, width), dtype, False, gradient)
    settings = (boxes, flip, gain)
    if gradient.device.type == "cpu" and native.serves([gradient], dtype, height, width):
        native.run(out, [gradient], *settings, None, interpolation, antialias, backward=True)
        return out
    if cuda.serves([gradient], dtype, height, width) and cuda.works(out.device):
        cuda.run(out, [gradient], *settings, None, interpolation, antialias, backward=True)
        return out
    sums = sum_dtype(gradient.dtype, dtype)
    return out.copy_(
        resize_backward_reference(
            gradient, height, width, *settings, interpolation, antialias, sums
        )
    )


@torch.library.custom_op("lowres_vision::resize_ragged", mutates_args=())
def resize_ragged_op(
    images: list[Tensor],
    height: int,
    width: int,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    interpolation: str,
    antialias: bool,
    dtype: torch.dtype,
    channels_last: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> Tensor:
    """As ``resize``, of a list of ``(C, H, W)``."""
    shape = (len(images), images[0].shape[0], height, width)
    out = _empty(shape, dtype, channels_last, images[0])
    settings = (boxes, flip, gain, bias, interpolation, antialias)
    _fill(out, images, settings, (partner, lam, paste), ragged=True)
    return out


@torch.library.custom_op("lowres_vision::resize_out", mutates_args=("out",))
def resize_out_op(
    out: Tensor,
    images: list[Tensor],
    ragged: bool,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    interpolation: str,
    antialias: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> None:
    """As ``resize`` of the one batch in ``images``, or where ``ragged`` of all, into ``out``."""
    settings = (boxes, flip, gain, bias, interpolation, antialias)
    _fill(out, images, settings, (partner, lam, paste), ragged=ragged)


def undispatched(images: Sequence[Tensor]) -> bool:
    """Whether only the kernel needs to see a call: no gradient, graph, transform or mode is on.

    The way through torch's dispatcher takes 50 us, and 0.3 ms after other work has emptied the
    caches: a quarter of what 64 images 64 -> 224 take in all.
    """
    watched = (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(image) is not Tensor for image in images)
    )
    tracked = torch.is_grad_enabled() and any(image.requires_grad for image in images)
    return not (watched or tracked)


def resize_undispatched(
    out: Tensor | None,
    images: Sequence[Tensor],
    height: int,
    width: int,
    settings: Settings,
    dtype: torch.dtype,
    channels_last: bool,
    mix: MixTensors,
    *,
    ragged: bool,
) -> Tensor:
    """Return what the operators return, without them; where :func:`undispatched` allows it."""
    if out is None:
        C = images[0].shape[-3]
        B = len(images) if ragged else images[0].shape[0]
        out = _empty((B, C, height, width), dtype, channels_last, images[0])
    _fill(out, images, settings, mix, ragged=ragged)
    torch.autograd.graph.increment_version(out)
    return out


def _fill(
    out: Tensor, images: Sequence[Tensor], settings: Settings, mix: MixTensors, *, ragged: bool
) -> None:
    height, width = out.shape[-2:]
    if out.device.type == "cpu" and native.serves(images, out.dtype, height, width):
        native.run(out, images, *settings, *mix, ragged=ragged)
    elif cuda.serves(images, out.dtype, height, width, ragged=ragged) and cuda.works(out.device):
        cuda.run(out, images, *settings, *mix)
    else:
        out.copy_(compose(images, height, width, settings, mix, out.dtype, ragged=ragged))


def _empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, like: Tensor) -> Tensor:
    if like.device.type == "cpu":
        return output_pool.empty(shape, dtype, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


@resize_op.register_fake
def _(images: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    dtype, channels_last = rest[6], rest[7]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*images.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


@resize_backward_op.register_fake
def _(gradient: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    shape = (*gradient.shape[:2], height, width)
    return torch.empty(shape, dtype=rest[-1], device=gradient.device)


@resize_ragged_op.register_fake
def _(images: list[Tensor], height: int, width: int, *rest: Any) -> Tensor:
    dtype, channels_last = rest[6], rest[7]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(images), images[0].shape[0], height, width)
    return torch.empty(shape, dtype=dtype, device=images[0].device, memory_format=layout)


@resize_out_op.register_fake
def _(*arguments: Any) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, _, _, boxes, flip, gain, _, interpolation, antialias, _, _, partner, lam, paste = inputs
    ctx.save_for_backward(boxes, flip, gain, partner, lam, paste)
    ctx.arguments = (*images.shape[-2:], interpolation, antialias, images.dtype)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    boxes, flip, gain, partner, lam, paste = ctx.saved_tensors
    height, width, interpolation, antialias, dtype = ctx.arguments
    if partner is not None:
        wide = gradient.to(sum_dtype(gradient.dtype))  # shared partners add up
        gradient = mix_backward_reference(wide, partner, lam, paste)
    images = resize_backward_op(
        gradient, height, width, boxes, flip, gain, interpolation, antialias, dtype
    )
    return (images, *[None] * 13)


resize_op.register_autograd(_backward, setup_context=_save)


def _save_ragged(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, _, _, boxes, flip, gain, _, interpolation, antialias, _, _, partner, lam, paste = inputs
    ctx.save_for_backward(boxes, flip, gain, partner, lam, paste)
    ctx.arguments = ([image.shape[-2:] for image in images], interpolation, antialias)
    ctx.dtype = images[0].dtype


def _backward_ragged(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    boxes, flip, gain, partner, lam, paste = ctx.saved_tensors
    sizes, interpolation, antialias = ctx.arguments
    if partner is not None:
        wide = gradient.to(sum_dtype(gradient.dtype))
        gradient = mix_backward_reference(wide, partner, lam, paste)
    images = []
    for index, size in enumerate(sizes):
        own = slice(index, index + 1)
        my_boxes = None if boxes is None else boxes[own]
        my_flip = None if flip is None else flip[own]
        arguments = (my_boxes, my_flip, gain, interpolation, antialias, ctx.dtype)
        images.append(resize_backward_op(gradient[own], *size, *arguments)[0])
    return (images, *[None] * 13)


resize_ragged_op.register_autograd(_backward_ragged, setup_context=_save_ragged)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, _, _, boxes, flip, gain, interpolation, antialias, _ = inputs
    ctx.save_for_backward(boxes, flip, gain)
    ctx.arguments = (*gradient.shape[-2:], interpolation, antialias, gradient.dtype)


def _double_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    boxes, flip, gain = ctx.saved_tensors
    height, width, interpolation, antialias, dtype = ctx.arguments
    settings = (boxes, flip, gain, None, interpolation, antialias)
    result = resize_op(gradient, height, width, *settings, dtype, False, None, None, None)
    return (result, *[None] * 8)


resize_backward_op.register_autograd(_double_backward, setup_context=_save_backward)


def _fold(size: int, value: Any, dim: int | None) -> Any:
    """Move a mapped dimension into the batch: ``(B, ...)`` to ``(size * B, ...)``."""
    if not isinstance(value, Tensor):
        return value
    mapped = value[None].expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _map_resize(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    folded = [_fold(size, *pair) for pair in zip(arguments, in_dims, strict=True)]
    folded[5:7] = arguments[5:7]  # gain and bias have no batch
    _refuse_mapped(in_dims[5:7])
    B = folded[0].shape[0] // size
    if folded[11] is not None:  # partners stay within their own batch
        folded[11] = folded[11] + torch.arange(size).repeat_interleave(B).to(folded[11]) * B
    return resize_op(*folded).unflatten(0, (size, B)), 0


def _map_backward(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    folded = [_fold(size, *pair) for pair in zip(arguments, in_dims, strict=True)]
    folded[5] = arguments[5]
    _refuse_mapped(in_dims[5:6])
    B = folded[0].shape[0] // size
    return resize_backward_op(*folded).unflatten(0, (size, B)), 0


def _refuse_mapped(in_dims: tuple[int | None, ...]) -> None:
    if any(dim is not None for dim in in_dims):
        raise NotImplementedError("vmap over `mean` or `std` of the resize is not supported")


resize_op.register_vmap(_map_resize)
resize_backward_op.register_vmap(_map_backward)
