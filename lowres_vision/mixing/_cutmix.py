"""CutMix: a box of every image comes from another image of the batch."""

import torch
from torch import Tensor

from lowres_vision._checks import check_size
from lowres_vision.mixing._draws import check_alpha, device_of, draw_partners, draw_shares
from lowres_vision.mixing._images import check_images, mix_images
from lowres_vision.mixing._targets import mix_targets
from lowres_vision.ops import Mix


def sample_cutmix(
    batch: int,
    size: tuple[int, int],
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> Mix:
    """Draw the partners and boxes of a CutMix.

    With lam ~ Beta(alpha, alpha), the box has sides ``2 * (floor(side * sqrt(1 - lam)) // 2)``
    around a centre uniform over the pixels, and is clipped to the image. The label share is what
    became of it: ``lam = 1 - area / (height * width)``, the float32 nearest to that ratio.

    The partners are a random permutation that is a single cycle: each image gives to one other
    and takes from one other. Only a batch of one is its own partner and stays as it is.

    Args:
        batch: Number of images, B.
        size: Height and width of the images, in pixels.
        alpha: Of the Beta distribution, >= 0; 0 gives lam 1 and empty boxes.
        per_sample: Draw a lam and a box for each image instead of one for the batch.
        generator: Source of randomness; the draw is made on its device. None: torch's default
            CPU generator.

    Returns:
        ``Mix(partner, lam, box)``: ``(B,)`` int64, ``(B,)`` float32, ``(B, 4)`` int64 top, left,
        height, width.

    Raises:
        TypeError: If ``size`` is not two ints.
        ValueError: If an argument is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> mix = sample_cutmix(4, (32, 48), generator=generator)
        >>> top, left, height, width = mix.box[0].tolist()
        >>> bool((mix.lam == 1 - height * width / (32 * 48)).all())
        True

    References:
        Yun et al., CutMix, 2019, https://arxiv.org/abs/1905.04899; the box is that of the
        authors' code, https://github.com/clovaai/CutMix-PyTorch. Its partners are any
        permutation, which leaves one image of a batch unmixed on average, half of them in a
        batch of two; ours are a cycle, so ``p`` of a collator means what it says.
    """
    height, width = check_size("size", size)
    check_alpha(alpha)
    partner = draw_partners(batch, generator)
    count = batch if per_sample else 1
    lam = draw_shares(count, alpha, generator)
    device = device_of(generator)
    centre_y = torch.randint(height, (count,), generator=generator, device=device)
    centre_x = torch.randint(width, (count,), generator=generator, device=device)
    box = _boxes(lam, centre_y, centre_x, (height, width))  # (count, 4)
    pixels = height * width
    share = (pixels - box[:, 2] * box[:, 3]).double() / pixels
    return Mix(partner, share.float().expand(batch).contiguous(), box.expand(batch, 4).contiguous())


def cutmix(
    images: Tensor, targets: Tensor, mix: Mix, *, num_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Paste the box of every image's partner into the image, and mix the targets.

    Pixels inside ``mix.box`` come from ``images[mix.partner]``; the targets become
    ``lam * targets + (1 - lam) * targets[partner]``. Nothing is written into the arguments.

    Args:
        images: ``(B, C, H, W)`` of any dtype.
        targets: ``(B,)`` class indices, or ``(B, K)`` float, for instance probabilities.
        mix: From :func:`sample_cutmix` for this size, on the images' device. The part of a box
            that lies outside the image is ignored.
        num_classes: K; needed with class indices.

    Returns:
        ``(B, C, H, W)`` images of the same dtype, and ``(B, K)`` targets, float32 or, where they
        came so, float64.

    Raises:
        TypeError: If ``targets`` is neither of ints nor of floats.
        ValueError: If shapes, devices or ``num_classes`` do not fit, or ``mix`` has no box.

    Example:
        >>> images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
        >>> box = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]])
        >>> mix = Mix(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), box)
        >>> mixed, targets = cutmix(images, torch.tensor([0, 1]), mix, num_classes=2)
        >>> mixed[0, 0]
        tensor([[0., 1.],
                [0., 0.]])
        >>> targets[0]
        tensor([0.7500, 0.2500])

    References:
        Yun et al., CutMix, 2019, https://arxiv.org/abs/1905.04899, equation 1.
    """
    if mix.box is None:
        raise ValueError("`mix` must have a box, got None: a MixUp draw is applied by `mixup`")
    check_images(images, targets)
    if mix.box.shape != (len(images), 4):
        raise ValueError(
            f"`mix.box` must have shape ({len(images)}, 4), got {tuple(mix.box.shape)}"
        )
    mixed = mix_targets(targets, mix, num_classes=num_classes)
    return mix_images(images, mix), mixed


def scale_mix(mix: Mix, size: tuple[int, int], new_size: tuple[int, int]) -> Mix:
    """Carry a draw over to the same images at another resolution.

    An edge e of a box becomes ``e * new_side / side``, rounded to the nearest pixel, halves up.
    The box of a low-resolution image thus falls on whole pixels of a high-resolution one whose
    sides are multiples, and covers exactly the same share of it; elsewhere its edges are off by
    half a pixel at most. ``lam`` stays what it was in both cases, so that one label serves both.

    Args:
        mix: A draw for images of ``size``. A MixUp draw has no box and is returned as it is.
        size: Height and width that the box is in.
        new_size: Height and width to carry it to.

    Returns:
        The same partners and label shares, with the box in pixels of ``new_size``.

    Raises:
        TypeError: If a size is not two ints.
        ValueError: If a side is not positive.

    Example:
        >>> box = torch.tensor([[1, 2, 3, 4]])
        >>> mix = Mix(torch.tensor([0]), torch.tensor([0.8125]), box)
        >>> scale_mix(mix, (8, 8), (32, 16)).box
        tensor([[ 4,  4, 12,  8]])
    """
    height, width = check_size("size", size)
    new_height, new_width = check_size("new_size", new_size)
    if mix.box is None:
        return mix
    top, left, box_height, box_width = mix.box.unbind(1)  # (B,) each
    new_top = _rounded_ratio(top * new_height, height)
    new_left = _rounded_ratio(left * new_width, width)
    bottom = _rounded_ratio((top + box_height) * new_height, height)
    right = _rounded_ratio((left + box_width) * new_width, width)
    box = torch.stack([new_top, new_left, bottom - new_top, right - new_left], dim=1)  # (B, 4)
    return mix._replace(box=box)


def _boxes(lam: Tensor, centre_y: Tensor, centre_x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, 4) boxes of side ratio ``sqrt(1 - lam)`` about the centres, clipped to size."""
    starts, extents = [], []
    for centre, side in zip((centre_y, centre_x), size, strict=True):
        half = (side * torch.sqrt(1 - lam)).long() // 2
        start = (centre - half).clamp(min=0)
        starts.append(start)
        extents.append((centre + half).clamp(max=side) - start)
    return torch.stack(starts + extents, dim=1)


def _rounded_ratio(numerator: Tensor, denominator: int) -> Tensor:
    return torch.div(2 * numerator + denominator, 2 * denominator, rounding_mode="floor")
