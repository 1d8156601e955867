"""Tables of both axes of a resize, for the kernels that read and that gather by them."""

# Triton's language has its own types.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def tap_kernel(
    boxes,
    starts,
    weights,
    length,
    size,
    AXIS: tl.constexpr,
    K,
    CUBIC: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one axis of each box: see :mod:`lowres_vision.ops._resize.taps` for the formula.

    ``starts`` ``(boxes, size + 1)`` int32 gets the first pixel that each output pixel reads, and
    behind them the last pixel of the box; ``weights`` ``(boxes, size, K)`` float32 the weights of
    that pixel and the following, 0 beyond the box, or int32 as whole multiples of ``2**-22``.
    Float64 within: at 512 pixels a float32 coordinate is off by 3e-5. Program: a box, a block of
    output pixels.
    """
    box = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = outputs < size
    outputs = tl.minimum(outputs, size - 1)
    if boxes is None:
        origin = tl.zeros((), tl.float64)
        extent = origin + length
    else:
        origin = tl.load(boxes + box * 4 + AXIS)
        extent = tl.load(boxes + box * 4 + AXIS + 2)
    scale = extent / size
    centres = origin + (outputs + 0.5) * scale
    first = tl.minimum(tl.maximum(tl.floor(origin).to(tl.int32), 0), length - 1)
    last = tl.minimum(tl.maximum((tl.ceil(origin + extent) - 1).to(tl.int32), 0), length - 1)
    radius: tl.constexpr = 2 if CUBIC else 1
    stretch = tl.maximum(scale, 1.0) if ANTIALIAS else tl.full((), 1.0, tl.float64)
    # The nearest 2 or 4 pixels, or all whose centre the stretched filter reaches.
    if ANTIALIAS:
        taps = tl.ceil(centres - radius * stretch - 0.5).to(tl.int32)
    else:
        taps = tl.floor(centres - 0.5).to(tl.int32) - (radius - 1)
    reads = tl.minimum(tl.maximum(taps, first), last)

    tl.store(starts + box * (size + 1) + outputs, reads, mask=valid)
    tl.store(starts + box * (size + 1) + size, last)
    weights += box * K * size
    if ANTIALIAS:
        inverse = 1 / stretch
        total = tl.zeros((BLOCK,), tl.float64)
        for k in range(K):
            weight = _filter((reads + k + 0.5 - centres) * inverse, CUBIC, -0.5)
            total += tl.where(reads + k <= last, weight, 0.0)
        for k in range(K):
            weight = _filter((reads + k + 0.5 - centres) * inverse, CUBIC, -0.5)
            weight = tl.where(reads + k <= last, weight / total, 0.0)
            if weights.dtype.element_ty == tl.int32:  # half away from zero, as Pillow does
                weight = weight * (1 << 22)
                weight += tl.where(weight < 0, -0.5, 0.5)
            tl.store(weights + outputs * K + k, weight.to(weights.dtype.element_ty), mask=valid)
    else:
        for k in range(K):
            total = tl.zeros((BLOCK,), tl.float64)
            for tap in tl.static_range(2 * radius):  # those outside the box read its nearest
                pixel = tl.minimum(tl.maximum(taps + tap, first), last)
                weight = _filter(taps + tap + 0.5 - centres, CUBIC, -0.75)
                total += tl.where(pixel == reads + k, weight, 0.0)
            tl.store(weights + outputs * K + k, total.to(tl.float32), mask=valid)


@triton.jit
def count_kernel(starts, counts, length, size, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Write how many output pixels start at pixel p or before it, ``counts`` ``(boxes, length)``.

    Starts ascend, so the outputs whose K taps reach p are those from ``counts[p - K]`` to
    ``counts[p] - 1``. ``2**STEPS > size``. Program: a box, a block of pixels.
    """
    box = tl.program_id(0).to(tl.int64)
    pixels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    starts += box * (size + 1)
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + size
    for _ in range(STEPS):
        middle = (low + high) // 2
        counted = tl.load(starts + middle, mask=low < high, other=length) <= pixels
        low = tl.where(counted, middle + 1, low)
        high = tl.where(counted, high, middle)
    tl.store(counts + box * length + pixels, low, mask=pixels < length)


@triton.jit
def _filter(distance, CUBIC: tl.constexpr, a: tl.constexpr):
    x = tl.abs(distance)
    if CUBIC:
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        weight = tl.where(x < 1, near, tl.where(x < 2, far, 0.0))
    else:
        weight = tl.maximum(1 - x, 0.0)
    return weight
