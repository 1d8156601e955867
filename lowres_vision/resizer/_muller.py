"""MULLER, a resizer with two trained weights per Laplacian band.

Tu, Milanfar and Talebi, MULLER: Multilayer Laplacian Resizer for Vision, ICCV 2023,
https://arxiv.org/abs/2304.02859.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision import ops
from lowres_vision._checks import check_choice, check_range, check_size


class MullerResizer(nn.Module):
    r"""Resize, and add back detail from a few frequency bands, each with a trained gain.

    With ``R`` the plain resize, ``G`` a Gaussian blur and ``x_0 = x``::

        x_k = G(x_{k-1})
        y   = R(x) + sum_k tanh(alpha_k * R(x_k - x_{k-1}) + beta_k)

    A negative ``alpha_k`` sharpens its band, a positive one softens it. Both start at zero, where
    the output is the plain resize and the gradient is not zero. The blur runs at the input's
    size and pads with zeros, so where zero is not the images' mean the border gets a response of
    its own: normalise first.

    Args:
        size: Output height and width, > 0; an int stands for a square.
        layers: Number of bands, > 0; there are twice as many parameters.
        kernel_size: Side of the Gaussian, odd.
        stddev: Standard deviation of the Gaussian in pixels, > 0.
        mode: Of the plain resize, "bilinear" or "bicubic".
        antialias: Whether the plain resize widens its filter when shrinking.
        average_pool: Where the input is at least twice ``size`` in both directions, average whole
            blocks of pixels before the plain resize.
        weights: Initial ``(alpha_k, beta_k)`` of each band. None: zeros. The authors publish
            ``((1.892, -0.014), (-11.295, 0.003))`` for ResNet-50 and images in [0, 1].

    Example:
        >>> resizer = MullerResizer(224)
        >>> resizer(torch.rand(2, 3, 32, 32)).shape, sum(p.numel() for p in resizer.parameters())
        (torch.Size([2, 3, 224, 224]), 4)

    References:
        Tu et al., 2023, https://arxiv.org/abs/2304.02859. Definition and defaults are those of
        the authors' code (google-research/muller), from which we differ in two ways: the bands
        of half-precision images are taken in float32, where small differences survive, and
        bicubic is that of :func:`lowres_vision.ops.resize`. We have not compared them with the
        paper's equations.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        layers: int = 2,
        kernel_size: int = 5,
        stddev: float = 1.0,
        mode: Literal["bilinear", "bicubic"] = "bilinear",
        antialias: bool = False,
        average_pool: bool = False,
        weights: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.size = check_size("size", size)
        check_range("layers", layers, 1)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and > 0, got {kernel_size!r}")
        check_range("stddev", stddev, 0, open_low=True)
        check_choice("mode", mode, ("bilinear", "bicubic"))
        initial = torch.tensor([(0, 0)] * layers if weights is None else weights).float()
        if initial.shape != (layers, 2):
            raise ValueError(f"`weights` must be {layers} pairs (alpha, beta), got {weights!r}")
        self.kernel_size, self.stddev = kernel_size, stddev
        self.mode: Literal["bilinear", "bicubic"] = mode
        self.antialias = antialias
        self.average_pool = average_pool
        self.alpha = nn.Parameter(initial[:, 0].clone())
        self.beta = nn.Parameter(initial[:, 1].clone())
        offset = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
        gaussian = (-0.5 * (offset / stddev) ** 2).exp()
        self.gaussian: Tensor
        self.register_buffer("gaussian", (gaussian / gaussian.sum()).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized ``(B, C, *size)`` in the dtype of ``x``; see :class:`MullerResizer`.

        Args:
            x: ``(B, C, H, W)`` float, of any C, H and W.

        Raises:
            TypeError: If ``x`` is not float.
            ValueError: If ``x`` is not ``(B, C, H, W)``.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"`x` must be float, got {x.dtype}; scale it first, for example with Resize"
            )
        if x.ndim != 4:
            raise ValueError(f"`x` must be (B, C, H, W), got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            image = x.to(torch.promote_types(x.dtype, torch.float32))
            result = self._resize(image)  # (B, C, *size)
            for alpha, beta in zip(self.alpha.unbind(), self.beta.unbind(), strict=True):
                blurred = self._blur(image)
                result = result + torch.tanh(alpha * self._resize(blurred - image) + beta)
                image = blurred
        return result.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments as ``repr`` shows them."""
        return (
            f"size={self.size}, layers={len(self.alpha)}, mode={self.mode!r}, "
            f"antialias={self.antialias}, average_pool={self.average_pool}"
        )

    def _blur(self, image: Tensor) -> Tensor:
        C, taps = image.shape[1], len(self.gaussian)
        row = self.gaussian.to(image.dtype).expand(C, 1, 1, taps)  # (C, 1, 1, taps)
        image = F.conv2d(image, row, padding=(0, taps // 2), groups=C)
        return F.conv2d(image, row.mT, padding=(taps // 2, 0), groups=C)

    def _resize(self, image: Tensor) -> Tensor:
        H, W = image.shape[-2:]
        block = H // self.size[0], W // self.size[1]
        if self.average_pool and min(block) > 1:
            # What the last block lacks is missing at both ends, one more pixel at the far one.
            near = (-H % block[0]) // 2, (-W % block[1]) // 2
            image = F.avg_pool2d(
                image, block, padding=near, ceil_mode=True, count_include_pad=False
            )  # (B, C, ceil(H / block), ceil(W / block))
        return ops.resize(image, self.size, mode=self.mode, antialias=self.antialias)
