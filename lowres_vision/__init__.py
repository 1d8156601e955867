"""PyTorch components for classifying low-resolution images.

Import each part from its own module, for example
``from lowres_vision.resizer import LearnableResizer``. Importing the package itself loads
nothing but this file: no torch, no optional package, no network.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
