"""The resize with any number of taps, as strong shrinking needs: each is read for each output."""

# Triton's language has its own types.
# mypy: ignore-errors

import triton
import triton.language as tl

from lowres_vision.ops._resize.triton_parts import affine, mixed, partner_of, place, rounded


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
    """As :func:`resize_kernel <lowres_vision.ops._resize.triton_walk>` with ``PLANES`` 1."""
    image, plane, top, bottom, lanes, lane_count = place(
        groups, height, width, rows, PLANES, CHANNELS, ALIGNED, BLOCK
    )
    gains, rests = affine(gain, bias, plane, lanes, PLANES, CHANNELS)
    images += plane * stride_channel + lanes % CHANNELS * stride_channel
    columns = lanes // CHANNELS
    if partner is not None:
        other, mix = partner_of(partner, lam, paste, image, batch, columns)

    out += (image * groups + plane) * height * lane_count
    for y in range(top, bottom):
        value = _filtered(
            images, row_starts, row_weights, column_starts, column_weights, flip, image, y,
            columns, height, width, stride_image, stride_row, stride_column,
            K_ROWS, K_COLUMNS, PER_IMAGE, BLOCK,
        )  # fmt: skip
        if partner is not None:
            other_value = _filtered(
                images, row_starts, row_weights, column_starts, column_weights, flip, other, y,
                columns, height, width, stride_image, stride_row, stride_column,
                K_ROWS, K_COLUMNS, PER_IMAGE, BLOCK,
            )  # fmt: skip
            value = mixed(value, other_value, mix, paste, y)
        if value.dtype == tl.float32:
            value = value * gains[0] + rests[0]
        row = out + y * lane_count
        tl.store(row + lanes, value.to(out.dtype.element_ty), mask=lanes < lane_count)


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
    """Return row ``y`` of an image."""
    valid = columns < width
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
    dtype: tl.constexpr = row_weights.dtype.element_ty
    value = tl.zeros((BLOCK,), dtype)
    for j in range(K_ROWS):
        source = pixels + tl.minimum(first_row + j, last_row) * stride_row
        resized = tl.zeros((BLOCK,), dtype)
        for k in range(K_COLUMNS):
            pixel = tl.load(source + tl.minimum(first + k, last) * stride_column)
            resized += tl.load(column_weights + k, mask=valid, other=0) * pixel.to(dtype)
        value += tl.load(row_weights + j) * rounded(resized)
    return rounded(value)
