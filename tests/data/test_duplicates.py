import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lowres_vision.data import decode_image, near_duplicates, perceptual_hash


def photo(seed: int, side: int = 64) -> Tensor:
    """Return smooth random colours, ``(3, side, side)``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def recompressed(image: Tensor, **options: object) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, **options)
    file.seek(0)
    return decode_image(file)


def differing(one: Tensor, other: Tensor) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_the_hash_is_that_of_the_definition() -> None:
    image = photo(0, side=32)
    red, green, blue = image.double()
    grey = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536).floor()
    frequency, place = np.mgrid[1:9, 0:32]
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / 64)
    waves = np.einsum("uy,vx,yx->uv", cosines, cosines, grey.numpy()).ravel()
    bits = [number for number, wave in enumerate(waves) if wave > np.median(waves)]
    assert perceptual_hash(image) == sum(2**bit for bit in bits)
    assert len(bits) == 32


@pytest.mark.parametrize("seed", range(20))
def test_copies_differ_in_few_bits_and_other_pictures_in_many(seed: int) -> None:
    image = photo(seed, side=256)
    shrunk = torch.nn.functional.avg_pool2d(image[None].float(), 4)[0].round().byte()
    darker = (image.float() * 0.7 + 10).round().byte()
    assert differing(image, recompressed(image, format="JPEG", quality=40)) <= 4
    assert differing(image, shrunk) <= 4
    assert differing(image, darker) <= 4
    assert differing(image, photo(seed + 100)) > 12
    assert differing(image, image.flip(2)) > 12


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 5, 300), (3, 31, 33)])
def test_any_size_has_a_hash(shape: tuple[int, ...]) -> None:
    assert 0 <= perceptual_hash(torch.full(shape, 7, dtype=torch.uint8)) < 2**64


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)], ids=["float", "grey"]
)
def test_what_is_no_image_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`image` must be uint8 \(3, H, W\), got"):
        perceptual_hash(image)


def by_all_pairs(hashes: list[int], distance: int) -> list[int]:
    """Group by comparing each with each, until nothing changes."""
    group = list(range(len(hashes)))
    changed = True
    while changed:
        changed = False
        for i, one in enumerate(hashes):
            for j, other in enumerate(hashes):
                if (one ^ other).bit_count() <= distance and group[i] < group[j]:
                    group[j] = group[i]
                    changed = True
    number: dict[int, int] = {}
    return [number.setdefault(value, len(number)) for value in group]


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 15])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_all_pairs(distance: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    hashes = [int(value) for value in random.integers(2**64, size=20, dtype=np.uint64)]
    for _ in range(60):  # copies of copies, near the limit on either side
        value = hashes[random.integers(len(hashes))]
        for bit in random.choice(64, size=random.integers(distance + 4), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
    assert near_duplicates(hashes, distance=distance).tolist() == by_all_pairs(hashes, distance)


def test_equal_hashes_are_no_quadratic_work() -> None:
    assert near_duplicates(np.zeros(200_000, dtype=np.uint64)).max() == 0


def test_no_hashes_no_groups() -> None:
    assert near_duplicates([]).tolist() == []
    assert near_duplicates([3]).tolist() == [0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"`distance` must be in 0\.\.15, got 16"):
        near_duplicates([1], distance=16)
    with pytest.raises(ValueError, match=r"`hashes` must be \(N,\), got shape \(1, 1\)"):
        near_duplicates([[1]])
