"""A transform of single images, applied to each of a batch with a random stream of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowres_vision.augment._seeded import global_generators


class PerImage(nn.Module):
    """Applies a transform, such as those of torchvision v2, to each image of a batch.

    Transforms that draw from PyTorch's global generator give every image another result for
    another number of workers, order or restart. Here each image gets a seed drawn from
    ``generator``, under which the transform runs; the global state is left as it was.

    Args:
        transform: From one uint8 image ``(C, H, W)`` to one uint8 image, drawing from the CPU
            generators of PyTorch, ``random`` or NumPy, e.g. a ``Compose`` of torchvision v2.

    Example:
        >>> from torchvision.transforms import v2
        >>> augment = PerImage(v2.Compose([v2.RandomHorizontalFlip(), v2.RandAugment()]))
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> first = augment(images, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(first, augment(images, generator=torch.Generator().manual_seed(0)))
        True
    """

    def __init__(self, transform: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.transform = transform

    def forward(
        self, images: Tensor | list[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """Transform a batch, or a list of images of different sizes.

        Args:
            images: ``(B, C, H, W)``, or a list of ``(C, H, W)``.
            generator: Draws the images' seeds; default is PyTorch's own.

        Returns:
            As ``images``; a batch whose images come out in different sizes becomes a list.
        """
        device = None if generator is None else generator.device
        seeds = torch.randint(2**62, (len(images),), generator=generator, device=device).tolist()
        results = []
        for image, seed in zip(images, seeds, strict=True):
            with global_generators(seed):
                results.append(self.transform(image))
        if any(result.shape != results[0].shape for result in results):
            return results
        return torch.stack(results) if isinstance(images, Tensor) else results

    def extra_repr(self) -> str:
        """Name the transform."""
        return repr(self.transform)
