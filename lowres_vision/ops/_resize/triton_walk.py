"""The resize with a few taps each way: a walk down the output rows.

A program keeps the K input rows in use, already resized to the output's width, in registers; when
a row leaves the window of the next output row, the row below takes its place. So a row of the
image is read and resized once, an output element costs K multiplications and its share of that,
and no thread waits for another.
"""

# Triton's language has its own types, and tuples that grow by concatenation alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl

from lowres_vision.ops._resize.triton_parts import affine, mixed, partner_of, pasted, place, rounded


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
    """Crop, flip, resize, normalise, cast and mix.

    A lane is one element of a row of ``out`` as it lies in memory. NCHW: a pixel of a channel,
    ``CHANNELS`` is 1, and the program writes ``PLANES`` channels out of ``groups`` times as many.
    Channels_last: one of the ``CHANNELS`` of a pixel, ``PLANES`` and ``groups`` are 1.
    ``PER_IMAGE``: the tables hold a box per image, not one for all. ``ALIGNED`` divides
    ``width * CHANNELS``. Program: an image's group of planes, ``rows`` rows, ``BLOCK`` lanes.
    """
    image, plane, top, bottom, lanes, lane_count = place(
        groups, height, width, rows, PLANES, CHANNELS, ALIGNED, BLOCK
    )
    gains, rests = affine(gain, bias, plane, lanes, PLANES, CHANNELS)
    images += plane * stride_channel
    pixels, starts, weights, last, held, columns, window = _open(
        images, image, row_starts, row_weights, column_starts, column_weights, flip, lanes, top,
        height, width, stride_image, stride_channel, stride_column, K_ROWS, K_COLUMNS, PER_IMAGE,
        PLANES, CHANNELS, BLOCK,
    )  # fmt: skip
    if partner is not None:
        other, mix = partner_of(partner, lam, paste, image, batch, lanes // CHANNELS)
        (
            other_pixels, other_starts, other_weights, other_last, other_held, other_columns,
            other_window,
        ) = _open(
            images, other, row_starts, row_weights, column_starts, column_weights, flip, lanes, top,
            height, width, stride_image, stride_channel, stride_column, K_ROWS, K_COLUMNS,
            PER_IMAGE, PLANES, CHANNELS, BLOCK,
        )  # fmt: skip

    out += (image * groups * PLANES + plane) * height * lane_count
    for y in range(top, bottom):
        start = tl.load(starts + y)
        window = _advance(
            window, held, start, last, pixels, stride_channel, stride_row, columns, gains, rests,
            K_ROWS, K_COLUMNS, PLANES,
        )  # fmt: skip
        held = tl.maximum(held, start)
        if partner is not None:
            other_start = tl.load(other_starts + y)
            if paste is not None:  # elsewhere, read nothing
                other_start = tl.where(pasted(mix, y), other_start, other_held)
            other_window = _advance(
                other_window, other_held, other_start, other_last, other_pixels, stride_channel,
                stride_row, other_columns, gains, rests, K_ROWS, K_COLUMNS, PLANES,
            )  # fmt: skip
            other_held = tl.maximum(other_held, other_start)
        for p in tl.static_range(PLANES):
            value = _combine(window, weights + y * K_ROWS, p, K_ROWS, PLANES)
            if partner is not None:
                other_value = _combine(other_window, other_weights + y * K_ROWS, p, K_ROWS, PLANES)
                value = mixed(value, other_value, mix, paste, y)
            row = out + (p * height + y) * lane_count
            tl.store(row + lanes, value.to(out.dtype.element_ty), mask=lanes < lane_count)


@triton.jit
def _open(
    images,
    image,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    flip,
    lanes,
    top,
    height,
    width,
    stride_image,
    stride_channel,
    stride_column,
    K_ROWS: tl.constexpr,
    K_COLUMNS: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return all that is needed to walk down an image, before its first row."""
    table = image if PER_IMAGE else image * 0
    columns = lanes // CHANNELS
    valid = columns < width
    if flip is not None:
        columns = tl.where(tl.load(flip + image), width - 1 - columns, columns)
    column_starts += table * (width + 1)
    column_weights += table * width * K_COLUMNS
    first_column = tl.load(column_starts + columns, mask=valid, other=0)
    last_column = tl.load(column_starts + width)
    taps = ()
    for k in tl.static_range(K_COLUMNS):
        offset = tl.minimum(first_column + k, last_column) * stride_column
        offset = offset.to(tl.uint32).to(tl.int64)  # saves a sign extension each
        weight = tl.load(column_weights + columns * K_COLUMNS + k, mask=valid, other=0)
        taps = taps + ((offset, weight),)

    starts = row_starts + table * (height + 1)
    weights = row_weights + table * height * K_ROWS
    held = tl.load(starts + top) - K_ROWS  # nothing yet
    window = ()
    for _ in tl.static_range(K_ROWS * PLANES):
        window = window + (tl.zeros((BLOCK,), weights.dtype.element_ty),)
    pixels = images + image * stride_image
    if CHANNELS > 1:
        pixels += lanes % CHANNELS * stride_channel
    return pixels, starts, weights, tl.load(starts + height), held, taps, window


@triton.jit
def _advance(
    window,
    held,
    start,
    last,
    pixels,
    stride_channel,
    stride_row,
    columns,
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
            resized = columns[0][1] * tl.load(source + columns[0][0]).to(columns[0][1].dtype)
            for k in tl.static_range(1, K_COLUMNS):
                resized += columns[k][1] * tl.load(source + columns[k][0]).to(columns[k][1].dtype)
            resized = rounded(resized)
            if resized.dtype == tl.float32:  # bytes are normalised in a pass of its own
                resized = resized * gains[p] + rests[p]
            window = window[1:] + (resized,)
            source += stride_channel
    return window


@triton.jit
def _combine(window, weights, p: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr):
    value = tl.load(weights) * window[p]
    for k in tl.static_range(1, K):
        value += tl.load(weights + k) * window[k * PLANES + p]
    return rounded(value)
