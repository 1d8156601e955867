"""Super-resolution as a fixed step that training and test images both go through."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowres_vision._batch import stack_images
from lowres_vision._checks import check_range, check_size
from lowres_vision._files import write_whole
from lowres_vision.augment._sr_files import enlarge_files
from lowres_vision.augment._sr_weights import ForeignNetwork, load_network, save_srcnn
from lowres_vision.augment._srcnn import SRCNN, train_srcnn
from lowres_vision.data import DataError, Fault, Manifest
from lowres_vision.ops import resize


class SuperResolution(nn.Module):
    """Enlarge uint8 images by a super-resolution network.

    Train a small network on the user's own pairs with :meth:`fit`, or load a published one with
    :meth:`from_file`. :meth:`apply_to` sends all images of a manifest through it.

    Train and test images must go through the *same* step: a classifier trained on real
    high-resolution images, or on another network's, meets a new kind of image at test. So
    :meth:`apply_to` puts its images into the manifest's ``high`` column, in files whose folder is
    named after the network's weights: a test set without them has no high-resolution column and
    is refused, and :meth:`verify` refuses one that went through another network.

    Args:
        model: Network from RGB images ``(B, 3, H, W)`` in [0, 1] to
            ``(B, 3, scale * H, scale * W)``; always run in evaluation mode, without gradients.
        scale: Its factor, >= 1.
        size: Side or ``(height, width)`` to which its output is resized (bicubic, antialiased);
            None leaves it as it is.
        tile: Compute pieces of at most this side, in pixels of the input, to bound memory; None
            computes images whole.
        overlap: Pixels of the input that pieces see beyond their edges. Where this covers the
            network's receptive field, pieces leave no seams: the result is that of whole images
            up to float rounding. A network that attends over windows or the whole image has no
            such bound.
        name: For the record, e.g. the architecture.

    Example:
        >>> upscale = SuperResolution(SRCNN(4), scale=4, size=224)
        >>> upscale(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 3, 224, 224])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: int,
        size: int | tuple[int, int] | None = None,
        tile: int | None = None,
        overlap: int = 16,
        name: str = "",
    ) -> None:
        super().__init__()
        check_range("scale", scale, 1)
        check_range("overlap", overlap, 0)
        if tile is not None:
            check_range("tile", tile, 1)
        self.model = model.requires_grad_(False)
        self.scale = scale
        self.size = None if size is None else check_size("size", size)
        self.tile = tile
        self.overlap = overlap
        self.name = name or type(model).__name__
        self.eval()

    @classmethod
    def fit(
        cls,
        low: Sequence[Tensor] | Tensor,
        high: Sequence[Tensor] | Tensor,
        *,
        size: int | tuple[int, int] | None = None,
        tile: int | None = None,
        **training: Any,
    ) -> "SuperResolution":
        """Train an :class:`SRCNN` on pairs and return it as a step.

        Args:
            low: uint8 images ``(3, h, w)``.
            high: The same pictures, uint8, larger by one whole factor.
            size: See the class.
            tile: See the class.
            **training: Passed to :func:`train_srcnn`.

        Example:
            >>> high = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
            >>> SuperResolution.fit(high[..., ::2, ::2], high, steps=2, batch_size=2).scale
            2
        """
        network = train_srcnn(low, high, **training)
        return cls(network, scale=network.scale, size=size, tile=tile)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        size: int | tuple[int, int] | None = None,
        tile: int | None = None,
        overlap: int = 16,
    ) -> "SuperResolution":
        """Load a network from a weights file.

        A file that :meth:`save` wrote needs nothing else. Any other is recognised by spandrel,
        the extra ``sr``: ESRGAN, Swin2SR, HAT, SPAN, CRAFT and some forty more; the ones of its
        ``extra_arches``, whose licences forbid commercial use, are never loaded. The licence of
        the weights themselves is theirs.

        Args:
            path: ``.safetensors``, or a ``.pth``, ``.pt`` or ``.ckpt`` that holds tensors and
                no code.
            size: See the class.
            tile: See the class.
            overlap: See the class.

        Raises:
            FileNotFoundError: If ``path`` is not a file.
            ValueError: If the file holds code, no architecture fits it, or the network does not
                enlarge RGB images.
            ModuleNotFoundError: If it takes spandrel and that is not installed.
        """
        network = load_network(Path(path))
        name = network.name if isinstance(network, ForeignNetwork) else ""
        return cls(network, scale=network.scale, size=size, tile=tile, overlap=overlap, name=name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a fitted network to a safetensors file that appears whole or not at all.

        Raises:
            TypeError: If the network is not an :class:`SRCNN`; a foreign one has its file.
        """
        if not isinstance(self.model, SRCNN):
            raise TypeError(f"only an SRCNN is saved, got {self.name}; keep the file it came from")
        save_srcnn(self.model, Path(path))

    def train(self, mode: bool = True) -> "SuperResolution":
        """Stay in evaluation mode, whatever the Module around this one does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Enlarge uint8 images.

        Args:
            images: uint8 ``(3, H, W)``, ``(B, 3, H, W)``, or a list of ``(3, H, W)``.

        Returns:
            uint8, as ``images``, with sides times ``scale`` or of ``size``; a list where those
            differ.
        """
        if isinstance(images, list):
            return stack_images([self._enlarge(image[None])[0] for image in images])
        return self._enlarge(images[None])[0] if images.ndim == 3 else self._enlarge(images)

    def _enlarge(self, images: Tensor) -> Tensor:
        """Return uint8 ``(B, 3, height, width)``."""
        if images.dtype != torch.uint8:
            raise TypeError(f"`images` must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"`images` must be (3, H, W) or (B, 3, H, W), got shape {tuple(images.shape)}"
            )
        pixels = images.float() / 255
        output = self.model(pixels) if self.tile is None else self._enlarge_tiles(pixels)
        expected = tuple(side * self.scale for side in images.shape[-2:])
        if tuple(output.shape[-2:]) != expected:
            raise ValueError(
                f"`model` must enlarge {self.scale} times, to {expected}, got "
                f"{tuple(output.shape[-2:])}"
            )
        output = output.clamp(0, 1)
        if self.size is not None:
            output = resize(output, self.size, mode="bicubic").clamp(0, 1)
        return (output * 255 + 0.5).to(torch.uint8)

    def _enlarge_tiles(self, pixels: Tensor) -> Tensor:
        assert self.tile is not None
        batch, channels, height, width = pixels.shape
        scale = self.scale
        output = pixels.new_empty(batch, channels, height * scale, width * scale)
        for top, bottom, above, below in _pieces(height, self.tile, self.overlap):
            for left, right, before, after in _pieces(width, self.tile, self.overlap):
                piece = self.model(pixels[..., above:below, before:after])
                first, second = (top - above) * scale, (left - before) * scale
                output[..., top * scale : bottom * scale, left * scale : right * scale] = piece[
                    ...,
                    first : first + (bottom - top) * scale,
                    second : second + (right - left) * scale,
                ]
        return output

    def record(self) -> dict[str, Any]:
        """Return what determines the result, as JSON can hold it: for a run's own record."""
        hashed = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            value = value.detach().cpu().contiguous()
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            hashed.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return {
            "name": self.name,
            "weights_sha256": hashed.hexdigest(),
            "scale": self.scale,
            "size": self.size,
            "tile": self.tile,
            "overlap": self.overlap if self.tile is not None else None,
        }

    def apply_to(
        self,
        manifest: Manifest,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 8,
        callback: Callable[[int, int], None] | None = None,
    ) -> Manifest:
        """Enlarge every row's low image and return a manifest whose ``high`` are the results.

        Files lie in ``folder``, under a name of the network and its settings (``record.json``
        beside them says which), each named by its image's content: a second call, another CSV
        with the same pictures or an interrupted run computes only what is missing. Files appear
        whole or not at all, and two processes may fill one folder.

        Args:
            manifest: Rows of training or of test images alike.
            folder: Where the PNG files go; made if missing.
            batch_size: Images of one size that go through the network together.
            callback: Called as ``callback(done, missing)`` after each batch.

        Raises:
            DataError: If images cannot be decoded; it names all of them.
        """
        check_range("batch_size", batch_size, 1)
        directory = self._directory(folder)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "record.json", json.dumps(self.record(), indent=2).encode())
        parameter = next(self.parameters(), None)

        def enlarge(images: Tensor) -> Tensor:
            return self._enlarge(images if parameter is None else images.to(parameter.device))

        return enlarge_files(manifest, directory, enlarge, batch_size=batch_size, callback=callback)

    def verify(self, manifest: Manifest) -> None:
        """Raise unless every row's high image is one that :meth:`apply_to` of this network made.

        Raises:
            DataError: Naming the first rows without one.
        """
        expected = self._directory("").name
        paths = manifest.high or (None,) * len(manifest)
        faults = [
            Fault(
                f"did not go through {self.name}" if path else "has no high-resolution image",
                "send the rows through the same network with `apply_to`",
                row=row + 1,
                path=path,
            )
            for row, path in enumerate(paths)
            if path is None or Path(path).parent.name != expected
        ]
        if faults:
            raise DataError(manifest.source, faults)

    def _directory(self, folder: str | os.PathLike[str]) -> Path:
        digest = hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()
        return Path(folder) / f"{self.name.lower()}-{digest[:16]}"


def _pieces(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield begin and end of each piece, and begin and end of what it sees."""
    for begin in range(0, length, tile):
        end = min(begin + tile, length)
        yield begin, end, max(begin - overlap, 0), min(end + overlap, length)
