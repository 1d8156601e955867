"""Memory for large results, kept and used again.

A fresh block of 38 MB costs about ten times what writing it costs: the system hands it out page
by page, and malloc returns it at once. The pool maps blocks in huge pages and takes them back
when the last tensor, view or saved-for-backward reference to them is gone.
"""

import ctypes
import mmap
import os
import weakref
from collections import deque
from math import prod

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
        self._idle: deque[_Block] = deque()  # oldest first
        self._lent: set[_Block] = set()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.clear)

    @property
    def idle(self) -> int:
        """Bytes of blocks that wait to be used again."""
        return sum(len(block.memory) for block in tuple(self._idle))

    def clear(self) -> None:
        """Return every idle block to the system."""
        self._idle.clear()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool) -> Tensor:
        """Return an uninitialised CPU tensor ``(B, C, H, W)``, in a block where it is large."""
        size = prod(shape) * dtype.itemsize
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if self.limit <= 0 or size < _SMALLEST:
            return torch.empty(shape, dtype=dtype, memory_format=layout)
        flat = torch.frombuffer(self._lend(size), dtype=dtype)
        if channels_last:
            B, C, H, W = shape
            return flat.view(B, H, W, C).permute(0, 3, 1, 2)
        return flat.view(shape)

    def _lend(self, size: int) -> memoryview:
        length = -(-size // _PAGE) * _PAGE
        block = self._find(length) or _Block(length)
        # Each slice is an object of its own, which torch holds as long as the memory is in use.
        part = block.memory[:size]
        block.lease = weakref.ref(part, lambda _: self._give_back(block))
        self._lent.add(block)
        return part

    def _find(self, length: int) -> "_Block | None":
        for block in reversed(tuple(self._idle)):
            if len(block.memory) == length:
                try:
                    self._idle.remove(block)
                except ValueError:  # another thread was faster
                    continue
                return block
        return None

    def _give_back(self, block: "_Block") -> None:
        # Runs whenever a tensor dies, perhaps in the middle of this class's own code: it may
        # not wait for a lock, so there is none, and every step on the containers is atomic.
        self._lent.remove(block)
        self._idle.append(block)
        while self.idle > self.limit:
            try:
                self._idle.popleft()
            except IndexError:
                return


class _Block:
    """Memory that starts on a huge page, and the weak reference to who has it."""

    __slots__ = ("lease", "memory")

    def __init__(self, length: int) -> None:
        self.lease: weakref.ref[memoryview] | None = None
        room = length + _PAGE
        if hasattr(mmap, "MAP_PRIVATE"):
            # Python's own choice is a shared mapping: a forked child would write into its
            # parent's results, and Linux keeps such memory in small pages unless set up
            # otherwise (to fill 40 MB for the first time: 20 ms against 1.4).
            whole = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:  # Windows
            whole = mmap.mmap(-1, room)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            whole.madvise(mmap.MADV_HUGEPAGE)
        start = -ctypes.addressof(ctypes.c_byte.from_buffer(whole)) % _PAGE
        self.memory = memoryview(whole)[start : start + length]


output_pool = OutputPool()
