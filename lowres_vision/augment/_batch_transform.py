"""Crop, flip, resize, normalise and mix a whole batch in one pass."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lowres_vision._checks import check_range, check_size
from lowres_vision.ops import Mix, random_resized_crop_boxes, resize


class BatchTransform(nn.Module):
    """From uint8 batches of any size to what a backbone reads.

    In training mode each image gets a random crop and flip of its own; in evaluation mode it is
    resized whole. Either way :func:`lowres_vision.ops.resize` does all of it in one pass.

    Args:
        size: Output side or ``(height, width)``.
        mean: Per-channel mean in [0, 1] units, as the backbone's weights expect.
        std: Per-channel standard deviation, likewise.
        scale: Range of the crop's share of the image area; (1, 1) with ``ratio`` (1, 1) takes
            square images whole.
        ratio: Range of the crop's aspect ratio.
        flip: Probability of a horizontal flip.
        via: Side or ``(height, width)`` that images are first resized to, as when a data set was
            prepared at another resolution; None for no detour.
        mode: ``"bilinear"`` or ``"bicubic"``.
        dtype: Output dtype.

    Example:
        >>> transform = BatchTransform(224, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        >>> transform(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 3, 224, 224])
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        via: int | tuple[int, int] | None = None,
        mode: Literal["bilinear", "bicubic"] = "bilinear",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_range("flip", flip, 0.0, 1.0)
        self.size = check_size("size", size)
        self.via = None if via is None else check_size("via", via)
        self.mean, self.std = tuple(mean), tuple(std)
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.mode, self.dtype = mode, dtype

    def forward(
        self,
        images: Tensor | list[Tensor],
        *,
        mix: Mix | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Transform a batch.

        Args:
            images: ``(B, C, H, W)``, or a list of B ``(C, H, W)`` of different sizes.
            mix: A drawn CutMix or MixUp, applied in the same pass.
            generator: Draws crops and flips; default is PyTorch's own.

        Returns:
            ``(B, C, height, width)`` in channels_last order. A training step of MobileNetV2 at
            224 px was 9 times faster on it than on contiguous images (CPU, float32).
        """
        if self.via is not None:
            images = resize(images, self.via, mode=self.mode)
        boxes = flip = None
        if self.training:
            boxes = self._draw_boxes(images, generator)
            flip = torch.rand(len(images), generator=generator) < self.flip
            boxes, flip = boxes.to(images[0].device), flip.to(images[0].device)
        return resize(
            images,
            self.size,
            boxes=boxes,
            flip=flip,
            mean=self.mean,
            std=self.std,
            mode=self.mode,
            dtype=self.dtype,
            channels_last=True,
            mix=mix,
        )

    def _draw_boxes(
        self, images: Tensor | list[Tensor], generator: torch.Generator | None
    ) -> Tensor:
        sizes = [tuple(image.shape[-2:]) for image in images]
        return torch.cat(
            [
                random_resized_crop_boxes(
                    count, size, scale=self.scale, ratio=self.ratio, generator=generator
                )
                for size, count in _runs(sizes)
            ]
        )


def _runs(sizes: list[tuple[int, ...]]) -> list[tuple[tuple[int, int], int]]:
    """Return ``(size, count)`` of each run of equal sizes."""
    runs: list[tuple[tuple[int, int], int]] = []
    for height, width in sizes:
        if runs and runs[-1][0] == (height, width):
            runs[-1] = ((height, width), runs[-1][1] + 1)
        else:
            runs.append(((height, width), 1))
    return runs
