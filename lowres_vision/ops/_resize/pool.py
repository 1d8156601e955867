"""Memory for large results, kept and used again.

A fresh block of 38 MB costs about ten times what writing it costs: the system hands it out page
by page, and malloc returns it at once. The pool maps blocks in huge pages and takes them back
when the last tensor, view or saved-for-backward reference to them is gone.
"""

import mmap
import os
import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from torch import Tensor

_PAGE = 2 << 20  # a huge page of x86-64 and most ARM systems
_SMALLEST = 4 << 20  # below, malloc itself keeps what it has


class OutputPool:
    """Blocks of memory that large results live in.

    ``limit`` is how many bytes of blocks that nobody uses are kept; the ones idle longest go
    first. Blocks in use do not count. 0 turns the pool off: results then are plain
    ``torch.empty``. A forked process starts with an empty pool.

    Args:
        limit: Bytes.

    Example:
        >>> from lowres_vision.ops import output_pool
        >>> output_pool.clear()
        >>> output_pool.idle
        0
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self._blocks: deque[mmap.mmap] = deque()  # oldest first
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.clear)

    @property
    def idle(self) -> int:
        """Bytes of blocks that wait to be used again."""
        return sum(len(block) for block in tuple(self._blocks))

    def clear(self) -> None:
        """Return every idle block to the system."""
        self._blocks.clear()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool) -> Tensor:
        """Return an uninitialised CPU tensor ``(B, C, H, W)``, in a block where it is large."""
        size = prod(shape) * dtype.itemsize
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if self.limit <= 0 or size < _SMALLEST:
            return torch.empty(shape, dtype=dtype, memory_format=layout)
        flat = torch.from_numpy(self._take(size)).view(dtype)
        if channels_last:
            B, C, H, W = shape
            return flat.view(B, H, W, C).permute(0, 3, 1, 2)
        return flat.view(shape)

    def _take(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        length = -(-size // _PAGE) * _PAGE + _PAGE  # one more, so as to start on a huge page
        block = self._find(length)
        if block is None:
            block = _huge_pages(length)
        whole = np.frombuffer(block, dtype=np.uint8)
        start = -whole.ctypes.data % _PAGE
        part = whole[start : start + size]
        weakref.finalize(part, self._give_back, block).atexit = False
        return part

    def _find(self, length: int) -> mmap.mmap | None:
        for block in reversed(tuple(self._blocks)):
            if len(block) == length:
                try:
                    self._blocks.remove(block)
                except ValueError:  # another thread was faster
                    continue
                return block
        return None

    def _give_back(self, block: mmap.mmap) -> None:
        # Runs whenever a tensor dies, perhaps in the middle of this class's own code: it may
        # not wait for a lock, so there is none, and every step on the deque is atomic.
        self._blocks.append(block)
        while self.idle > self.limit:
            try:
                self._blocks.popleft()
            except IndexError:
                return


def _huge_pages(length: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, length)
    # Python's own choice is a shared mapping: a forked child would write into its parent's
    # results, and Linux keeps such memory in small pages unless set up otherwise.
    block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


output_pool = OutputPool()
