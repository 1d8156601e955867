"""Many image files decoded on all cores."""

import hashlib
import io
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowres_vision.data._errors import DataError
from lowres_vision.data._image_table import Pixels
from lowres_vision.data._open import open_image, to_rgb

_AT_ONCE = 256  # files in flight, so that memory does not grow with the data
UNREADABLE = b"\0" * 32


class Decoded(NamedTuple):
    """A file: SHA-256 of its bytes, and pixels ``(3, H, W)`` with their CRC-32 or None."""

    digest: bytes
    pixels: Pixels | None
    crc: int


def decode_files(paths: Sequence[Path], what: str) -> Iterator[Decoded]:
    """Decode files in order; progress is shown on standard error once it takes over 2 s."""
    with ThreadPoolExecutor(_cores()) as threads:
        for first in _progress(range(0, len(paths), _AT_ONCE), len(paths), what):
            yield from threads.map(_decode, paths[first : first + _AT_ONCE])


def digest_files(paths: Sequence[Path]) -> Iterator[bytes]:
    """Return the SHA-256 of each file, in order."""
    with ThreadPoolExecutor(_cores()) as threads:
        for first in range(0, len(paths), _AT_ONCE):
            yield from threads.map(_digest_file, paths[first : first + _AT_ONCE])


def _decode(path: Path) -> Decoded:
    data = _read(path)
    if data is None:
        return Decoded(UNREADABLE, None, 0)
    try:
        with open_image(io.BytesIO(data)) as image:
            # numpy alone: in each of these threads torch would start threads of its own
            pixels = np.ascontiguousarray(np.asarray(to_rgb(image)).transpose(2, 0, 1))
    except DataError:
        return Decoded(_digest(data), None, 0)
    return Decoded(_digest(data), pixels, zlib.crc32(pixels.data))


def _digest_file(path: Path) -> bytes:
    return _digest(_read(path))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _digest(data: bytes | None) -> bytes:
    return UNREADABLE if data is None else hashlib.sha256(data).digest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _progress(steps: range, total: int, what: str) -> Iterator[int]:
    """Yield ``steps``, saying how far they are on standard error: each second, or 30 in a log."""
    start = time.monotonic()
    terminal = sys.stderr.isatty()
    next_word = start + 2
    shown = False
    for done in steps:
        now = time.monotonic()
        if now >= next_word:
            line = f"{what}: {done:,} of {total:,} ({done / (now - start):,.0f}/s)"
            print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)
            next_word = now + (1 if terminal else 30)
            shown = True
        yield done
    if shown:
        line = f"{what}: {total:,} of {total:,} in {time.monotonic() - start:.0f} s"
        print(line, file=sys.stderr, flush=True)
