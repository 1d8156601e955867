"""The transpose of the resize: each input pixel gathers from the gradient what it gave."""

# Triton's language has its own types.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def gradient_kernel(
    gradient,
    out,
    row_starts,
    row_weights,
    row_counts,
    column_starts,
    column_weights,
    column_counts,
    flip,
    gain,
    channels,
    height,
    width,
    gradient_height,
    gradient_width,
    stride_image,
    stride_channel,
    stride_row,
    stride_column,
    rows,
    K_ROWS,
    K_COLUMNS,
    PER_IMAGE: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of images, ``(B, channels, height, width)`` contiguous.

    For each row of the image, the rows of the gradient that read it are summed with their
    weights, ``SPAN`` columns at a time, and each pixel then collects from that sum the columns
    that read it. Program: a plane of an image, ``rows`` rows, ``BLOCK`` columns.
    """
    image = (tl.program_id(0) // channels).to(tl.int64)
    plane = tl.program_id(0) % channels
    top = tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, height)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    valid = columns < width
    scale = 1.0 if gain is None else tl.load(gain + plane)
    table = image if PER_IMAGE else image * 0
    gradient += image * stride_image + plane * stride_channel
    out += (image * channels + plane) * height * width
    row_starts += table * (gradient_height + 1)
    row_weights += table * gradient_height * K_ROWS
    row_counts += table * height
    column_starts += table * (gradient_width + 1)
    column_weights += table * gradient_width * K_COLUMNS
    column_counts += table * width

    first = tl.load(
        column_counts + columns - K_COLUMNS, mask=valid & (columns >= K_COLUMNS), other=0
    )
    end = tl.load(column_counts + columns, mask=valid, other=0)
    first = tl.minimum(first, end)  # of lanes beyond the image
    most = tl.max(end - first)
    low = tl.min(tl.where(end > first, first, gradient_width))
    high = tl.max(end)
    mirror = False if flip is None else tl.load(flip + image)
    seen_low = tl.where(mirror, gradient_width - high, low) // 16 * 16  # whole sectors
    seen_high = tl.where(mirror, gradient_width - low, high)

    for y in range(top, bottom):
        row_first = tl.load(row_counts + y - K_ROWS, mask=y >= K_ROWS, other=0)
        row_end = tl.load(row_counts + y)
        total = tl.zeros((BLOCK,), tl.float32)
        for chunk in range(seen_low, seen_high, SPAN):
            span = chunk + tl.arange(0, SPAN)
            present = span < gradient_width
            summed = tl.zeros((SPAN,), tl.float32)
            for reader in range(row_first, row_end):
                tap = y - tl.load(row_starts + reader)
                weight = tl.load(row_weights + reader * K_ROWS + tap)
                source = gradient + reader * stride_row
                values = tl.load(source + span * stride_column, mask=present, other=0.0)
                summed += weight * values.to(tl.float32)
            for nth in range(most):
                readers = first + nth
                reads = readers < end
                taps = columns - tl.load(column_starts + readers, mask=reads, other=0)
                weights = tl.load(
                    column_weights + readers * K_COLUMNS + taps, mask=reads, other=0.0
                )
                places = tl.where(mirror, gradient_width - 1 - readers, readers) - chunk
                here = reads & (places >= 0) & (places < SPAN)
                collected = tl.gather(summed, tl.where(here, places, 0), 0)
                total += tl.where(here, weights * collected, 0.0)
        value = (total * scale).to(out.dtype.element_ty)
        tl.store(out + y * width + columns, value, mask=valid)
