"""Rows of a manifest as samples: one resolution, the other, each in turn, or both as a pair."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from lowres_vision._batch import Pair, Sample
from lowres_vision._checks import check_choice
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

    Args:
        manifest: The checked rows.
        rows: Rows of the manifest to take, in this order; default all. The rows of one fold, say:
            a row's low and high image can then never part ways.
        resolution: Which images to give, as above.
        transform: Applied to each uint8 image, or in pair mode called as ``transform(low, high)``.

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
        transform: Callable[..., Tensor | tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        check_choice("resolution", resolution, ("low", "high", "both", "pair"))
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

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows) * (2 if self.resolution == "both" else 1)

    def __getitem__(self, index: int) -> Sample | Pair:
        """Return sample ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        second, position = divmod(index, len(self.rows))
        row = int(self.rows[position])
        target = int(self.manifest.labels[row])
        if self.resolution == "pair":
            low, high = self._decode(row, high=False), self._decode(row, high=True)
            if self.transform is not None:
                low, high = self.transform(low, high)
            return Pair(low, high, target, row)
        image = self._decode(row, high=self.resolution == "high" or bool(second))
        if self.transform is not None:
            image = self.transform(image)  # type: ignore[assignment]
        return Sample(image, target, row)

    def _decode(self, row: int, *, high: bool) -> Tensor:
        paths = self.manifest.high if high else self.manifest.low
        assert paths is not None
        return decode_image(self.manifest.root / paths[row])
