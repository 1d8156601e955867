"""Numerics that heads and losses share: the precision they compute in, and unit vectors."""

import torch
from torch import Tensor

SHORTEST = 1e-6  # the norm floor of the cosine loss's own implementation: sqrt(1e-12)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` as float32, or as float64 if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def unit_vectors(x: Tensor) -> Tensor:
    """Divide the vectors along the last dimension by their length.

    A vector shorter than 1e-6 has no usable direction and is returned as it is, so the gradient
    there is that of the identity. ``F.normalize`` multiplies it by 1e12, and a head that starts
    from zero weights makes every vector the zero vector.

    Args:
        x: ``(..., D)`` of float32 or float64; half types lose the small components of a square.

    Returns:
        Tensor of ``x``'s shape and dtype.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > SHORTEST, length, 1.0)
