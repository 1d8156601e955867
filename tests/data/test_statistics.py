import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lowres_vision.data import (
    Manifest,
    MultiResolutionDataset,
    Sample,
    channel_statistics,
    collate,
    make_toy_pairs,
)

EPS = np.finfo(np.float64).eps


def images(number: int, *, channels: int = 3, seed: int = 0) -> list[Tensor]:
    """Images of odd sizes, each channel with a range of its own."""
    generator = np.random.default_rng(seed)
    return [
        torch.from_numpy(
            np.stack(
                [generator.integers(10 * c, 256 - 20 * c, size) for c in range(channels)]
            ).astype(np.uint8)
        )
        for size in generator.integers(1, 40, (number, 2))
    ]


def test_the_values_are_those_of_rational_arithmetic() -> None:
    found = channel_statistics(images(20))
    for channel in range(3):
        pixels = [int(v) for image in images(20) for v in image[channel].flatten()]
        mean = Fraction(sum(pixels), 255 * len(pixels))
        variance = sum((Fraction(v, 255) - mean) ** 2 for v in pixels) / len(pixels)
        assert found.mean[channel] == float(mean)
        # One rounding of the variance, halved by the root, and one of the root.
        assert abs(found.std[channel] ** 2 / variance - 1) < 4 * EPS
        assert found.pixels == len(pixels)
    assert found.images == 20
    np.testing.assert_allclose(found.mean_255, np.multiply(found.mean, 255), rtol=EPS)
    np.testing.assert_allclose(found.std_255, np.multiply(found.std, 255), rtol=EPS)


def test_neither_order_nor_batching_changes_a_bit() -> None:
    same_size = [image[:, :1, :1].repeat(1, 7, 5) + torch.arange(5).byte() for image in images(12)]
    expected = channel_statistics(same_size)
    shuffled = random.Random(0).sample(same_size, len(same_size))
    assert channel_statistics(shuffled) == expected
    assert channel_statistics(torch.stack(same_size).split(5)) == expected
    assert channel_statistics(iter([same_size[:4], same_size[4:]])) == expected
    assert channel_statistics(Sample(image, 0, 0) for image in same_size) == expected
    assert channel_statistics((image, 0) for image in same_size) == expected
    channels_last = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in same_size]
    assert channel_statistics(channels_last) == expected


def test_a_large_offset_does_not_cancel() -> None:
    bright = torch.full((1, 1000, 1000), 255, dtype=torch.uint8)
    bright[0, 0, 0] = 254
    found = channel_statistics([bright] * 10)
    variance = Fraction(1, 10**6) * (1 - Fraction(1, 10**6)) / 255**2
    assert abs(found.std[0] ** 2 / variance - 1) < 4 * EPS
    assert channel_statistics([torch.full((3, 9, 9), 7, dtype=torch.uint8)]).std == (0, 0, 0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels: int) -> None:
    found = channel_statistics(images(3, channels=channels))
    assert len(found.mean) == len(found.std) == channels


def test_only_the_rows_given_count(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    rows = [3, 5, 8]
    found = channel_statistics(MultiResolutionDataset(manifest, rows=rows))
    stacked = torch.stack([MultiResolutionDataset(manifest)[row].image for row in rows]).double()  # type: ignore[union-attr]
    assert (found.images, found.pixels) == (3, 3 * 64 * 64)
    expected = stacked.mean(dim=(0, 2, 3)) / 255
    np.testing.assert_allclose(found.mean, expected, rtol=1e3 * EPS)
    assert found != channel_statistics(MultiResolutionDataset(manifest))


def test_loaders_of_one_and_of_mixed_sizes(tmp_path: Path) -> None:
    folder = make_toy_pairs(tmp_path, classes=2, per_class=3, test_per_class=1)
    manifest = Manifest.read_csv(folder / "train.csv")
    for resolution in ("low", "both"):
        dataset = MultiResolutionDataset(manifest, resolution=resolution)  # type: ignore[arg-type]
        loader = DataLoader(dataset, batch_size=4, collate_fn=collate, shuffle=True)
        assert channel_statistics(loader) == channel_statistics(dataset)
    with pytest.raises(TypeError, match="got a Pair: take one resolution"):
        channel_statistics(MultiResolutionDataset(manifest, resolution="pair"))


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ([], ValueError, "`images` must have a pixel, got none"),
        ([torch.zeros(3, 0, 4, dtype=torch.uint8)], ValueError, "must have a pixel"),
        ([torch.zeros(3, 4, 4)], TypeError, "before any transform, got torch.float32"),
        ([np.zeros((3, 4, 4), np.uint8)], TypeError, "must be uint8 tensors.*got ndarray"),
        ([torch.zeros(4, 4, dtype=torch.uint8)], ValueError, r"got shape \(4, 4\)"),
        (
            [torch.zeros(c, 4, 4, dtype=torch.uint8) for c in (3, 1)],
            ValueError,
            "must agree in channels, got 3, then 1",
        ),
    ],
)
def test_refusals(given: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        channel_statistics(given)
