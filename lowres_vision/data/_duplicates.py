"""Pictures that look alike: a 64-bit perceptual hash, and rows grouped by it.

On 400 photos at 64 and 256 px, a photo and its shrunk or recompressed copy (JPEG quality 40)
differ in at most 4 of the 64 bits, and no two of the 79,800 pairs of different photos in fewer
than 10.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:  # the processes of an audit do without
    from torch import Tensor

_SIDE = 32
_BANDS = 8

# Rows 1..8 of the DCT-II of 32 points; row 0, the mean, says nothing of the picture.
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(1, _BANDS + 1), np.arange(_SIDE) + 0.5))
_BITS = np.uint64(1) << np.arange(_BANDS**2, dtype=np.uint64)


def perceptual_hash(image: "Tensor") -> int:
    """Hash a picture to 64 bits that survive shrinking, recompression and changes of brightness.

    The picture is averaged to 32 x 32 grey levels; a bit tells whether one of the 8 x 8 lowest
    frequencies of its cosine transform, the means left out, is above their median. Two pictures
    are compared by the number of bits in which they differ: ``(a ^ b).bit_count()``.

    Args:
        image: uint8 ``(3, H, W)``.

    Returns:
        The hash, in ``0..2**64 - 1``. Of a picture in one flat colour it is arbitrary.

    Example:
        >>> import torch
        >>> image = torch.randint(256, (3, 8, 8), dtype=torch.uint8).repeat_interleave(8, 1)
        >>> larger = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
        >>> perceptual_hash(image) == perceptual_hash(larger)
        True

    References:
        A DCT hash in the manner of C. Zauner, "Implementation and Benchmarking of Perceptual Image
        Hash Functions", 2010; its bits are not those of another implementation.
    """
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(
            f"`image` must be uint8 (3, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )
    return hash_thumbnail(thumbnail(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())))


def near_duplicates(hashes: npt.ArrayLike, *, distance: int = 4) -> npt.NDArray[np.int64]:
    """Group pictures whose hashes differ in few bits.

    Two pictures are in one group if a chain of pictures joins them, each within ``distance`` bits
    of the next. The groups fit ``StratifiedFolds.split(y, groups)``, which keeps them whole.

    Args:
        hashes: ``(N,)`` of :func:`perceptual_hash`.
        distance: Largest number of differing bits, 0..15.

    Returns:
        ``(N,)`` group numbers, in order of first appearance.

    Example:
        >>> near_duplicates([0b0000, 0b1111 << 30, 0b0001, 0b0011], distance=1).tolist()
        [0, 1, 0, 0]
    """
    if not 0 <= distance <= 15:
        raise ValueError(f"`distance` must be in 0..15, got {distance}")
    values = np.asarray(hashes, dtype=np.uint64)
    if values.ndim != 1:
        raise ValueError(f"`hashes` must be (N,), got shape {values.shape}")
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by appearance, so that a group's root is its earliest member
    place = np.argsort(order)
    root = np.arange(len(distinct))

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = item = root[root[item]]
        return item

    for one, other in place[_close_pairs(distinct, distance)]:
        low, high = sorted((find(one), find(other)))
        root[high] = low
    roots = np.array([find(item) for item in range(len(root))], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1][place[inverse]].astype(np.int64)


def thumbnail(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Average an RGB image to 32 x 32 grey levels."""
    # The gap lets whole factors go through Pillow's `reduce`: 72 us against 187 us at 256 px.
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    return np.asarray(small.convert("L"))


def hash_thumbnail(grey: npt.NDArray[np.uint8]) -> int:
    """Hash the 32 x 32 grey levels of :func:`thumbnail`."""
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    middle = np.sort(waves)[len(waves) // 2 - 1 :][:2].mean()  # `np.median` takes 20 us more
    return int(_BITS[waves > middle].sum())


def _close_pairs(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """Return the pairs ``(P, 2)`` of distinct hashes within ``distance`` bits, some repeated.

    Of ``distance + 1`` blocks of bits, two such hashes have at least one in common, so only
    hashes that share a block are compared: about 3 million of the 5,000 million pairs of 100,000
    random hashes.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for start, stop in itertools.pairwise(edges):
        block = (hashes >> np.uint64(start)) & np.uint64(2 ** int(stop - start) - 1)
        order = np.argsort(block, kind="stable")
        block = block[order]
        earlier = np.arange(len(hashes))
        for step in range(1, len(hashes)):
            earlier = earlier[earlier + step < len(hashes)]
            earlier = earlier[block[earlier] == block[earlier + step]]
            if not earlier.size:
                break
            pair = np.stack([order[earlier], order[earlier + step]], axis=1)
            differing = np.bitwise_count(hashes[pair[:, 0]] ^ hashes[pair[:, 1]])
            pairs.append(pair[differing <= distance])
    return np.concatenate(pairs)
