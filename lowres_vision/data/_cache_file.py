"""The file that decoded images are kept in: written once, whole, and read through a memory map.

======== ====================================================================================
part     holds
======== ====================================================================================
head     format, number of images, bytes of pixels, the key, and a CRC-32 of head and table
table    for each image first byte, height, width and CRC-32 of its pixels; 0 for one missing
pixels   from the next multiple of 4,096 bytes: the images ``(3, H, W)``, end to end
======== ====================================================================================

All numbers are little-endian. The file is read as plain numbers and nothing in it is executed.
"""

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lowres_vision.data._decode_files import Decoded
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._image_table import ImageTable

_FORMAT = b"lowres-vision images 1\n"
_HEAD = struct.Struct("<23sxqq32sI")
_ROW = np.dtype([("start", "<i8"), ("height", "<i4"), ("width", "<i4"), ("crc", "<u4")])
_REMEDY = "delete it; it is made anew"


class CacheFile(ImageTable):
    """The images of a cache file, each checked when this process or one it forked first reads it.

    Opening reads and checks head and table and the file's length. The checksum of an image's
    pixels takes 2 us for 64 x 64 pixels and is compared once.

    Args:
        path: A file that :func:`write_images` wrote. It may be deleted or replaced while it is
            read, but never written to.

    Raises:
        DataError: If the file is not whole and sound; on reading, if an image is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size or not head.startswith(_FORMAT):
                raise _damaged(path, "is not a cache of images of this version")
            _, count, pixels, self.key, crc = _HEAD.unpack(head)
            table = file.read(count * _ROW.itemsize) if 0 <= count * _ROW.itemsize < length else b""
            if zlib.crc32(table, zlib.crc32(head[:-4])) != crc:
                raise _damaged(path, "is damaged: head and table do not match their checksum")
            if length != _first_byte(count) + pixels:
                raise _damaged(path, f"has {length:,} of {_first_byte(count) + pixels:,} bytes")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._table = np.frombuffer(table, dtype=_ROW)
        self._bytes = np.frombuffer(mapped, dtype=np.uint8)[_first_byte(count) :]
        sizes = np.stack([self._table["height"], self._table["width"]], axis=1)
        super().__init__(self._bytes, self._table["start"].astype(np.int64), sizes)
        # Anonymous memory stays shared with forked workers: what one has checked, all have.
        self._checked = np.frombuffer(mmap.mmap(-1, max(1, count)), dtype=np.bool_)

    def __reduce__(self) -> tuple[type["CacheFile"], tuple[Path]]:
        """Pickle as the path, for workers that are spawned."""
        return CacheFile, (self.path,)

    def read(self, numbers: npt.NDArray[np.int64]) -> Tensor | list[Tensor]:
        """Return copies of images, after a check of those that were not read before."""
        if not self._checked[numbers].all():
            self._check(numbers)
        return super().read(numbers)

    def _check(self, numbers: npt.NDArray[np.int64]) -> None:
        for number in numbers[~self._checked[numbers]].tolist():
            row = self._table[number]
            start, length = int(row["start"]), 3 * int(row["height"]) * int(row["width"])
            if not length or zlib.crc32(self._bytes[start : start + length].data) != row["crc"]:
                raise _damaged(self.path, "holds a damaged image", row=number + 1)
            self._checked[number] = True


def write_images(path: Path, images: Iterable[Decoded], count: int, key: "hashlib._Hash") -> None:
    """Write decoded files, and sync them to the disk.

    Args:
        path: Written in place; give a temporary name and rename it.
        images: In order.
        count: Number of images.
        key: Takes in the digest of every file.
    """
    table = np.zeros(count, dtype=_ROW)
    length = 0
    with path.open("wb", buffering=1 << 20) as file:
        file.seek(_first_byte(count))
        for row, (digest, pixels, crc) in enumerate(images):
            key.update(digest)
            if pixels is not None:
                table[row] = (length, *pixels.shape[1:], crc)
                length += file.write(pixels.data)
        file.truncate(_first_byte(count) + length)
        head = _HEAD.pack(_FORMAT, count, length, key.digest(), 0)
        crc = zlib.crc32(table.tobytes(), zlib.crc32(head[:-4]))
        file.seek(0)
        file.write(head[:-4] + struct.pack("<I", crc))
        file.write(table.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _first_byte(count: int) -> int:
    """Return where the pixels begin: on a page of their own."""
    return -(-(_HEAD.size + count * _ROW.itemsize) // 4096) * 4096


def _damaged(path: Path, reason: str, row: int | None = None) -> DataError:
    return DataError(path, [Fault(reason, _REMEDY, row=row)])
