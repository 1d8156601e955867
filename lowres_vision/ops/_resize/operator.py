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
    compose,
    mix_backward_reference,
    resize_backward_reference,
    sum_dtype,
)
from lowres_vision.ops._resize.settings import Settings


@torch.library.custom_op("lowres_vision::resize", mutates_args=())
def resize_op(
    images: Tensor,
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    interpolation: str,
    antialias: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> Tensor:
    """Return ``(B, C, height, width)``; from ``boxes`` on, the arguments are a ``Settings``.

    Its ``mode`` is called ``interpolation`` here: torch functionalises a mutating operator with
    a ``mode`` of its own.
    """
    out = _empty((*images.shape[:2], height, width), dtype, channels_last, images)
    settings = Settings(boxes, flip, gain, bias, interpolation, antialias, partner, lam, paste)
    _fill(out, [images], settings, ragged=False)
    return out


@torch.library.custom_op("lowres_vision::resize_backward", mutates_args=())
def resize_backward_op(
    gradient: Tensor,
    height: int,
    width: int,
    dtype: torch.dtype,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    interpolation: str,
    antialias: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> Tensor:
    """Return the gradient of images of ``height`` and ``width``, in their ``dtype``."""
    out = _empty((*gradient.shape[:2], height, width), dtype, False, gradient)
    settings = Settings(boxes, flip, gain, None, interpolation, antialias, partner, lam, paste)
    if cuda.serves([gradient], dtype, height, width) and cuda.works(out.device):
        cuda.run(out, [gradient], settings, backward=True)
        return out
    gradient, settings = mix_backward_reference(gradient, settings), settings.unmixed()
    if gradient.device.type == "cpu" and native.serves([gradient], dtype, height, width):
        native.run(out, [gradient], settings, backward=True)
        return out
    sums = sum_dtype(gradient.dtype, dtype)
    return out.copy_(resize_backward_reference(gradient, height, width, settings, sums))


@torch.library.custom_op("lowres_vision::resize_ragged", mutates_args=())
def resize_ragged_op(
    images: list[Tensor],
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    interpolation: str,
    antialias: bool,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> Tensor:
    """As ``resize``, of a list of ``(C, H, W)``."""
    shape = (len(images), images[0].shape[0], height, width)
    out = _empty(shape, dtype, channels_last, images[0])
    settings = Settings(boxes, flip, gain, bias, interpolation, antialias, partner, lam, paste)
    _fill(out, images, settings, ragged=True)
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
    settings = Settings(boxes, flip, gain, bias, interpolation, antialias, partner, lam, paste)
    _fill(out, images, settings, ragged=ragged)


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
    dtype: torch.dtype,
    channels_last: bool,
    settings: Settings,
    *,
    ragged: bool,
) -> Tensor:
    """Return what the operators return, without them; where :func:`undispatched` allows it.

    On the CPU it is for work that the C kernel serves, which checks boxes and partners itself.
    """
    if out is None:
        C = images[0].shape[-3]
        B = len(images) if ragged else images[0].shape[0]
        out = _empty((B, C, height, width), dtype, channels_last, images[0])
    if out.device.type == "cpu":
        native.run(out, images, settings, ragged=ragged, checked=False)
    else:
        _fill(out, images, settings, ragged=ragged)
    torch.autograd.graph.increment_version(out)
    return out


def _fill(out: Tensor, images: Sequence[Tensor], settings: Settings, *, ragged: bool) -> None:
    height, width = out.shape[-2:]
    if out.device.type == "cpu" and native.serves(images, out.dtype, height, width):
        native.run(out, images, settings, ragged=ragged)
    elif cuda.serves(images, out.dtype, height, width, ragged=ragged) and cuda.works(out.device):
        cuda.run(out, images, settings)
    else:
        out.copy_(compose(images, height, width, settings, out.dtype, ragged=ragged))


def _empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, like: Tensor) -> Tensor:
    if like.device.type == "cpu":
        return output_pool.empty(shape, dtype, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


@resize_op.register_fake
def _(
    images: Tensor, height: int, width: int, dtype: torch.dtype, channels_last: bool, *rest: Any
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*images.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


@resize_backward_op.register_fake
def _(gradient: Tensor, height: int, width: int, dtype: torch.dtype, *rest: Any) -> Tensor:
    shape = (*gradient.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype, device=gradient.device)


@resize_ragged_op.register_fake
def _(
    images: list[Tensor],
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
    *rest: Any,
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(images), images[0].shape[0], height, width)
    return torch.empty(shape, dtype=dtype, device=images[0].device, memory_format=layout)


@resize_out_op.register_fake
def _(*arguments: Any) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, settings = inputs[0], Settings(*inputs[5:])
    ctx.save_for_backward(*_tensors(settings))
    ctx.arguments = (*images.shape[-2:], images.dtype, settings.mode, settings.antialias)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    boxes, flip, gain, *mix = ctx.saved_tensors
    height, width, dtype, *filter_ = ctx.arguments
    rest = (dtype, boxes, flip, gain, *filter_, *mix)
    return (resize_backward_op(gradient, height, width, *rest), *[None] * 13)


resize_op.register_autograd(_backward, setup_context=_save)


def _save_ragged(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, settings = inputs[0], Settings(*inputs[5:])
    ctx.save_for_backward(*_tensors(settings))
    ctx.sizes = [image.shape[-2:] for image in images]
    ctx.arguments = (images[0].dtype, settings.mode, settings.antialias)


def _backward_ragged(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    boxes, flip, gain, *mix = ctx.saved_tensors
    dtype, *filter_ = ctx.arguments
    settings = Settings(boxes, flip, gain, None, *filter_, *mix)
    gradient = mix_backward_reference(gradient, settings)
    images = []
    for index, size in enumerate(ctx.sizes):
        mine = settings.of_image(index)
        rest = (dtype, mine.boxes, mine.flip, gain, *filter_, None, None, None)
        images.append(resize_backward_op(gradient[index : index + 1], *size, *rest)[0])
    return (images, *[None] * 13)


resize_ragged_op.register_autograd(_backward_ragged, setup_context=_save_ragged)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, (boxes, flip, gain, mode, antialias, *mix) = inputs[0], inputs[4:]
    ctx.save_for_backward(boxes, flip, gain, *mix)
    ctx.arguments = (*gradient.shape[-2:], gradient.dtype, mode, antialias)


def _double_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    boxes, flip, gain, *mix = ctx.saved_tensors
    height, width, dtype, *filter_ = ctx.arguments
    rest = (dtype, False, boxes, flip, gain, None, *filter_, *mix)
    return (resize_op(gradient, height, width, *rest), *[None] * 11)


resize_backward_op.register_autograd(_double_backward, setup_context=_save_backward)


def _tensors(settings: Settings) -> tuple[Tensor | None, ...]:
    """Return what a gradient needs; a bias has none."""
    boxes, flip, gain, _, _, _, *mix = settings
    return boxes, flip, gain, *mix


def _mapped(operation: Any, constants: slice, partner: int) -> Any:
    """Return vmap's rule: one call on a batch of batches, which share ``constants``."""

    def call(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        if any(dim is not None for dim in in_dims[constants]):
            raise NotImplementedError("vmap over `mean` or `std` of the resize is not supported")
        size = info.batch_size
        folded = [_fold(size, *pair) for pair in zip(arguments, in_dims, strict=True)]
        folded[constants] = arguments[constants]
        B = folded[0].shape[0] // size
        if folded[partner] is not None:  # partners stay within their own batch
            offsets = torch.arange(size).repeat_interleave(B) * B
            folded[partner] = folded[partner] + offsets.to(folded[partner])
        return operation(*folded).unflatten(0, (size, B)), 0

    return call


def _fold(size: int, value: Any, dim: int | None) -> Any:
    """Move a mapped dimension into the batch: ``(B, ...)`` to ``(size * B, ...)``."""
    if not isinstance(value, Tensor):
        return value
    mapped = value[None].expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return mapped.flatten(0, 1)


resize_op.register_vmap(_mapped(resize_op, slice(7, 9), partner=11))
resize_backward_op.register_vmap(_mapped(resize_backward_op, slice(6, 7), partner=9))
