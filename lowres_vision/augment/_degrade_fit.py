"""The degradation that explains given low images from given high ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lowres_vision._checks import check_range
from lowres_vision.augment._degradation import Degradation, blur_and_shrink
from lowres_vision.augment._jpeg import jpeg_quality, jpeg_round_trip
from lowres_vision.augment._shrink import KERNELS, Kernel

_BLURS = (0.0, 0.2, 0.35, 0.5, 0.75, 1.1, 1.6)  # in pixels of the low image
_REFINED = 4  # kernels that get a finer search
_LEAST_BLUR = 0.3  # in pixels of the high image
_GOLDEN = 0.6180339887498949
_MOST_NOISE = 64.0
_FLAT = 0.2  # the share of pixels with the least contrast around them


@dataclass(frozen=True)
class DegradationFit:
    """What :meth:`Degrade.fit` found.

    Attributes:
        blur: Standard deviation of the Gaussian, in pixels of the high image.
        shrink: Factor between the two sizes.
        kernel: Resampling kernel.
        noise: Standard deviation of the noise before JPEG, in levels of 0..255.
        quality: JPEG quality of the low images, or None.
        residual: Root mean square, in levels, of low image minus degraded high image without
            noise: what noise and a wrong model have to explain.
        kernels: Each kernel with its best blur and its root mean square error, best first. At
            whole factors ``area`` and ``box`` are the same.
        pairs: Number of pairs used.
    """

    blur: float
    shrink: float
    kernel: Kernel
    noise: float
    quality: int | None
    residual: float
    kernels: tuple[tuple[Kernel, float, float], ...]
    pairs: int


def fit_degradation(
    low: Sequence[Tensor] | Tensor, high: Sequence[Tensor] | Tensor, *, max_pairs: int
) -> DegradationFit:
    """See :meth:`Degrade.fit`."""
    check_range("max_pairs", max_pairs, 1)
    if len(low) != len(high) or not len(low):
        raise ValueError(
            f"`low` and `high` must be as many, at least one, got {len(low)} and {len(high)}"
        )
    count = min(len(low), max_pairs)
    chosen = [number * len(low) // count for number in range(count)]
    lows, highs = [low[i] for i in chosen], [high[i] for i in chosen]
    shrink = _common_factor(lows, highs)

    quality = jpeg_quality(lows)
    groups = _group(lows, highs)

    def error(kernel: Kernel, blur: float) -> float:
        return _squared_error(groups, Degradation(blur, kernel=kernel, quality=quality))

    tried = []
    for kernel in KERNELS:
        errors = [error(kernel, blur * shrink) for blur in _BLURS]
        tried.append((min(errors), errors.index(min(errors)), kernel))
    tried.sort()
    found = [_refine(error, kernel, best, shrink) for _, best, kernel in tried[:_REFINED]]
    found += [
        (squared, _BLURS[best] * shrink, kernel) for squared, best, kernel in tried[_REFINED:]
    ]
    found.sort()
    squared, blur, kernel = found[0]
    return DegradationFit(
        blur=blur,
        shrink=shrink,
        kernel=kernel,
        noise=_noise(groups, Degradation(blur, kernel=kernel, quality=quality)),
        quality=quality,
        residual=squared**0.5,
        kernels=tuple((kernel, blur, squared**0.5) for squared, blur, kernel in found),
        pairs=count,
    )


def _common_factor(lows: Sequence[Tensor], highs: Sequence[Tensor]) -> float:
    """Return high side / low side, the same for both sides and all pairs."""
    factors = []
    for low, high in zip(lows, highs, strict=True):
        for name, image in (("low", low), ("high", high)):
            if image.dtype != torch.uint8:
                raise TypeError(f"`{name}` must be uint8, got {image.dtype}")
        if low.shape[0] != high.shape[0]:
            raise ValueError(
                f"`low` and `high` must agree in channels, got {low.shape[0]} and {high.shape[0]}"
            )
        factors += [high.shape[i] / low.shape[i] for i in (1, 2)]
    smallest, largest = min(factors), max(factors)
    if smallest < 1:
        raise ValueError(f"`low` must not be larger than `high`, got a factor of {smallest:.3f}")
    if largest > 1.02 * smallest:
        raise ValueError(
            f"`high` must be larger than `low` by one factor throughout, got {smallest:.3f} to "
            f"{largest:.3f}; fit each size by itself"
        )
    mean = sum(factors) / len(factors)
    return float(round(mean)) if smallest <= round(mean) <= largest else mean


def _group(lows: Sequence[Tensor], highs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Stack pairs of equal shapes to float batches of low and high images."""
    groups: dict[tuple[object, ...], list[tuple[Tensor, Tensor]]] = {}
    for low, high in zip(lows, highs, strict=True):
        groups.setdefault((low.shape, high.shape), []).append((low.cpu(), high.cpu()))
    stacked = []
    for pairs in groups.values():
        first, second = zip(*pairs, strict=True)
        stacked.append((torch.stack(first).float(), torch.stack(second).float()))
    return stacked


def _squared_error(groups: list[tuple[Tensor, Tensor]], degradation: Degradation) -> float:
    """Return the mean squared error, in levels, of the degraded high images."""
    total, pixels = 0.0, 0
    for low, high in groups:
        got = _shrunk(low, high, degradation)
        if degradation.quality is not None:
            got = _stored(got, degradation.quality)
        total += float(F.mse_loss(got, low, reduction="sum"))
        pixels += low.numel()
    return total / pixels


def _shrunk(low: Tensor, high: Tensor, degradation: Degradation) -> Tensor:
    height, width = low.shape[-2:]
    return blur_and_shrink(high, replace(degradation, size=(height, width)))


def _stored(levels: Tensor, quality: int | None) -> Tensor:
    """Return levels ``(B, C, h, w)`` as they come back from a file."""
    rounded = (levels + 0.5).floor().clamp(0, 255).to(torch.uint8)
    if quality is not None:
        rounded = torch.stack([jpeg_round_trip(image, quality) for image in rounded])
    return rounded.float()


def _refine(
    error: Callable[[Kernel, float], float], kernel: Kernel, best: int, shrink: float
) -> tuple[float, float, Kernel]:
    """Search between the neighbours of the best blur by golden sections; return the best seen."""
    left = _BLURS[max(best - 1, 0)] * shrink
    right = _BLURS[min(best + 1, len(_BLURS) - 1)] * shrink
    seen = {_BLURS[best] * shrink: error(kernel, _BLURS[best] * shrink)}
    while right - left > 0.02 * shrink:
        inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        for blur in (inner, outer):
            if blur not in seen:
                seen[blur] = error(kernel, blur)
        left, right = (left, outer) if seen[inner] < seen[outer] else (inner, right)
    if 0.0 in seen:  # a narrower Gaussian touches no neighbouring pixel
        seen = {blur: value for blur, value in seen.items() if not 0 < blur < _LEAST_BLUR}
    blur = min(seen, key=seen.__getitem__)
    return seen[blur], blur, kernel


def _noise(groups: list[tuple[Tensor, Tensor]], degradation: Degradation) -> float:
    """Return the noise that, through rounding and JPEG, gives the error found in flat areas."""
    exact = [_shrunk(low, high, degradation) for low, high in groups]
    contrasts = [_contrast(levels) for levels in exact]
    ordered = torch.cat([contrast.flatten() for contrast in contrasts]).sort().values
    limit = ordered[int(_FLAT * (len(ordered) - 1))]
    if limit.isinf():
        return 0.0
    flat = [(contrast <= limit).expand_as(e) for contrast, e in zip(contrasts, exact, strict=True)]

    def error(images: Iterable[Tensor]) -> float:
        parts = zip(images, exact, flat, strict=True)
        return float(torch.cat([((image - e) ** 2)[f] for image, e, f in parts]).mean())

    def simulated(noise: float) -> float:
        generator = torch.Generator().manual_seed(0)
        noisy = (e + noise * torch.randn(e.shape, generator=generator) for e in exact)
        return error(_stored(levels, degradation.quality) for levels in noisy)

    found = error(low for low, _ in groups)
    if found <= simulated(0.0):
        return 0.0
    least, most = 0.0, _MOST_NOISE
    while most - least > 0.02:
        middle = (least + most) / 2
        least, most = (middle, most) if simulated(middle) < found else (least, middle)
    return (least + most) / 2


def _contrast(levels: Tensor) -> Tensor:
    """Return max - min over 3 x 3 pixels, ``(B, 1, h, w)``; inf near black and white.

    Noise is cut off where a level would leave 0..255, so that nothing can be read there.
    """
    grey = levels.mean(1, keepdim=True)
    contrast = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
    inside = (levels.amin(1, keepdim=True) > 16) & (levels.amax(1, keepdim=True) < 239)
    return torch.where(inside, contrast, torch.inf)
