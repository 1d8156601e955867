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
from lowres_vision.ops._resize.settings import Settings

_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_OFFSETS = 1 << 31  # elements that an image may span: the kernels count within it in int32
_LANES = 256  # elements of a row that one program writes
# A program resizes K - 1 rows again that its neighbour has too: about a tenth at 64 -> 224.
_ROWS = 32
_WINDOW = 8  # the most rows that the walking kernel holds in registers
# The default for contracting multiply and add changes with Triton's version.
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


def available(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for this device."""
    return (
        device.type == "cuda"
        and installed()
        and torch.version.hip is None
        and torch.cuda.is_available()  # a device may also be that of fake tensors
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


# All that torch.compiler.assume_constant_result does; calling it imports the compiler, for 2 s.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
        run(out, [images], Settings())
        run(back, [out], Settings(), backward=True)
        forward = resize_reference(images, 5, 4, Settings(), torch.float64)
        backward = resize_backward_reference(out, 3, 3, Settings(), torch.float64)
        torch.testing.assert_close(out.double(), forward, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(back.double(), backward, rtol=1e-5, atol=1e-5)
    except Exception as error:  # whatever it is, the reference can serve
        logging.getLogger("lowres_vision").warning(
            "resizing on %s runs in plain torch, several times slower: %s", device, error
        )
        return False
    return True


def run(
    out: Tensor, images: Sequence[Tensor], settings: Settings, *, backward: bool = False
) -> None:
    """Fill ``out`` ``(B, C, height, width)``, contiguous or, going forward, channels_last.

    ``images`` holds one ``(B, C, H, W)`` batch. Going ``backward``, it holds the gradient of a
    resize's result and ``out`` becomes that of its images. A uint8 ``out`` is what Pillow would
    make of uint8 images. A partner outside the batch makes its image NaN: to raise would mean to
    wait for the device.
    """
    if out.numel() == 0:
        return
    (source,) = images
    settings = settings._replace(
        boxes=_as(settings.boxes, torch.float64),
        flip=_as(settings.flip, torch.bool),
        gain=_as(settings.gain, torch.float32),
        bias=_as(settings.bias, torch.float32),
        partner=_as(settings.partner, torch.int64),
        lam=_as(settings.lam, torch.float32),
        paste=_as(settings.paste, torch.int64),
    )
    image, result = (out, source) if backward else (source, out)
    whole = out.dtype == torch.uint8
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        tables = [
            _taps(settings, axis, image.shape[2 + axis], result.shape[2 + axis], whole, out.device)
            for axis in (0, 1)
        ]
        (_gather if backward else _walk)(out, source, tables, settings)


def _walk(
    out: Tensor, images: Tensor, tables: list[tuple[Tensor, Tensor]], settings: Settings
) -> None:
    B, C, height, width = out.shape
    taps = [weights.shape[-1] for _, weights in tables]
    channels = 1 if out.is_contiguous() else C
    alone = settings.partner is None
    light = alone and max(taps) * C <= _WINDOW
    planes = C if light and channels == 1 else 1  # share weights where registers allow
    groups = C // (planes * channels)
    lanes = width * channels
    block = min(_LANES, _power(lanes))
    narrow = max(taps) * (1 if alone else 2) <= 4
    kernel = _kernels().resize_kernel if max(taps) <= _WINDOW else _kernels().wide_kernel
    kernel[(B * groups, -(-height // _ROWS), -(-lanes // block))](
        images,
        out,
        *tables[0],
        *tables[1],
        settings.flip,
        settings.gain,
        settings.bias,
        settings.partner,
        settings.lam,
        settings.paste,
        B,
        groups,
        height,
        width,
        *images.stride(),
        _ROWS,
        *taps,
        PER_IMAGE=settings.boxes is not None,
        PLANES=planes,
        CHANNELS=channels,
        ALIGNED=math.gcd(lanes, 16),
        BLOCK=block,
        # Eight elements to a thread, a 16-byte store of bf16; four where registers are short.
        num_warps=max(1, block // (256 if narrow else 128)),
        **_OPTIONS,
    )


def _gather(
    out: Tensor, gradient: Tensor, tables: list[tuple[Tensor, Tensor]], settings: Settings
) -> None:
    B, C, height, width = out.shape
    ends = order = None
    if settings.partner is not None:
        partners, order = settings.partner.sort(stable=True)
        ends = torch.searchsorted(partners, torch.arange(B + 1, device=out.device))
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
        settings.flip,
        settings.gain,
        ends,
        order,
        settings.lam,
        settings.paste,
        C,
        height,
        width,
        *gradient.shape[2:],
        *gradient.stride(),
        _ROWS,
        row_weights.shape[-1],
        column_weights.shape[-1],
        PER_IMAGE=settings.boxes is not None,
        SPAN=span,
        BLOCK=block,
        num_warps=max(1, span // 128),
        **_OPTIONS,
    )


def _taps(
    settings: Settings, axis: int, length: int, size: int, whole: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return where each output pixel starts to read, and its weights, ``whole`` ones or floats."""
    radius = 1 if settings.mode == "bilinear" else 2
    # No box is longer than its image, so none stretches the filter further.
    stretch = max(1.0, length / size) if settings.antialias else 1.0
    taps = math.ceil(2 * radius * stretch)
    B = 1 if settings.boxes is None else len(settings.boxes)
    starts = torch.empty((B, size + 1), dtype=torch.int32, device=device)
    dtype = torch.int32 if whole else torch.float32
    weights = torch.empty((B, size, taps), dtype=dtype, device=device)
    block = min(_LANES, _power(size))
    _kernels().tap_kernel[(B, -(-size // block))](
        settings.boxes,
        starts,
        weights,
        length,
        size,
        axis,
        taps,
        CUBIC=settings.mode == "bicubic",
        ANTIALIAS=settings.antialias,
        BLOCK=block,
        num_warps=4,
        **_OPTIONS | {"enable_fp_fusion": False},  # Pillow rounds after each operation
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
