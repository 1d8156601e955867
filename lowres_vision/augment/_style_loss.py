"""What style transfer minimises: content, style and total variation."""

import torch
from torch import Tensor


def gram_matrix(features: Tensor) -> Tensor:
    r"""Return the mean product of every two channels over the places of a feature map.

    .. math:: G_{ij} = \frac{1}{M} \sum_k F_{ik} F_{jk}

    with M = h w places. Gatys et al. sum; the mean lets style and content images differ in size.

    Args:
        features: ``(B, N, h, w)``.

    Returns:
        ``(B, N, N)``.

    Example:
        >>> gram_matrix(torch.ones(1, 2, 4, 4))
        tensor([[[1., 1.],
                 [1., 1.]]])
    """
    flat = features.flatten(2)  # (B, N, M)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    r"""Return the squared difference of feature maps in units of the target's square, per image.

    .. math:: \frac{\sum_{ik} (F_{ik} - P_{ik})^2}{\sum_{ik} P_{ik}^2}

    Equation 1 of Gatys et al., but for the unit: theirs grows with the square of a network's
    activations, and the style loss with their fourth power, so that no weight between the two
    carries over from one network, or image size, to another.

    Args:
        features: ``(B, N, h, w)``.
        target: Likewise, of the content image.

    Returns:
        ``(B,)``.
    """
    return _relative_square(features, target)


def style_loss(gram: Tensor, target: Tensor) -> Tensor:
    r"""Return the squared difference of Gram matrices in units of the target's square, per image.

    .. math:: E = \frac{\sum_{ij} (G_{ij} - A_{ij})^2}{\sum_{ij} A_{ij}^2}

    Equation 4 of Gatys et al., but for the unit, as in :func:`content_loss`.

    Args:
        gram: ``(B, N, N)``.
        target: ``(B, N, N)`` or ``(1, N, N)``, of the style image.

    Returns:
        ``(B,)``.
    """
    return _relative_square(gram, target)


def _relative_square(x: Tensor, target: Tensor) -> Tensor:
    unit = target.square().flatten(1).sum(1).clamp(min=1e-12)  # a map of a black image may be zero
    return (x - target).square().flatten(1).sum(1) / unit


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels, per image.

    Args:
        images: ``(B, C, H, W)``.

    Returns:
        ``(B,)``; the vertical and the horizontal mean added.
    """
    down = torch.diff(images, dim=2).square().mean((1, 2, 3)) if images.shape[2] > 1 else 0
    right = torch.diff(images, dim=3).square().mean((1, 2, 3)) if images.shape[3] > 1 else 0
    return images.new_zeros(len(images)) + down + right
