"""What CutMix and MixUp draw alike: shares and partners."""

import math

import torch
from torch import Tensor

from lowres_vision._checks import check_range


def check_alpha(alpha: float) -> None:
    """Raise ``ValueError`` unless ``alpha`` is a finite number >= 0."""
    check_range("alpha", alpha, 0.0)
    if alpha == math.inf:
        raise ValueError(f"`alpha` must be finite, got {alpha!r}")


def draw_shares(count: int, alpha: float, generator: torch.Generator | None) -> Tensor:
    """Draw ``(count,)`` float64 shares from Beta(alpha, alpha); ``alpha=0`` gives ones.

    A Beta variable is G / (G + G') of two Gamma(alpha) variables. ``torch.distributions`` takes
    no generator, and for small ``alpha`` both G underflow to 0, so this takes their logarithms:
    G = Gamma(alpha + 1) * U^(1 / alpha) with U uniform (Marsaglia and Tsang, 2000,
    https://doi.org/10.1145/358407.358414), and G / (G + G') = sigmoid(log G - log G').
    """
    device = device_of(generator)
    if alpha == 0:
        return torch.ones(count, dtype=torch.float64, device=device)
    shape = torch.full((2, count), alpha + 1, dtype=torch.float64, device=device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = 1 - torch.rand(shape.shape, generator=generator, dtype=shape.dtype, device=device)
    (log_gamma, other_gamma), (log_uniform, other_uniform) = gamma.log(), uniform.log()
    # One division of the difference: two could be inf - inf.
    return torch.sigmoid(log_gamma - other_gamma + (log_uniform - other_uniform) / alpha)


def draw_partners(batch: int, generator: torch.Generator | None) -> Tensor:
    """Draw a ``(batch,)`` permutation that is one cycle, so only a batch of one maps to itself."""
    check_range("batch", batch, 0)
    order = torch.randperm(batch, generator=generator, device=device_of(generator))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def device_of(generator: torch.Generator | None) -> torch.device:
    """Return the device that draws are made on: the generator's, the CPU without one."""
    return torch.device("cpu") if generator is None else generator.device
