"""What the two forward kernels share: who writes what, normalising, rounding and mixing."""

# Triton's language has its own types, and tuples that grow by concatenation alone.
# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl


@triton.jit
def place(
    groups, height, width, rows, PLANES: tl.constexpr, CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return this program's image, first plane, rows from and to, lanes, and all lanes of a row."""
    image = (tl.program_id(0) // groups).to(tl.int64)
    plane = tl.program_id(0) % groups * PLANES
    top = tl.program_id(1) * rows
    bottom = tl.minimum(top + rows, height)
    lanes = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    return image, plane, top, bottom, lanes, tl.multiple_of(width * CHANNELS, ALIGNED)


@triton.jit
def affine(gain, bias, plane, lanes, PLANES: tl.constexpr, CHANNELS: tl.constexpr):
    """Return gain and bias of each of the planes, of all lanes where these are of many channels."""
    gains = ()
    rests = ()
    for p in tl.static_range(PLANES):
        channel = lanes % CHANNELS if CHANNELS > 1 else plane + p
        gains = gains + (1.0 if gain is None else tl.load(gain + channel),)
        rests = rests + (0.0 if bias is None else tl.load(bias + channel),)
    return gains, rests


@triton.jit
def rounded(total):
    """Return a sum of bytes by whole weights as a byte, as Pillow rounds it; others as they are."""
    if total.dtype == tl.int32:
        total = tl.minimum(tl.maximum((total + (1 << 21)) >> 22, 0), 255)
    return total


@triton.jit
def partner_of(partner, lam, paste, image, batch, columns):
    """Return an image's partner and how to mix with it, for :func:`pasted` and :func:`mixed`.

    A partner outside the batch gives NaN: the image itself is then read in its place.
    """
    other = tl.load(partner + image)
    known = (other >= 0) & (other < batch)
    other = tl.where(known, other, image)
    if paste is None:
        mix = (tl.where(known, tl.load(lam + image), float("nan")),)
    else:
        top = tl.load(paste + image * 4)
        left = tl.load(paste + image * 4 + 1)
        bottom = top + tl.load(paste + image * 4 + 2)
        right = left + tl.load(paste + image * 4 + 3)
        mix = (known, top, bottom, (columns >= left) & (columns < right))
    return other, mix


@triton.jit
def pasted(mix, y):
    """Return whether CutMix pastes into row ``y``."""
    return (y >= mix[1]) & (y < mix[2])


@triton.jit
def mixed(value, other, mix, paste, y):
    """Return the mix of an image's and its partner's values in row ``y``."""
    if paste is None:
        value = mix[0] * value + (1 - mix[0]) * other
    else:
        value = tl.where(pasted(mix, y) & mix[3], other, value)
        value = tl.where(mix[0], value, float("nan"))
    return value
