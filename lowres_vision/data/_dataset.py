"""Rows of a manifest as samples: one resolution, the other, each in turn, or both as a pair."""

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lowres_vision._batch import Fetched, Pair, Sample, stack_images
from lowres_vision._checks import check_choice, check_range
from lowres_vision._random import stream
from lowres_vision.data._cache import open_cache
from lowres_vision.data._decode import decode_image
from lowres_vision.data._decode_files import decode_files
from lowres_vision.data._errors import DataError, Fault, limited
from lowres_vision.data._image_table import ImageTable, Pixels, hold
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._rows import row_numbers

Resolution = Literal["low", "high", "both", "pair"]


class MultiResolutionDataset(Dataset[Sample | Pair]):
    """Samples of a manifest's rows at one or two resolutions.

    ========== ======================== ===========================================
    resolution length                   item
    ========== ======================== ===========================================
    ``low``    rows                     ``Sample(image, target, row)``
    ``high``   rows                     ``Sample(image, target, row)``
    ``both``   2 x rows                 ``Sample``: first all low, then all high
    ``pair``   rows                     ``Pair(low, high, target, row)``
    ========== ======================== ===========================================

    Images are uint8 ``(3, H, W)`` at native size unless ``transform`` says otherwise; an
    unlabelled target is -1; ``row`` is the row of the manifest, whatever ``rows`` selects.

    **Randomness.** A transform with a parameter ``generator`` draws from what it is given there.
    Where the sampler yields ``(index, key, ...)`` in place of ``index``, that is a generator which
    depends on ``seed``, the keys, the row and its resolution alone, so that neither the number of
    workers nor a restart changes a sample. The keys are non-negative ints: the epoch, and the
    number of the draw where a sample can come twice, as
    :class:`BalancedSampler` yields with ``keyed=True``. For a plain shuffle in epoch ``epoch``::

        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
        loader = DataLoader(dataset, sampler=[(index, epoch) for index in order.tolist()])

    By a bare index no generator is given, and the transforms here then draw from PyTorch's own.

    **Cache.** With ``cache``, a folder, images are decoded once and kept there, and later read
    through a memory map that all processes share: 100,000 images of 64 x 64 pixels are 1.2 GB. A
    cache holds every row of the manifest, so that all folds share it, and is named by what the
    image files hold: a file that changes, a row that comes or goes, another order or another
    Pillow lead to a new one. Opening it looks at each file's length and times, and reads the files
    again only where these have changed. Caches no longer wanted are for the user to delete.
    Without ``transform``, a DataLoader with :func:`collate` or a mixing collator then takes whole
    batches from the map, and no sample by itself.

    Args:
        manifest: The checked rows.
        rows: Rows of the manifest to take, in this order; default all. The rows of one fold, say:
            a row's low and high image can then never part ways.
        resolution: Which images to give, as above.
        transform: Applied to each uint8 image, or in pair mode called as ``transform(low, high)``,
            e.g. :class:`RandomPairTransform`.
        cache: Folder of decoded images, made if it is not there; None decodes on every access.
        seed: Seed of the generators.

    Raises:
        DataError: If high resolution is asked of a manifest without it; with ``cache``, if files
            of ``rows`` cannot be decoded, each named; on access, if a file or its image in the
            cache is damaged. A damaged file is named, never replaced by its neighbour.
        IndexError: If ``rows`` has a row outside the manifest.
        TypeError: If ``rows`` are no row numbers: a mask, say.
        OSError: If the cache cannot be written, on a full disk for instance.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        resolution: Resolution = "low",
        transform: Callable[..., Any] | None = None,
        cache: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("resolution", resolution, ("low", "high", "both", "pair"))
        check_range("seed", seed, 0)
        if resolution != "low" and manifest.high is None:
            reason = f"has no high-resolution column, which resolution={resolution!r} needs"
            remedy = "name it with `high_resolution=`, or use resolution='low'"
            raise DataError(manifest.source, [Fault(reason, remedy)])
        self.manifest = manifest
        every = range(len(manifest))
        self.rows = row_numbers(every if rows is None else rows, len(manifest))
        self.resolution = resolution
        self.transform = transform
        self.seed = seed
        self.cache = None if cache is None else Path(cache)
        self._tables: dict[bool, ImageTable] = {}  # by whether it is high resolution
        if self.cache is not None:
            for high in self._resolutions:
                self._tables[high] = self._open_cache(self.cache, high=high)
            self._refuse_damage()

    @property
    def _resolutions(self) -> tuple[bool, ...]:
        """Of what resolutions images are read: False for low, True for high."""
        return {"low": (False,), "high": (True,)}.get(self.resolution, (False, True))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows) * (2 if self.resolution == "both" else 1)

    def __getitem__(self, index: int | tuple[int, ...]) -> Sample | Pair:
        """Return sample ``index``, or of ``(index, key, ...)``, its randomness keyed."""
        index, *keys = index if isinstance(index, tuple) else (index,)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        second, position = divmod(index, len(self.rows))
        row = int(self.rows[position])
        target = int(self.manifest.labels[row])
        options = {}
        if keys and self.transform is not None and takes_generator(self.transform):
            options["generator"] = stream(self.seed, *keys, row, second)
        if self.resolution == "pair":
            low, high = self._image(row, high=False), self._image(row, high=True)
            if self.transform is not None:
                low, high = self.transform(low, high, **options)
            return Pair(low, high, target, row)
        image = self._image(row, high=self.resolution == "high" or bool(second))
        if self.transform is not None:
            image = self.transform(image, **options)
        return Sample(image, target, row)

    def __getitems__(
        self, indices: Sequence[int | tuple[int, ...]]
    ) -> Fetched | list[Sample | Pair]:
        """Return the samples of a batch: from a cache, and without a transform, all at once."""
        by_sample = self.transform is not None or not self._tables
        # A subclass may have its own idea of a sample.
        if by_sample or type(self).__getitem__ is not MultiResolutionDataset.__getitem__:
            return [self[index] for index in indices]
        numbers = np.array([i[0] if isinstance(i, tuple) else i for i in indices], dtype=np.int64)
        outside = (numbers < 0) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"sample {numbers[outside][0]} of {len(self)}")
        second, position = np.divmod(numbers, max(1, len(self.rows)))
        rows = self.rows[position]
        images: tuple[Tensor | list[Tensor], ...]
        if self.resolution == "both":
            images = (self._read_both(rows, second),)
        else:
            images = tuple(self._tables[high].read(rows) for high in self._resolutions)
        return Fetched(images, torch.from_numpy(self.manifest.labels[rows]), torch.from_numpy(rows))

    def resident(self, device: str | torch.device = "cpu") -> "MultiResolutionDataset":
        """Return this data set with the images of its rows in memory, or on ``device``.

        The files are decoded on all cores, or taken from the cache where there is one.

        Raises:
            DataError: With every file that cannot be decoded.
        """
        held = copy.copy(self)
        rows = np.unique(self.rows)
        held._tables = {
            high: hold(self._decoded(rows, high=high), len(self.manifest), device)
            for high in self._resolutions
        }
        held._refuse_damage()
        return held

    def _decoded(self, rows: npt.NDArray[np.int64], *, high: bool) -> Iterator[tuple[int, Pixels]]:
        if high in self._tables:
            for row in rows.tolist():
                yield row, self._image(row, high=high).numpy()
            return
        paths = [self.manifest.root / self._paths(high)[row] for row in rows]
        what = f"reading images of {self.manifest.source.name}"
        for row, file in zip(rows.tolist(), decode_files(paths, what), strict=True):
            if file.pixels is not None:
                yield row, file.pixels

    def _read_both(
        self, rows: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
    ) -> Tensor | list[Tensor]:
        low, high = (iter(self._tables[bool(k)].read(rows[second == k])) for k in (0, 1))
        return stack_images([next(high if k else low) for k in second])

    def _image(self, row: int, *, high: bool) -> Tensor:
        if high in self._tables:
            return self._tables[high].read(np.array([row]))[0]
        return decode_image(self.manifest.root / self._paths(high)[row])

    def _paths(self, high: bool) -> tuple[str, ...]:
        paths = self.manifest.high if high else self.manifest.low
        assert paths is not None
        return paths

    def _open_cache(self, folder: Path, *, high: bool) -> ImageTable:
        files = [self.manifest.root / path for path in self._paths(high)]
        resolution = "high-resolution" if high else "low-resolution"
        return open_cache(folder, files, f"{resolution} images of {self.manifest.source.name}")

    def _refuse_damage(self) -> None:
        """Raise if there is no image of a row, and say of each what is wrong with its file."""
        faults = limited(
            self._fault(self._paths(high)[row], row)
            for high, table in self._tables.items()
            for row in table.missing(np.unique(self.rows)).tolist()
        )
        if faults:
            raise DataError(self.manifest.source, faults)

    def _fault(self, path: str, row: int) -> Fault:
        try:
            decode_image(self.manifest.root / path)
        except DataError as error:
            return replace(error.faults[0], row=row + 1, path=path)
        return Fault("changed while it was read", "run this again", row=row + 1, path=path)


def takes_generator(transform: Callable[..., Any]) -> bool:
    call = transform.forward if isinstance(transform, nn.Module) else transform
    try:
        return "generator" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # some builtins tell no signature
        return False
