"""Decoded images end to end in one run of bytes, a batch of them read in one go."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]


class ImageTable:
    """uint8 images ``(3, H, W)`` of one or of several sizes, read by number.

    Args:
        pixels: All images end to end, in memory that is only read, or on a device.
        starts: ``(N,)`` int64, the first byte of each image.
        sizes: ``(N, 2)`` height and width of each; 0 for an image that is not there.
    """

    def __init__(
        self,
        pixels: Pixels | Tensor,
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int32],
    ) -> None:
        self.starts, self.sizes = starts, sizes
        shapes = np.unique(sizes[sizes[:, 0] > 0], axis=0)
        self._pixels = pixels
        self._length = 0  # bytes of an image where all are of one size
        if len(shapes) == 1:
            height, width = (int(side) for side in shapes[0])
            self._length = 3 * height * width
            self._pixels = pixels.reshape(-1, 3, height, width)

    def read(self, numbers: npt.NDArray[np.int64]) -> Tensor | list[Tensor]:
        """Return copies of images: ``(B, 3, H, W)``, or a list where their sizes differ."""
        starts = self.starts[numbers]
        if self._length:
            starts //= self._length
            if isinstance(self._pixels, Tensor):
                index = torch.from_numpy(starts).to(self._pixels.device, non_blocking=True)
                return self._pixels.index_select(0, index)
            # On one thread: torch's gather would leave its thread team spinning, which takes 1 ms
            # from the threads of the resize that follows (B=64 of 64 px, 1.25 ms, two cores).
            return torch.from_numpy(self._pixels.take(starts, axis=0))
        shapes = [(3, height, width) for height, width in self.sizes[numbers].tolist()]
        lengths = [channels * height * width for channels, height, width in shapes]
        spans = [slice(a, a + b) for a, b in zip(starts.tolist(), lengths, strict=True)]
        if isinstance(self._pixels, Tensor):
            flat = torch.cat([self._pixels[span] for span in spans])
        else:
            flat = torch.from_numpy(np.concatenate([self._pixels[span] for span in spans]))
        if len(set(shapes)) == 1:
            return flat.view(-1, *shapes[0])
        parts = torch.split(flat, lengths)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def missing(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of ``numbers`` that are not there."""
        absent: npt.NDArray[np.int64] = numbers[self.sizes[numbers, 0] == 0]
        return absent


def hold(
    images: Iterable[tuple[int, Pixels]], count: int, device: str | torch.device = "cpu"
) -> ImageTable:
    """Return a table in memory, or on ``device``, of numbered images ``(3, H, W)``.

    Numbers are below ``count``; those that do not come are not there.
    """
    starts = np.zeros(count, dtype=np.int64)
    sizes = np.zeros((count, 2), dtype=np.int32)
    buffer = bytearray()  # grows in place, where a list of images would be held twice
    for number, pixels in images:
        starts[number] = len(buffer)
        sizes[number] = pixels.shape[1:]
        buffer += np.ascontiguousarray(pixels).data
    held = np.frombuffer(buffer, dtype=np.uint8)
    if torch.device(device).type == "cpu":
        return ImageTable(held, starts, sizes)
    on_device = (
        torch.from_numpy(held).to(device) if len(held) else torch.empty(0, dtype=torch.uint8)
    )
    return ImageTable(on_device, starts, sizes)
