"""Rows of a manifest as samples: one resolution, the other, each in turn, or both as a pair."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import Dataset

from lowres_vision._batch import Pair, Sample
from lowres_vision._checks import check_choice, check_range
from lowres_vision._random import stream
from lowres_vision.data._decode import decode_image
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._manifest import Manifest

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

    Args:
        manifest: The checked rows.
        rows: Rows of the manifest to take, in this order; default all. The rows of one fold, say:
            a row's low and high image can then never part ways.
        resolution: Which images to give, as above.
        transform: Applied to each uint8 image, or in pair mode called as ``transform(low, high)``,
            e.g. :class:`RandomPairTransform`.
        seed: Seed of the generators.

    Raises:
        DataError: If high resolution is asked of a manifest without it; on access, if a file
            cannot be decoded. A damaged file is named, never replaced by its neighbour.
        IndexError: If ``rows`` has a row outside the manifest.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        resolution: Resolution = "low",
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("resolution", resolution, ("low", "high", "both", "pair"))
        check_range("seed", seed, 0)
        if resolution != "low" and manifest.high is None:
            reason = f"has no high-resolution column, which resolution={resolution!r} needs"
            remedy = "name it with `high_resolution=`, or use resolution='low'"
            raise DataError(manifest.source, [Fault(reason, remedy)])
        self.manifest = manifest
        self.rows = np.arange(len(manifest)) if rows is None else np.asarray(rows, dtype=np.int64)
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < len(manifest):
            raise IndexError(
                f"`rows` must be in 0..{len(manifest) - 1}, "
                f"got {self.rows.min()}..{self.rows.max()}"
            )
        self.resolution = resolution
        self.transform = transform
        self.seed = seed

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
        if keys and self.transform is not None and _takes_generator(self.transform):
            options["generator"] = stream(self.seed, *keys, row, second)
        if self.resolution == "pair":
            low, high = self._decode(row, high=False), self._decode(row, high=True)
            if self.transform is not None:
                low, high = self.transform(low, high, **options)
            return Pair(low, high, target, row)
        image = self._decode(row, high=self.resolution == "high" or bool(second))
        if self.transform is not None:
            image = self.transform(image, **options)
        return Sample(image, target, row)

    def _decode(self, row: int, *, high: bool) -> Tensor:
        paths = self.manifest.high if high else self.manifest.low
        assert paths is not None
        return decode_image(self.manifest.root / paths[row])


def _takes_generator(transform: Callable[..., Any]) -> bool:
    call = transform.forward if isinstance(transform, nn.Module) else transform
    try:
        return "generator" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # some builtins tell no signature
        return False
