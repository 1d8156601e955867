"""The learned resizer of Talebi and Milanfar.

Learning to Resize Images for Computer Vision Tasks, ICCV 2021, https://arxiv.org/abs/2103.09950.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowres_vision._checks import check_range, check_size
from lowres_vision.attention import CBAM
from lowres_vision.ops._resize.reference import exporting
from lowres_vision.resizer._recompute import SLOPE, can_refine, refine, scratch_buffers


class LearnableResizer(nn.Module):
    r"""Resize bilinearly and add what a small network, trained with the backbone, finds useful.

    With ``B`` the bilinear resize to ``size`` (half-pixel centres, no antialias), convolutions
    named by their side and ``BN`` batch normalisation::

        u = BN(lrelu(conv1(lrelu(conv7(x)))))       at the input's size; activation before BN
        s = B(u)
        h = s, then for each block: h = h + BN(conv3(lrelu(BN(conv3(h)))))
        y = conv7(BN(conv3(h)) + s) + B(x)

    Any input size goes to ``size``, up or down, at any aspect ratio. The output keeps the input's
    range only through ``B(x)``; nothing clamps it. Batch statistics are those of the images at
    hand, so in training a batch of one normalises each image by itself.

    Up-scaling costs time and memory at the output's size: seven activations of
    ``channels * height * width`` are kept for the backward pass, 23 MB an image at 224 x 224.
    ``checkpoint=True`` keeps those at the input's size alone, 0.2 MB an image from 32 x 32, and
    computes the others again in the backward pass. Outputs and gradients are the same but for
    rounding, and the running statistics move once. On a CPU whose cores are free, and without
    ``attention``, a step takes about as long as without: it goes a few images at a time, which
    saves as much in fresh memory as it costs in arithmetic. Changed or hooked layers go the
    ordinary way; under ``torch.func`` it has no effect.

    On the CPU the layers work in ``torch.channels_last`` memory format, whatever that of ``x``
    and of the weights; the output has the format of ``x``.

    Args:
        size: Output height and width, > 0; an int stands for a square.
        in_channels: Channels of the images, and of the output, > 0.
        channels: Channels of the network, > 0.
        blocks: Number of residual blocks, >= 0.
        attention: "cbam" ends each block's branch with a :class:`lowres_vision.attention.CBAM` of
            reduction 4, before the shortcut is added. None: no attention.
        zero_init: Start the last convolution at zero. The untrained output is then exactly
            ``B(x)``, which is what a pretrained backbone expects.
        checkpoint: Trade time for memory as above.

    Example:
        >>> resizer = LearnableResizer(224)
        >>> resizer(torch.rand(2, 3, 32, 48)).shape, sum(p.numel() for p in resizer.parameters())
        (torch.Size([2, 3, 224, 224]), 12035)

    References:
        Talebi and Milanfar, 2021, https://arxiv.org/abs/2103.09950. Layers and defaults are those
        of the Keras example "Learning to Resize in Computer Vision", but the blocks are chained,
        which that example forgets, and BatchNorm's epsilon is PyTorch's 1e-5, not 1e-3.
        ``attention``, ``zero_init`` and ``checkpoint`` are additions. CBAM: Woo et al., 2018,
        https://arxiv.org/abs/1807.06521.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        in_channels: int = 3,
        channels: int = 16,
        blocks: int = 1,
        attention: Literal["cbam"] | None = None,
        zero_init: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.size = check_size("size", size)
        check_range("in_channels", in_channels, 1)
        check_range("channels", channels, 1)
        check_range("blocks", blocks, 0)
        if attention not in (None, "cbam"):
            raise ValueError(f"`attention` must be None or 'cbam', got {attention!r}")
        self.in_channels, self.channels = in_channels, channels
        self.attention = attention
        self.checkpoint = checkpoint
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 7, padding=3),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.BatchNorm2d(channels),
        )
        self.blocks = nn.Sequential(*(_Block(channels, attention) for _ in range(blocks)))
        self.fuse = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.project = _Conv7x7(channels, in_channels)
        if zero_init:
            for parameter in self.project.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized images; see :class:`LearnableResizer`.

        Args:
            x: ``(B, C, H, W)`` float, in the range the backbone is to read.

        Returns:
            ``(B, C, *size)``.

        Raises:
            TypeError: If ``x`` is not float.
            ValueError: If ``x`` is not ``(B, in_channels, H, W)``.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"`x` must be float, got {x.dtype}; scale it first, for example with Resize"
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"`x` must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        return self._upsample(x) + self._detail(x)

    def _detail(self, x: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        in_func = not compiling and torch._C._are_functorch_transforms_active()
        if x.device.type == "cpu" and not in_func:  # vmap knows no channels_last
            x = x.contiguous(memory_format=torch.channels_last)
        u = self.stem(x)  # (B, channels, H, W)
        if not self.checkpoint or not torch.is_grad_enabled() or exporting():
            return self._refine(u)
        if compiling:  # the compiler itself lets statistics move once
            return checkpoint(self._refine, u, use_reentrant=False, preserve_rng_state=False)
        if in_func:  # its transforms let nobody change what is saved
            return self._refine(u)
        if can_refine(self, u):
            return refine(self, u)
        return checkpoint(
            self._refine,
            u,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), scratch_buffers(self)),
        )

    def _refine(self, u: Tensor) -> Tensor:
        s = self._upsample(u)  # (B, channels, *size)
        # In place: the backward pass of a BatchNorm reads its input, not its output.
        h = self.fuse(self.blocks(s)).add_(s)
        detail: Tensor = self.project(h)  # (B, in_channels, *size)
        return detail

    def _upsample(self, x: Tensor) -> Tensor:
        # CUDA's autocast would turn the largest activation into float32; the CPU's does not.
        with torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext():
            return F.interpolate(x, self.size, mode="bilinear", align_corners=False)


class _Block(nn.Module):
    """``h + [CBAM](BN(conv3(lrelu(BN(conv3(h))))))`` on ``(B, channels, H, W)``."""

    def __init__(self, channels: int, attention: str | None) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        if attention == "cbam":
            # The usual 16 leaves 16 channels one hidden ReLU, dead in 31 of 200 initialisations.
            layers.append(CBAM(channels, reduction=4))
        self.branch = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        branch: Tensor = self.branch(h)
        return branch.add_(h)


class _Conv7x7(nn.Conv2d):
    """The convolution to the image; on the CPU, four outputs are computed at a time.

    A CPU convolution fills its vectors with output channels, of which an image has three. Shifted
    to four places in an 8 x 8 frame and moved by two pixels, the kernel gives twelve, one set for
    each pixel of a 2 x 2 block: forward and backward in 45 ms instead of 94, 8 images of 16
    channels at 224 x 224 on one core.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        if x.device.type != "cpu":
            return super().forward(x)
        weight, bias, block = self.kernel(self.weight, self.bias, x.shape[2:])
        y = F.conv2d(x, weight, bias, stride=block, padding=3)
        return F.pixel_shuffle(y, block) if block > 1 else y

    @staticmethod
    def kernel(weight: Tensor, bias: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor, int]:
        """Return the weights to convolve with, and the side of the blocks that they make."""
        if size[0] % 2 or size[1] % 2:
            return weight, bias, 1
        frames = [F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
        # (4 * out_channels, in_channels, 8, 8), (4 * out_channels,)
        return torch.stack(frames, dim=1).flatten(0, 1), bias.repeat_interleave(4), 2
