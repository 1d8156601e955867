"""The Triton kernels: when they can serve, and how they are launched.

Triton comes with torch's builds for CUDA on Linux. It is imported at the first use, here alone.
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowres_vision.ops._resize.reference import resize_backward_reference, resize_reference

_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_OFFSETS = 1 << 31  # elements that an image may span: the kernels count within it in int32
_LANES = 256  # elements of a row that one program writes
# A program resizes K - 1 rows again that its neighbour has too: about a tenth at 64 -> 224.
_ROWS = 32
_WINDOW = 8  # the most rows that the walking kernel holds in registers
# The default for contracting multiply and add changes with Triton's version.
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this device."""
    return (
        device.type == "cuda"
        and installed()
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported; it is not imported for that."""
    return importlib.util.find_spec("triton") is not None


def serves(images: Sequence[Tensor], dtype: torch.dtype, *sides: int, ragged: bool = False) -> bool:
    """Whether the kernels can do this work: one batch on a CUDA device, nothing of float64."""
    image = images[0]
    if ragged or image.device.type != "cuda" or image.dtype not in _TYPES or dtype not in _TYPES:
        return False
    steps = zip(image.shape[1:], image.stride()[1:], strict=True)
    farthest = sum((length - 1) * step for length, step in steps)
    return (
        farthest < _OFFSETS
        and image.shape[1] * math.prod(sides) < _OFFSETS
        and available(image.device)
    )


@functools.cache
def works(device: torch.device) -> bool:
    """Whether the kernels compile and are right on this device; says once where they are not.

    Triton builds its launcher with the machine's C compiler at the first launch, so only a launch
    can tell.
    """
    try:
        images = torch.arange(18.0, device=device).view(2, 1, 3, 3)
        out, back = images.new_empty(2, 1, 5, 4), torch.empty_like(images)
        run(out, [images], None, None, None, None, "bilinear", True)
        run(back, [out], None, None, None, None, "bilinear", True, backward=True)
        settings = (None, None, None, "bilinear", True, torch.float64)
        forward = resize_reference(images, 5, 4, None, *settings)
        backward = resize_backward_reference(out, 3, 3, *settings)
        torch.testing.assert_close(out.double(), forward, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(back.double(), backward, rtol=1e-5, atol=1e-5)
    except Exception as error:  # whatever it is, the reference can serve
        logging.getLogger("lowres_vision").warning(
            "resizing on %s runs in plain torch, several times slower: %s", device, error
        )
        return False
    return True


def run(
    out: Tensor,
    images: Sequence[Tensor],
    boxes: Tensor | None,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    mode: str,
    antialias: bool,
    partner: Tensor | None = None,
    lam: Tensor | None = None,
    paste: Tensor | None = None,
    *,
    backward: bool = False,
) -> None:
    """Fill ``out`` ``(B, C, height, width)``, contiguous or, going forward, channels_last.

    ``images`` holds one ``(B, C, H, W)`` batch. Going ``backward``, it holds the gradient of a
    resize's result and ``out`` becomes that of its images. A partner outside the batch makes its
    image NaN: to raise would mean to wait for the device.
    """
    if out.numel() == 0:
        return
    (source,) = images
    boxes, flip = _as(boxes, torch.float64), _as(flip, torch.bool)
    gain, bias = _as(gain, torch.float32), _as(bias, torch.float32)
    image, result = (out, source) if backward else (source, out)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        tables = [
            _taps(boxes, axis, image.shape[2 + axis], result.shape[2 + axis], mode, antialias, out)
            for axis in (0, 1)
        ]
        if backward:
            _gather(out, source, tables, boxes is not None, flip, gain)
        else:
            mix = _as(partner, torch.int64), _as(lam, torch.float32), _as(paste, torch.int64)
            _walk(out, source, tables, boxes is not None, flip, gain, bias, *mix)


def _walk(
    out: Tensor,
    images: Tensor,
    tables: list[tuple[Tensor, Tensor]],
    per_image: bool,
    flip: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    partner: Tensor | None,
    lam: Tensor | None,
    paste: Tensor | None,
) -> None:
    B, C, height, width = out.shape
    taps = [weights.shape[-1] for _, weights in tables]
    channels = 1 if out.is_contiguous() else C
    light = partner is None and max(taps) * C <= _WINDOW
    planes = C if light and channels == 1 else 1  # share weights where registers allow
    groups = C // (planes * channels)
    lanes = width * channels
    block = min(_LANES, _power(lanes))
    narrow = max(taps) * (1 if partner is None else 2) <= 4
    kernel = _kernels().resize_kernel if max(taps) <= _WINDOW else _kernels().wide_kernel
    kernel[(B * groups, -(-height // _ROWS), -(-lanes // block))](
        images,
        out,
        *tables[0],
        *tables[1],
        flip,
        gain,
        bias,
        partner,
        lam,
        paste,
        B,
        groups,
        height,
        width,
        *images.stride(),
        _ROWS,
        *taps,
        PER_IMAGE=per_image,
        PLANES=planes,
        CHANNELS=channels,
        ALIGNED=math.gcd(lanes, 16),
        BLOCK=block,
        # Eight elements to a thread, a 16-byte store of bf16; four where registers are short.
        num_warps=max(1, block // (256 if narrow else 128)),
        **_OPTIONS,
    )


def _gather(
    out: Tensor,
    gradient: Tensor,
    tables: list[tuple[Tensor, Tensor]],
    per_image: bool,
    flip: Tensor | None,
    gain: Tensor | None,
) -> None:
    B, C, height, width = out.shape
    (row_starts, row_weights), (column_starts, column_weights) = tables
    block = min(64, _power(width))
    # The columns of the gradient that read a block of pixels, when nothing is cropped.
    readers = math.ceil(block * gradient.shape[3] / width) + 2 * column_weights.shape[-1]
    span = min(_LANES, _power(readers))
    _kernels().gradient_kernel[(B * C, -(-height // _ROWS), -(-width // block))](
        gradient,
        out,
        row_starts,
        row_weights,
        _counts(row_starts, height),
        column_starts,
        column_weights,
        _counts(column_starts, width),
        flip,
        gain,
        C,
        height,
        width,
        *gradient.shape[2:],
        *gradient.stride(),
        _ROWS,
        row_weights.shape[-1],
        column_weights.shape[-1],
        PER_IMAGE=per_image,
        SPAN=span,
        BLOCK=block,
        num_warps=max(1, span // 128),
        **_OPTIONS,
    )


def _taps(
    boxes: Tensor | None,
    axis: int,
    length: int,
    size: int,
    mode: str,
    antialias: bool,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return where each output pixel starts to read, and its weights."""
    radius = 1 if mode == "bilinear" else 2
    # No box is longer than its image, so none stretches the filter further.
    taps = math.ceil(2 * radius * max(1.0, length / size)) if antialias else 2 * radius
    B = 1 if boxes is None else len(boxes)
    starts = torch.empty((B, size + 1), dtype=torch.int32, device=like.device)
    weights = torch.empty((B, size, taps), dtype=torch.float32, device=like.device)
    block = min(_LANES, _power(size))
    _kernels().tap_kernel[(B, -(-size // block))](
        boxes,
        starts,
        weights,
        length,
        size,
        axis,
        taps,
        CUBIC=mode == "bicubic",
        ANTIALIAS=antialias,
        BLOCK=block,
        num_warps=4,
        **_OPTIONS,
    )
    return starts, weights


def _counts(starts: Tensor, length: int) -> Tensor:
    B, size = starts.shape[0], starts.shape[1] - 1
    counts = starts.new_empty(B, length)
    block = min(_LANES, _power(length))
    _kernels().count_kernel[(B, -(-length // block))](
        starts, counts, length, size, STEPS=size.bit_length(), BLOCK=block, num_warps=4, **_OPTIONS
    )
    return counts


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _kernels() -> Any:
    from lowres_vision.ops._resize import triton_kernels

    return triton_kernels
