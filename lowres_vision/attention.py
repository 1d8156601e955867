"""CBAM, the convolutional block attention module, and its two gates.

Woo et al., 2018, https://arxiv.org/abs/1807.06521. Where paper and authors' code differ, the code
is followed, so that their weights can be loaded: the spatial gate reads [max, mean] in this order
and normalises its map. The channel gate applies one MLP to both descriptors, not one to each.
"""

import torch
from torch import Tensor, nn

from lowres_vision._checks import check_range

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]


class CBAM(nn.Module):
    r"""Gate channels, then positions: ``y = x' * M_s(x')`` with ``x' = x * M_c(x)``.

    In a residual block it belongs on the branch, after its last normalisation and before the
    shortcut is added. With fresh weights both gates are near 1/2, which scales the branch to
    about a quarter: worth knowing before inserting it into a pretrained network. The authors'
    network also starts with ``spatial.norm.weight`` at zero; here it starts at one, so that the
    spatial gate learns from the first step.

    Args:
        channels: Channels of the input, > 0.
        reduction: Shrinks the channel MLP's hidden layer to ``channels // reduction`` units, but
            never below one.
        kernel_size: Side of the spatial convolution, odd.

    Example:
        >>> CBAM(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
        >>> sum(p.numel() for p in CBAM(32).parameters())
        262
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction=reduction)
        self.spatial = SpatialAttention(kernel_size=kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated ``(B, C, H, W)``; see :class:`CBAM`."""
        gated: Tensor = self.spatial(self.channel(x))
        return gated


class ChannelAttention(nn.Module):
    r"""Scale each channel: ``y = x * sigmoid(MLP(mean(x)) + MLP(max(x)))``.

    Mean and maximum run over the positions; the one MLP is Linear, ReLU, Linear, with biases.
    Where several positions hold the maximum they share its gradient equally.

    Args:
        channels: Channels of the input, > 0.
        reduction: The hidden layer has ``max(1, channels // reduction)`` ReLU units: with none,
            the gate would ignore its input without a word. One or two may start dead, with the
            same effect, so prefer a smaller reduction where there are few channels.

    Example:
        >>> ChannelAttention(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        check_range("channels", channels, 1)
        check_range("reduction", reduction, 1)
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated ``(B, C, H, W)``; see :class:`ChannelAttention`."""
        logits: Tensor = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))  # (B, C)
        return x * logits.sigmoid()[:, :, None, None]


class SpatialAttention(nn.Module):
    r"""Scale each position: ``y = x * sigmoid(BN(conv([max_c(x), mean_c(x)])))``.

    Maximum and mean run over the channels, in this order; the convolution has no bias and the
    normalisation a momentum of 0.01. Where several channels hold the maximum they share its
    gradient equally.

    In training the map is normalised over batch and positions together, so a batch of one
    1 x 1 map has no variance to speak of and is refused.

    Args:
        kernel_size: Side of the convolution, odd.

    Example:
        >>> SpatialAttention()(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, *, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and > 0, got {kernel_size!r}")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated ``(B, C, H, W)``; see :class:`SpatialAttention`.

        Raises:
            ValueError: In training, for a batch of one 1 x 1 map.
        """
        # SyncBatchNorm, which may have replaced the norm, counts the values of all processes.
        alone = x.shape[0] * x.shape[2] * x.shape[3] == 1
        if alone and self.training and isinstance(self.norm, nn.BatchNorm2d):
            raise ValueError(
                "`x` must hold more than one position to be normalised in training, "
                f"got shape {tuple(x.shape)}; use a larger batch or drop the last incomplete one"
            )
        descriptors = x.amax(1, keepdim=True), x.mean(1, keepdim=True)
        logits: Tensor = self.norm(self.conv(torch.cat(descriptors, dim=1)))  # (B, 1, H, W)
        return x * logits.sigmoid()
