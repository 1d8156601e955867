"""torchvision's augmentations with randomness by key, and the painters' list of them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowres_vision._checks import check_range, check_size


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Within, the CPU generators of PyTorch, ``random`` and NumPy start from ``seed``."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Seeded:
    """Let a transform that draws from the global generators draw from a generator of its own.

    torchvision's transforms draw from PyTorch's default generator, timm's from ``random`` and
    NumPy, so that an image depends on all that was drawn before it in its process. Here the three
    are set from ``generator`` around the call and put back afterwards, and a sample depends on
    (seed, epoch, row) alone where the sampler yields keys: see
    :class:`~lowres_vision.data.MultiResolutionDataset`. RandAugment, say::

        transform = Seeded(v2.RandAugment(num_ops=2, magnitude=9))
        dataset = MultiResolutionDataset(manifest, transform=transform)

    Args:
        transform: Of one argument or more, e.g. a uint8 image ``(C, H, W)``. It must draw from the
            CPU generators of PyTorch, ``random`` or NumPy.

    Example:
        >>> from torchvision.transforms import v2
        >>> transform = Seeded(v2.RandAugment())
        >>> image = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)
        >>> first, again = (
        ...     transform(image, generator=torch.Generator().manual_seed(0)) for _ in range(2)
        ... )
        >>> torch.equal(first, again)
        True
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform

    def __call__(self, *images: Any, generator: torch.Generator | None = None) -> Any:
        """Call the transform, its draws a function of one number from ``generator``.

        Without a generator the number comes from PyTorch's default one.
        """
        seed = int(torch.randint(2**32, (), generator=generator))
        with global_generators(seed):
            return self.transform(*images)

    def __repr__(self) -> str:
        """Return the constructor call."""
        return f"Seeded({self.transform!r})"


class QuarterCrop:
    """Cut a random box of half the height and half the width, a quarter of the picture.

    For data whose test images are quarters of works that are whole in training. Give held-out
    rows quarters as well, for a score on whole works says little about such a test: by
    keys ``(index, 0)`` from the sampler each keeps its own quarter.

    Example:
        >>> QuarterCrop()(torch.zeros(3, 101, 64, dtype=torch.uint8)).shape
        torch.Size([3, 50, 32])
    """

    def __call__(self, image: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return a ``(C, H // 2, W // 2)`` part of ``(C, H, W)``, both sides at least 2."""
        if image.ndim != 3 or min(image.shape[1:]) < 2:
            raise ValueError(
                f"`image` must be (C, H, W) with both sides >= 2, got {tuple(image.shape)}"
            )
        height, width = (side // 2 for side in image.shape[1:])
        u = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        top = int(u[0] * (image.shape[1] - height + 1))
        left = int(u[1] * (image.shape[2] - width + 1))
        return image[:, top : top + height, left : left + width].contiguous()


def painters_augmentation(size: int | tuple[int, int] = 260, *, p: float = 0.5) -> Seeded:
    """Return the augmentations of a painter classifier, on uint8 images, keyed.

    Resize to twice ``size`` - random crop of ``size``, a quarter of the picture - transpose - flips
    - shift, scale and rotate - hue, saturation and value - brightness and contrast - channel
    shuffle - an erased box, each with probability ``p``. The list is the source's, of whose
    strengths nothing is known; these are the usual ones of such lists.

    Args:
        size: Side or ``(height, width)`` of the result.
        p: Probability of each step after the crop.

    Example:
        >>> image = torch.zeros(3, 64, 48, dtype=torch.uint8)
        >>> painters_augmentation(32)(image).shape
        torch.Size([3, 32, 32])
    """
    from torchvision.transforms import v2  # which imports torch's compiler, for 2 s

    height, width = check_size("size", size)
    check_range("p", p, 0.0, 1.0)
    return Seeded(
        v2.Compose(
            [
                v2.Resize((2 * height, 2 * width), antialias=True),
                v2.RandomCrop((height, width)),
                v2.RandomApply([v2.Lambda(_transpose), v2.Resize((height, width))], p=p),
                v2.RandomHorizontalFlip(p),
                v2.RandomVerticalFlip(p),
                v2.RandomApply(
                    [v2.RandomAffine(degrees=45, translate=(0.0625, 0.0625), scale=(0.9, 1.1))], p=p
                ),
                v2.RandomApply([v2.ColorJitter(brightness=0.1, saturation=0.2, hue=0.05)], p=p),
                v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], p=p),
                v2.RandomApply([v2.RandomChannelPermutation()], p=p),
                v2.RandomErasing(p=p, scale=(0.02, 0.1)),
            ]
        )
    )


def _transpose(image: Tensor) -> Tensor:
    return image.transpose(-1, -2)
