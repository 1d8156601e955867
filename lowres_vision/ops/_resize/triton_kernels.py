"""The resize as Triton kernels; :mod:`lowres_vision.ops._resize.cuda` launches them.

:func:`tap_kernel` first writes down both axes as tables: the first pixel and the K weights of
every output pixel. :func:`resize_kernel` then walks down the output rows. It keeps the K input
rows in use, already resized to the output's width, in registers; when a row leaves the window of
the next output row, the row below takes its place. So a row of the image is read and resized once,
an output element costs K multiplications and its share of that, and no thread waits for another.
:func:`wide_kernel` serves filters too wide for that, and :func:`gradient_kernel` is the transpose:
each program owns some input pixels and gathers what reads them, so that no two programs write to
the same place and every run gives the same bits.

Offsets within an image fit 32 bits (the launcher sees to it); offsets of images are 64 bits wide.
"""

# Triton's language has its own types, and tuples that grow by concatenation alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from lowres_vision.ops._resize.triton_gradient import gradient_kernel
from lowres_vision.ops._resize.triton_tables import count_kernel, tap_kernel

__all__ = ["count_kernel", "gradient_kernel", "resize_kernel", "tap_kernel", "wide_kernel"]


@triton.jit
def resize_kernel(
    images,
    out,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    flip,
    gain,
    bias,
    partner,
    lam,
    paste,
    batch,
    groups,
    height,
    width,
    stride_image,
    stride_channel,
    stride_row,
    stride_column,
    rows,
    K_ROWS: tl.constexpr,
    K_COLUMNS: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Resize with a few taps each way.

    A lane is one element of a row of ``out`` as it lies in memory. NCHW: a pixel of a channel,
    ``CHANNELS`` is 1, and the program writes ``PLANES`` channels out of ``groups`` times as many.
    Channels_last: one of the ``CHANNELS`` of a pixel, ``PLANES`` and ``groups`` are 1.
    ``PER_IMAGE``: the tables hold a box per image, not one for all. ``ALIGNED`` divides
    ``width * CHANNELS``. Program: an image's group of planes, ``rows`` rows, ``BLOCK`` lanes.
    """
    image = (tl.program_id(0) // groups).to(tl.int64)
    plane = tl.program_id(0) % groups * PLANES
    top = tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, height)
    lanes = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    lane_count = tl.multiple_of(width * CHANNELS, ALIGNED)
    valid = lanes < lane_count
    columns = lanes // CHANNELS
    gains, rests = _affine(gain, bias, plane, lanes, PLANES, CHANNELS)
    images += plane * stride_channel

    table = image if PER_IMAGE else image * 0
    offsets, weights = _columns(
        column_starts, column_weights, flip, image, table, columns, valid, width, stride_column,
        K_COLUMNS,
    )  # fmt: skip
    pixels = images + image * stride_image
    starts = row_starts + table * (height + 1)
    row_weights_own = row_weights + table * height * K_ROWS
    last = tl.load(starts + height)
    held = tl.load(starts + top) - K_ROWS  # nothing yet
    window = _zeros(K_ROWS * PLANES, BLOCK)
    if CHANNELS > 1:
        pixels += lanes % CHANNELS * stride_channel

    if partner is not None:
        other = tl.load(partner + image)
        known = (other >= 0) & (other < batch)
        other = tl.where(known, other, image)
        share = tl.where(known, tl.load(lam + image), float("nan"))
        other_table = other if PER_IMAGE else other * 0
        other_offsets, other_weights = _columns(
            column_starts, column_weights, flip, other, other_table, columns, valid, width,
            stride_column, K_COLUMNS,
        )  # fmt: skip
        other_pixels = images + other * stride_image
        other_starts = row_starts + other_table * (height + 1)
        other_row_weights = row_weights + other_table * height * K_ROWS
        other_last = tl.load(other_starts + height)
        other_held = tl.load(other_starts + top) - K_ROWS
        other_window = _zeros(K_ROWS * PLANES, BLOCK)
        if CHANNELS > 1:
            other_pixels += lanes % CHANNELS * stride_channel
        if paste is not None:
            paste_top, paste_bottom, inside = _pasted(paste, image, columns)

    out += (image * groups * PLANES + plane) * height * lane_count
    for y in range(top, bottom):
        start = tl.load(starts + y)
        window = _advance(
            window, held, start, last, pixels, stride_channel, stride_row, offsets, weights,
            gains, rests, K_ROWS, K_COLUMNS, PLANES,
        )  # fmt: skip
        held = tl.maximum(held, start)
        if partner is not None:
            other_start = tl.load(other_starts + y)
            if paste is not None:
                within = (y >= paste_top) & (y < paste_bottom)
                other_start = tl.where(within, other_start, other_held)  # elsewhere, read nothing
            other_window = _advance(
                other_window, other_held, other_start, other_last, other_pixels, stride_channel,
                stride_row, other_offsets, other_weights, gains, rests, K_ROWS, K_COLUMNS, PLANES,
            )  # fmt: skip
            other_held = tl.maximum(other_held, other_start)
        for p in tl.static_range(PLANES):
            value = _combine(window, row_weights_own + y * K_ROWS, p, K_ROWS, PLANES)
            if partner is not None:
                other_value = _combine(
                    other_window, other_row_weights + y * K_ROWS, p, K_ROWS, PLANES
                )
                if paste is None:
                    value = share * value + (1 - share) * other_value
                else:
                    value = tl.where(within & inside, other_value, value)
                    value = tl.where(known, value, float("nan"))
            row = out + (p * height + y) * lane_count
            tl.store(row + lanes, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def wide_kernel(
    images,
    out,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    flip,
    gain,
    bias,
    partner,
    lam,
    paste,
    batch,
    groups,
    height,
    width,
    stride_image,
    stride_channel,
    stride_row,
    stride_column,
    rows,
    K_ROWS,
    K_COLUMNS,
    PER_IMAGE: tl.constexpr,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As :func:`resize_kernel` with ``PLANES`` 1, any number of taps, each read for each output."""
    image = (tl.program_id(0) // groups).to(tl.int64)
    plane = tl.program_id(0) % groups
    top = tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, height)
    lanes = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    lane_count = tl.multiple_of(width * CHANNELS, ALIGNED)
    valid = lanes < lane_count
    columns = lanes // CHANNELS
    gains, rests = _affine(gain, bias, plane, lanes, 1, CHANNELS)
    images += plane * stride_channel + lanes % CHANNELS * stride_channel

    if partner is not None:
        other = tl.load(partner + image)
        known = (other >= 0) & (other < batch)
        other = tl.where(known, other, image)
        share = tl.where(known, tl.load(lam + image), float("nan"))
        if paste is not None:
            paste_top, paste_bottom, inside = _pasted(paste, image, columns)

    out += (image * groups + plane) * height * lane_count
    for y in range(top, bottom):
        value = _filtered(
            images, row_starts, row_weights, column_starts, column_weights, flip, image, y,
            columns, valid, height, width, stride_image, stride_row, stride_column,
            K_ROWS, K_COLUMNS, PER_IMAGE, BLOCK,
        )  # fmt: skip
        if partner is not None:
            other_value = _filtered(
                images, row_starts, row_weights, column_starts, column_weights, flip, other, y,
                columns, valid, height, width, stride_image, stride_row, stride_column,
                K_ROWS, K_COLUMNS, PER_IMAGE, BLOCK,
            )  # fmt: skip
            if paste is None:
                value = share * value + (1 - share) * other_value
            else:
                within = (y >= paste_top) & (y < paste_bottom)
                value = tl.where(within & inside, other_value, value)
                value = tl.where(known, value, float("nan"))
        value = value * gains[0] + rests[0]
        tl.store(out + y * lane_count + lanes, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _filtered(
    images,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    flip,
    image,
    y,
    columns,
    valid,
    height,
    width,
    stride_image,
    stride_row,
    stride_column,
    K_ROWS,
    K_COLUMNS,
    PER_IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if flip is not None:
        columns = tl.where(tl.load(flip + image), width - 1 - columns, columns)
    table = image if PER_IMAGE else image * 0
    row_starts += table * (height + 1)
    row_weights += (table * height + y) * K_ROWS
    column_starts += table * (width + 1)
    column_weights += (table * width + columns) * K_COLUMNS
    pixels = images + image * stride_image
    first_row = tl.load(row_starts + y)
    last_row = tl.load(row_starts + height)
    first = tl.load(column_starts + columns, mask=valid, other=0)
    last = tl.load(column_starts + width)
    value = tl.zeros((BLOCK,), tl.float32)
    for j in range(K_ROWS):
        source = pixels + tl.minimum(first_row + j, last_row) * stride_row
        resized = tl.zeros((BLOCK,), tl.float32)
        for k in range(K_COLUMNS):
            pixel = tl.load(source + tl.minimum(first + k, last) * stride_column)
            weight = tl.load(column_weights + k, mask=valid, other=0.0)
            resized += weight * pixel.to(tl.float32)
        value += tl.load(row_weights + j) * resized
    return value


@triton.jit
def _advance(
    window,
    held,
    start,
    last,
    pixels,
    stride_channel,
    stride_row,
    offsets,
    weights,
    gains,
    rests,
    K_ROWS: tl.constexpr,
    K_COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
):
    """Move the window of rows from row ``held`` to ``start``, skipping rows that none reads."""
    for row in range(tl.maximum(held, start - K_ROWS), start):
        source = pixels + tl.minimum(row + K_ROWS, last) * stride_row
        for p in tl.static_range(PLANES):
            resized = weights[0] * tl.load(source + offsets[0]).to(tl.float32)
            for k in tl.static_range(1, K_COLUMNS):
                resized += weights[k] * tl.load(source + offsets[k]).to(tl.float32)
            window = window[1:] + (resized * gains[p] + rests[p],)
            source += stride_channel
    return window


@triton.jit
def _combine(window, weights, p: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr):
    value = tl.load(weights) * window[p]
    for k in tl.static_range(1, K):
        value += tl.load(weights + k) * window[k * PLANES + p]
    return value


@triton.jit
def _columns(
    starts,
    weights,
    flip,
    image,
    table,
    columns,
    valid,
    width,
    stride_column,
    K: tl.constexpr,
):
    """Return, for each of the K taps of all lanes, where it reads within a row and its weight."""
    if flip is not None:
        columns = tl.where(tl.load(flip + image), width - 1 - columns, columns)
    starts += table * (width + 1)
    weights += table * width * K
    first = tl.load(starts + columns, mask=valid, other=0)
    last = tl.load(starts + width)
    offsets = ()
    taken = ()
    for k in tl.static_range(K):
        offset = tl.minimum(first + k, last) * stride_column
        offsets = offsets + (offset.to(tl.uint32).to(tl.int64),)  # saves a sign extension each
        taken = taken + (tl.load(weights + columns * K + k, mask=valid, other=0.0),)
    return offsets, taken


@triton.jit
def _affine(gain, bias, plane, lanes, PLANES: tl.constexpr, CHANNELS: tl.constexpr):
    gains = ()
    rests = ()
    for p in tl.static_range(PLANES):
        channel = lanes % CHANNELS if CHANNELS > 1 else plane + p
        gains = gains + (1.0 if gain is None else tl.load(gain + channel),)
        rests = rests + (0.0 if bias is None else tl.load(bias + channel),)
    return gains, rests


@triton.jit
def _pasted(paste, image, columns):
    top = tl.load(paste + image * 4)
    left = tl.load(paste + image * 4 + 1)
    bottom = top + tl.load(paste + image * 4 + 2)
    right = left + tl.load(paste + image * 4 + 3)
    return top, bottom, (columns >= left) & (columns < right)


@triton.jit
def _zeros(count: tl.constexpr, BLOCK: tl.constexpr):
    window = ()
    for _ in tl.static_range(count):
        window = window + (tl.zeros((BLOCK,), tl.float32),)
    return window
