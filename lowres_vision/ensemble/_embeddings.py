"""Embeddings of several models as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowres_vision._numerics import at_least_float32, unit_vectors


def concat_embeddings(embeddings: Sequence[Tensor]) -> Tensor:
    """Scale each model's embedding to length 1 and set them side by side.

    Without the scaling, the model with the longest vectors would decide alone. The cosine of two
    results is the mean of the models' cosines, as each result has length ``sqrt(M)``. A vector
    shorter than 1e-6 has no direction and stays as it is.

    Args:
        embeddings: M tensors ``(N, D_m)`` on one device.

    Returns:
        ``(N, sum of D_m)``, float32 or better.

    Raises:
        ValueError: If there is none, or shapes or devices do not fit.

    Example:
        >>> concat_embeddings([torch.tensor([[30.0, 40.0]]), torch.tensor([[0.5]])])
        tensor([[0.6000, 0.8000, 1.0000]])
    """
    shapes = [tuple(embedding.shape) for embedding in embeddings]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"`embeddings` must be tensors (N, D) of the same N, got {shapes}")
    devices = {str(embedding.device) for embedding in embeddings}
    if len(devices) != 1:
        raise ValueError(f"`embeddings` must be on one device, got {sorted(devices)}")
    return torch.cat([unit_vectors(at_least_float32(each)) for each in embeddings], dim=1)
