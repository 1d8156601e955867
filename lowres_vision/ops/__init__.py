"""Fused operations on batches of small images.

:func:`resize` crops, flips, resizes, normalises, casts and mixes a batch in one pass, and is
differentiable in a float input; :func:`random_resized_crop_boxes` draws the crops it takes, and
:class:`Mix` carries a CutMix or MixUp draw. :func:`resize_implementation` says what serves on
this machine, and :data:`output_pool` holds the memory of large results.
"""

from lowres_vision.ops._boxes import random_resized_crop_boxes
from lowres_vision.ops._resize.api import Mix, resize, resize_implementation
from lowres_vision.ops._resize.pool import output_pool

__all__ = ["Mix", "output_pool", "random_resized_crop_boxes", "resize", "resize_implementation"]
