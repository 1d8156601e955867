"""MixUp: every image is averaged with another one of the batch."""

import torch
from torch import Tensor

from lowres_vision.mixing._draws import check_alpha, draw_partners, draw_shares
from lowres_vision.mixing._images import check_images, mix_images
from lowres_vision.mixing._targets import mix_targets
from lowres_vision.ops import Mix


def sample_mixup(
    batch: int,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> Mix:
    """Draw the partners and shares of a MixUp: ``lam ~ Beta(alpha, alpha)``.

    The partners are drawn as by :func:`lowres_vision.mixing.sample_cutmix`: a permutation in
    which only a batch of one is its own partner.

    Args:
        batch: Number of images, B.
        alpha: Of the Beta distribution, >= 0; 0 gives lam 1, which mixes nothing. Small values
            keep most images nearly pure; papers use 0.1 to 1.
        per_sample: Draw a lam for each image instead of one for the batch.
        generator: Source of randomness; the draw is made on its device. None: torch's default
            CPU generator.

    Returns:
        ``Mix(partner, lam, None)``: ``(B,)`` int64 and ``(B,)`` float32, the share of the image
        itself.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> mix = sample_mixup(3, per_sample=True, generator=torch.Generator().manual_seed(0))
        >>> mix.partner.shape, mix.lam.shape, mix.box
        (torch.Size([3]), torch.Size([3]), None)

    References:
        Zhang et al., mixup: Beyond empirical risk minimization, 2018,
        https://arxiv.org/abs/1710.09412.
    """
    check_alpha(alpha)
    partner = draw_partners(batch, generator)
    lam = draw_shares(batch if per_sample else 1, alpha, generator)
    return Mix(partner, lam.float().expand(batch).contiguous(), None)


def mixup(
    images: Tensor, targets: Tensor, mix: Mix, *, num_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Average every image with its partner, and its target with the partner's.

    ``lam * images + (1 - lam) * images[partner]``, and the targets likewise. Nothing is written
    into the arguments.

    Args:
        images: ``(B, C, H, W)`` uint8 or float. uint8 is averaged in float32 and rounded to the
            nearest, halves to even; half precision is averaged in float32, too.
        targets: ``(B,)`` class indices, or ``(B, K)`` float, for instance probabilities.
        mix: From :func:`sample_mixup`, on the images' device.
        num_classes: K; needed with class indices.

    Returns:
        ``(B, C, H, W)`` images of the same dtype, and ``(B, K)`` targets, float32 or, where they
        came so, float64.

    Raises:
        TypeError: If ``images`` is neither uint8 nor float, or ``targets`` neither of ints nor
            of floats.
        ValueError: If shapes, devices or ``num_classes`` do not fit, or ``mix`` has a box.

    Example:
        >>> images = torch.tensor([0, 100], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> mix = Mix(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), None)
        >>> mixed, targets = mixup(images, torch.tensor([0, 1]), mix, num_classes=2)
        >>> mixed.flatten()
        tensor([25, 75], dtype=torch.uint8)
        >>> targets[0]
        tensor([0.7500, 0.2500])

    References:
        Zhang et al., mixup: Beyond empirical risk minimization, 2018,
        https://arxiv.org/abs/1710.09412, section 2.
    """
    if mix.box is not None:
        raise ValueError("`mix` must have no box: a CutMix draw is applied by `cutmix`")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"`images` must be uint8 or float, got {images.dtype}")
    check_images(images, targets)
    mixed = mix_targets(targets, mix, num_classes=num_classes)
    return mix_images(images, mix), mixed
