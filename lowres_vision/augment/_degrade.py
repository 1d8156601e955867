"""Low-resolution images out of high-resolution ones: blur, shrink, noise, JPEG."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowres_vision._batch import stack_images
from lowres_vision._checks import check_choice, check_range, check_size
from lowres_vision.augment._degradation import Degradation, degrade
from lowres_vision.augment._degrade_fit import DegradationFit, fit_degradation
from lowres_vision.augment._shrink import KERNELS, Kernel, shrunk_side

Range = float | Sequence[float]


class Degrade:
    r"""Degrade images at random: blur, shrink, noise and JPEG, in that order.

    .. math:: y = \mathrm{JPEG}_q\left((x * k_\sigma)\downarrow_s + n\right)

    the classical model of how a low-resolution image comes about. Each strength is a number or a
    range ``(low, high)`` that every image draws from evenly, the factor of shrinking in its
    logarithm. For :class:`~lowres_vision.data.MultiResolutionDataset`'s ``transform``, say, to
    train at low resolution on pictures that only exist at a high one, or for batches.
    :meth:`fit` takes every strength from the user's own pairs.

    ==================== =================================================================
    kernel               as in
    ==================== =================================================================
    ``area``             OpenCV's INTER_AREA: each pixel by the share of it that is covered
    ``box``              Pillow's BOX, which takes a pixel whole or not; the same as
                         ``area`` at whole factors
    ``bilinear``, \      Pillow, and torch with ``antialias=True``: the filter is widened
    ``bicubic``, \       with the factor
    ``lanczos``
    ``nearest``          Pillow's NEAREST
    ``aliased_bilinear`` OpenCV's INTER_LINEAR and torch's ``bilinear`` without antialias
    ``aliased_bicubic``  OpenCV's INTER_CUBIC, likewise
    ==================== =================================================================

    Args:
        blur: Standard deviation of the Gaussian blur, in pixels of the input, >= 0.
        shrink: Factor by which both sides shrink, >= 1.
        size: Side or ``(height, width)`` to shrink to, in place of ``shrink``.
        kernel: The resampling kernel, or several, one of which is drawn.
        noise: Standard deviation of Gaussian noise, independent by pixel and channel, in levels
            of 0..255.
        jpeg: JPEG quality in 1..100, as Pillow and libjpeg count it, with their usual halved
            chroma; None for no JPEG.

    Attributes:
        report: What :meth:`fit` found, else None.

    Raises:
        ValueError: If a range is empty or out of bounds, or both ``shrink`` and ``size`` are given.

    Example:
        >>> transform = Degrade(blur=(0.5, 2.0), shrink=4, noise=(0, 5), jpeg=(60, 95))
        >>> image = torch.zeros(3, 256, 256, dtype=torch.uint8)
        >>> transform(image, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 64, 64])

    References:
        Zhang et al., Designing a Practical Degradation Model for Deep Blind Image
        Super-Resolution, 2021, https://arxiv.org/abs/2103.14006; Wang et al., Real-ESRGAN, 2021,
        https://arxiv.org/abs/2107.10833. Both shuffle or repeat the steps to cover unknown
        cameras and use blurs that differ by direction; this is their first-order chain, with a
        round blur, for one known source.
    """

    def __init__(
        self,
        *,
        blur: Range = 0.0,
        shrink: Range = 1.0,
        size: int | tuple[int, int] | None = None,
        kernel: Kernel | Sequence[Kernel] = "area",
        noise: Range = 0.0,
        jpeg: int | Sequence[int] | None = None,
    ) -> None:
        self.blur = _range("blur", blur, 0.0)
        self.shrink = _range("shrink", shrink, 1.0)
        if size is not None and self.shrink != (1.0, 1.0):
            raise ValueError(f"give `shrink` or `size`, not both, got {shrink!r} and {size!r}")
        self.size = None if size is None else check_size("size", size)
        self.kernels: tuple[Kernel, ...] = (kernel,) if isinstance(kernel, str) else tuple(kernel)
        if not self.kernels:
            raise ValueError("`kernel` must name a kernel, got none")
        for name in self.kernels:
            check_choice("kernel", name, KERNELS)
        self.noise = _range("noise", noise, 0.0)
        self.jpeg: tuple[int, int] | None = None
        if jpeg is not None:
            lowest, highest = _range("jpeg", jpeg, 1, 100)
            self.jpeg = int(lowest), int(highest)
        self.report: DegradationFit | None = None

    @classmethod
    def fit(
        cls,
        low: Sequence[Tensor] | Tensor,
        high: Sequence[Tensor] | Tensor,
        *,
        max_pairs: int = 32,
    ) -> "Degrade":
        """Return the degradation that best explains low images from high ones.

        1. The JPEG quality is read off the low images' DCT coefficients, which lie on the lattice
           of its quantisation table.
        2. Kernel and blur are those of the least squared error, through JPEG of that quality;
           every kernel is tried with seven blurs, the best four with finer ones.
        3. The noise is what, added before JPEG, makes the error in flat areas as large as it is.
           There a kernel that is slightly off costs least, and does not pass for noise.

        What remains is reported as ``report.residual``, and every kernel's error beside it. A
        residual far above 0.3 levels, the rounding, and above ``noise`` says that this chain is
        not how the pairs were made.

        Args:
            low: uint8 images ``(C, h, w)`` as stored.
            high: The same pictures, uint8 ``(C, H, W)``, larger by one factor throughout.
            max_pairs: Use at most so many pairs, evenly spread over those given.

        Returns:
            A :class:`Degrade` with these strengths and a ``report``.

        Raises:
            TypeError: If an image is not uint8.
            ValueError: If numbers of images differ or are 0, a low image is the larger one, or
                the pairs' factors differ by more than 2 %.

        Example:
            >>> high = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
            >>> low = Degrade(shrink=4, kernel="bicubic")(high)
            >>> Degrade.fit(low, high).kernels
            ('bicubic',)
        """
        report = fit_degradation(low, high, max_pairs=max_pairs)
        fitted = cls(
            blur=report.blur,
            shrink=report.shrink,
            kernel=report.kernel,
            noise=report.noise,
            jpeg=report.quality,
        )
        fitted.report = report
        return fitted

    def __call__(
        self, images: Tensor | list[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """Degrade an image, or each image of a batch by a draw of its own.

        Args:
            images: uint8 ``(C, H, W)``, ``(B, C, H, W)``, or a list of ``(C, H, W)``.
            generator: Source of the draws, on the CPU; default is PyTorch's own.

        Returns:
            As ``images``; a list where the sizes drawn in a batch differ.
        """
        if isinstance(images, Tensor) and images.ndim == 3:
            return self._one(images, generator)
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(
                f"`images` must be (C, H, W) or (B, C, H, W), got shape {tuple(images.shape)}"
            )
        return stack_images([self._one(image, generator) for image in images])

    def _one(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        if image.dtype != torch.uint8:
            raise TypeError(f"`images` must be uint8, got {image.dtype}")
        return degrade(image, self.draw(tuple(image.shape[-2:]), generator=generator))

    def draw(
        self, size: tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Degradation:
        """Draw what to do with an image of ``size`` (height, width).

        Six numbers are always taken from ``generator``, whatever is switched on.
        """
        height, width = size
        u = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        least, most = self.shrink
        factor = least * (most / least) ** u[1]
        target = self.size or (shrunk_side(height, factor), shrunk_side(width, factor))
        if target[0] > height or target[1] > width:
            raise ValueError(f"`size` {target} must not exceed the image's, {(height, width)}")
        quality = None
        if self.jpeg is not None:
            quality = self.jpeg[0] + math.floor(u[5] * (self.jpeg[1] - self.jpeg[0] + 1))
        return Degradation(
            blur=_between(self.blur, u[0]),
            size=target,
            kernel=self.kernels[math.floor(u[2] * len(self.kernels))],
            noise=_between(self.noise, u[3]),
            seed=math.floor(u[4] * 2**53),
            quality=quality,
        )

    def __repr__(self) -> str:
        """Return the arguments."""
        return (
            f"Degrade(blur={self.blur}, shrink={self.shrink}, size={self.size}, "
            f"kernel={self.kernels}, noise={self.noise}, jpeg={self.jpeg})"
        )


def _range(
    name: str, value: Range, lowest: float, highest: float | None = None
) -> tuple[float, float]:
    bounds = value if isinstance(value, Sequence) else (value, value)
    if len(bounds) != 2:
        raise ValueError(f"`{name}` must be a number or (low, high), got {value!r}")
    low, high = bounds
    check_range(f"{name}[0]" if low != high else name, low, lowest, highest)
    check_range(f"{name}[1]", high, low, highest)
    return low, high


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
