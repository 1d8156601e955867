"""The resize as Triton kernels; :mod:`lowres_vision.ops._resize.cuda` launches them.

:func:`tap_kernel` first writes down both axes as tables: the first pixel and the K weights of
every output pixel. Where the filters are narrow, :func:`resize_kernel` then walks down the output
rows; :func:`wide_kernel` serves all others. :func:`gradient_kernel` is the transpose: each program
owns some input pixels and gathers what reads them, so that no two programs write to the same place
and every run gives the same bits.

Tables of whole weights, in units of ``2**-22``, make the same kernels resize bytes to bytes as
Pillow does, columns first, each pass rounded.

Offsets within an image fit 32 bits (the launcher sees to it); offsets of images are 64 bits wide.
"""

from lowres_vision.ops._resize.triton_gradient import gradient_kernel
from lowres_vision.ops._resize.triton_tables import count_kernel, tap_kernel
from lowres_vision.ops._resize.triton_walk import resize_kernel
from lowres_vision.ops._resize.triton_wide import wide_kernel

__all__ = ["count_kernel", "gradient_kernel", "resize_kernel", "tap_kernel", "wide_kernel"]
