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
    partner_ends,
    partner_order,
    lam,
    paste,
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

    Of a mixed gradient, an image gets its own part and then that of each image it was mixed into:
    ``partner_order`` lists the batch by partner, and those of image i end at
    ``partner_ends[i + 1]``, where those of the next begin.
    """
    image = (tl.program_id(0) // channels).to(tl.int64)
    plane = tl.program_id(0) % channels
    top = tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, height)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    valid = columns < width
    scale = 1.0 if gain is None else tl.load(gain + plane)
    table = image if PER_IMAGE else image * 0
    gradient += plane * stride_channel
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
            summed = _summed(
                tl.zeros((SPAN,), tl.float32), gradient, row_starts, row_weights, image, y,
                row_first, row_end, span, gradient_width, stride_image, stride_row, stride_column,
                K_ROWS, lam, paste, True,
            )  # fmt: skip
            if partner_ends is not None:
                for place in range(
                    tl.load(partner_ends + image), tl.load(partner_ends + image + 1)
                ):
                    mixed = tl.load(partner_order + place)
                    summed = _summed(
                        summed, gradient, row_starts, row_weights, mixed, y, row_first, row_end,
                        span, gradient_width, stride_image, stride_row, stride_column, K_ROWS, lam,
                        paste, False,
                    )  # fmt: skip
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


@triton.jit
def _summed(
    total,
    gradient,
    row_starts,
    row_weights,
    image,
    y,
    row_first,
    row_end,
    columns,
    gradient_width,
    stride_image,
    stride_row,
    stride_column,
    K_ROWS,
    lam,
    paste,
    OWN: tl.constexpr,
):
    """Add the rows of an image's gradient that read row ``y``, each with the share it has there.

    ``OWN``: they read the image itself, else its partner.
    """
    source = gradient + image * stride_image + columns * stride_column
    present = columns < gradient_width
    share = 1.0
    if paste is not None:
        top = tl.load(paste + image * 4)
        left = tl.load(paste + image * 4 + 1)
        bottom = top + tl.load(paste + image * 4 + 2)
        inside = (columns >= left) & (columns < left + tl.load(paste + image * 4 + 3))
        if not OWN:
            row_first = tl.maximum(row_first, top).to(tl.int32)
            row_end = tl.minimum(row_end, bottom).to(tl.int32)
    elif lam is not None:
        share = tl.load(lam + image) if OWN else 1 - tl.load(lam + image)
    for reader in range(row_first, row_end):
        tap = y - tl.load(row_starts + reader)
        weight = tl.load(row_weights + reader * K_ROWS + tap)
        values = tl.load(source + reader * stride_row, mask=present, other=0.0).to(tl.float32)
        if paste is not None:  # not in the mask, so that loads stay whole vectors
            if OWN:
                values = tl.where(inside & (reader >= top) & (reader < bottom), 0.0, values)
            else:
                values = tl.where(inside, values, 0.0)
        total += weight * share * values
    return total
