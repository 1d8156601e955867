"""Layers that bring images to the size a backbone reads: one fixed, two trained with it.

:class:`Resize` is the plain resize as a layer. :class:`LearnableResizer` adds to it what a small
convolutional network finds useful, :class:`MullerResizer` what a handful of weights on
Laplacian bands does.
"""

from lowres_vision.resizer._learnable import LearnableResizer
from lowres_vision.resizer._muller import MullerResizer
from lowres_vision.resizer._resize import Resize

__all__ = ["LearnableResizer", "MullerResizer", "Resize"]
