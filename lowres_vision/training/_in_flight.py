"""What each loader process last began to read, for the case that it dies of it."""

import os
from collections.abc import Collection, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, get_worker_info


class InFlight(Dataset[Any]):
    """Reads the samples of another data set, and notes each batch in memory shared by processes.

    Args:
        samples: The data set. Its ``rows``, where it has them, are the rows of its samples.
        workers: Loader processes.
        most: Samples in the largest batch.
    """

    def __init__(self, samples: Dataset[Any], *, workers: int, most: int) -> None:
        self.samples = samples
        self._shape = (workers, 2 + most)  # process number, number of samples, samples
        self._memory = RawArray("q", workers * (2 + most))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        """Return a sample."""
        return self.samples[key]

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        """Return the samples of a batch."""
        worker = get_worker_info()
        if worker is not None:
            indices = [key[0] if isinstance(key, tuple) else key for key in keys]
            note = self._notes()[worker.id]
            note[2 : 2 + len(indices)] = indices
            note[:2] = os.getpid(), len(indices)
        if hasattr(self.samples, "__getitems__"):
            return self.samples.__getitems__(keys)
        return [self.samples[key] for key in keys]

    def rows(self, processes: Collection[int] | None) -> list[int]:
        """Return the rows that these processes last began to read, sorted; None is all of them."""
        indices = [
            index
            for process, count, *noted in self._notes().tolist()
            if processes is None or process in processes
            for index in noted[:count]
        ]
        rows = getattr(self.samples, "rows", None)
        return sorted({int(i if rows is None else rows[i % len(rows)]) for i in indices})

    def _notes(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self._memory, dtype=np.int64).reshape(self._shape)
