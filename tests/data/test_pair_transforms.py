import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowres_vision.data import (
    BalancedSampler,
    Manifest,
    MultiResolutionDataset,
    PairBatch,
    RandomPairTransform,
    Sample,
    collate,
)

EVERYTHING: dict[str, Any] = {
    "crop": (0.1, 1.0),
    "ratio": (0.5, 2.0),
    "flip_up_down": 0.5,
    "quarter_turns": True,
    "erase": 0.7,
    "fill": (-1.0, -1.0),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(height: int, width: int) -> Tensor:
    """Return an image ``(2, H, W)`` whose pixels tell where in the picture they are, in 0..1."""
    rows = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    columns = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def shares(old: int, new: int) -> Tensor:
    """Return ``(new, old)`` how much each of ``old`` pixels counts in each of ``new``."""
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    pixels = torch.arange(old)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return overlap.clamp(min=0) * new / old


def shrink(image: Tensor, size: Sequence[int]) -> Tensor:
    """Average ``(C, H, W)`` over the area of each new pixel."""
    rows, columns = shares(image.shape[1], size[0]), shares(image.shape[2], size[1])
    return rows @ image.double() @ columns.T


def random_sizes(random: np.random.Generator, *, whole: bool) -> tuple[list[int], list[int]]:
    low = random.integers(5, 65, 2)
    factor = int(random.integers(1, 6)) if whole else random.uniform(1, 5, 2)
    return low.tolist(), np.floor(low * factor).astype(int).tolist()


@pytest.mark.parametrize("whole", [True, False])
def test_the_shrunk_high_image_stays_on_the_low_one(whole: bool) -> None:
    random = np.random.default_rng(0)
    transform = RandomPairTransform(**EVERYTHING | {"erase": 0.0})
    for seed in range(1000):
        low_size, high_size = random_sizes(random, whole=whole)
        low, high = transform(positions(*low_size), positions(*high_size), generator=seeded(seed))
        away = (shrink(high, low.shape[1:]) - low).abs()
        half_a_pixel = torch.tensor([0.0 if whole else 0.5 / side for side in low_size])
        assert (away <= half_a_pixel[:, None, None] + 1e-12).all()


@pytest.mark.parametrize("whole", [True, False])
def test_erased_boxes_end_within_half_a_low_pixel(whole: bool) -> None:
    random = np.random.default_rng(1)
    transform = RandomPairTransform(**EVERYTHING)
    erased = 0
    for seed in range(1000):
        low_size, high_size = random_sizes(random, whole=whole)
        low, high = transform(positions(*low_size), positions(*high_size), generator=seeded(seed))
        gone = [torch.nonzero(image[0] == -1) for image in (low, high)]
        assert bool(len(gone[0])) == bool(len(gone[1]))
        if not len(gone[0]):
            continue
        erased += 1
        ends = []
        for pixels, image in zip(gone, (low, high), strict=True):
            first, last = pixels.min(dim=0).values, pixels.max(dim=0).values + 1
            assert len(pixels) == (last - first).prod()  # one whole box
            ends.append(torch.stack([first, last]) / torch.tensor(image.shape[1:]).double())
        half_a_pixel = (0.0 if whole else 0.5) / torch.tensor(low.shape[1:]).double()
        assert ((ends[0] - ends[1]).abs() <= half_a_pixel + 1e-12).all()
    assert 600 < erased < 800


def test_a_shrunk_picture_and_the_transform_commute_to_the_last_level() -> None:
    picture = torch.randint(256, (3, 96, 120), dtype=torch.uint8, generator=seeded(0))
    small = picture.double().reshape(3, 24, 4, 30, 4).mean(dim=(2, 4))
    transform = RandomPairTransform(quarter_turns=True, flip_up_down=0.5, erase=0.5)
    for seed in range(50):
        low, high = transform(small, picture, generator=seeded(seed))
        assert high.dtype == torch.uint8
        assert torch.equal(shrink(high, low.shape[1:]), low)


def test_the_smaller_image_sets_the_grid_whichever_it_is() -> None:
    large, small = positions(64, 48), positions(16, 12)
    transform = RandomPairTransform(**EVERYTHING | {"erase": 0.0})
    for seed in range(50):
        one, two = transform(large, small, generator=seeded(seed))
        assert torch.allclose(shrink(one, two.shape[1:]), two, atol=1e-12)


def test_each_part_alone() -> None:
    low, high = positions(4, 6), positions(8, 12)
    nothing = {"crop": None, "flip_left_right": 0.0}

    def apply(**options: Any) -> Tensor:
        transform = RandomPairTransform(**nothing | options)
        return transform(low, high, generator=seeded(1))[1]

    assert torch.equal(apply(), high)
    assert torch.equal(apply(flip_left_right=1.0), high.flip(2))
    assert torch.equal(apply(flip_up_down=1.0), high.flip(1))
    assert apply(crop=(1.0, 1.0), ratio=(1.5, 1.5)).shape == (2, 8, 12)
    assert apply(crop=(0.25, 0.25), ratio=(1.5, 1.5)).shape == (2, 4, 6)
    erased = apply(erase=1.0, erase_area=(0.5, 0.5), fill=(7.0, 8.0))
    assert (erased == torch.tensor([7.0, 8.0])[:, None, None]).double().mean() == pytest.approx(
        0.5, abs=0.2
    )
    transform = RandomPairTransform(**nothing, quarter_turns=True)
    turned = [transform(low, high, generator=seeded(seed))[1] for seed in range(40)]
    for turns in range(4):
        assert any(torch.equal(image, high.rot90(turns, (1, 2))) for image in turned)


def test_crops_and_chances_are_drawn_as_asked() -> None:
    image = positions(100, 100)
    transform = RandomPairTransform(crop=(0.2, 0.6), ratio=(1.0, 1.0), flip_left_right=0.3)
    draws = [transform(image, image, generator=seeded(seed))[0] for seed in range(2000)]
    areas = np.array([draw.shape[1] * draw.shape[2] for draw in draws]) / 1e4
    # A side is rounded to a pixel of 45..77; the mean of 2,000 uniform draws errs by 0.0026.
    assert areas.min() > 0.19
    assert areas.max() < 0.62
    assert areas.mean() == pytest.approx(0.4, abs=0.013)
    flipped = np.mean([bool(draw[1, 0, 0] > draw[1, 0, -1]) for draw in draws])
    assert flipped == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 2000) ** 0.5)
    corners = np.array([float(draw[0].min()) for draw in draws])
    assert corners.min() == pytest.approx(0.005)


def test_one_pixel_survives() -> None:
    transform = RandomPairTransform(**EVERYTHING | {"crop": (0.01, 0.01), "erase": 1.0})
    for seed in range(20):
        low, high = transform(positions(1, 1), positions(1, 3), generator=seeded(seed))
        assert low.numel() == 2
        assert high.numel() >= 2


def test_inputs_are_not_written_to_and_outputs_are_their_own() -> None:
    transform = RandomPairTransform(crop=None, flip_left_right=0.0, erase=1.0, fill=(0.0, 0.0))
    low, high = positions(8, 8), positions(16, 16)
    before = low.clone(), high.clone()
    transform(low, high)
    assert torch.equal(low, before[0])
    assert torch.equal(high, before[1])
    strided = positions(8, 8).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    ours = transform(strided, high, generator=seeded(0))
    assert torch.equal(ours[0], transform(low, high, generator=seeded(0))[0])
    assert all(image.is_contiguous() for image in ours)


def test_without_a_generator_pytorchs_own_decides() -> None:
    transform = pickle.loads(pickle.dumps(RandomPairTransform()))
    image = positions(32, 32)
    torch.manual_seed(5)
    first = transform(image, image)[0]
    again = transform(image, image, generator=seeded(5))[0]
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop": (0.0, 1.0)}, r"`crop\[0\]` must be > 0, got 0.0"),
        ({"crop": (0.5, 1.1)}, r"`crop\[1\]` must be >= 0.5 and <= 1, got 1.1"),
        ({"crop": (0.5, 0.4)}, r"`crop\[1\]` must be >= 0.5"),
        ({"ratio": (2.0, 1.0)}, r"`ratio\[1\]` must be >= 2.0"),
        ({"erase_area": (0.1, 2.0)}, r"`erase_area\[1\]` must be >= 0.1 and <= 1"),
        ({"flip_left_right": 1.5}, "`flip_left_right` must be >= 0 and <= 1, got 1.5"),
        ({"flip_up_down": -1}, "`flip_up_down` must be"),
        ({"erase": float("nan")}, "`erase` must be >= 0 and <= 1, got nan"),
    ],
)
def test_settings_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RandomPairTransform(**arguments)


def test_images_refused() -> None:
    with pytest.raises(ValueError, match=r"`high` must be \(C, H, W\).*\(1, 2, 8, 8\)"):
        RandomPairTransform()(positions(8, 8), positions(8, 8)[None])
    with pytest.raises(ValueError, match=r"`low` must be .* not empty, got shape \(2, 0, 8\)"):
        RandomPairTransform()(positions(0, 8), positions(8, 8))
    with pytest.raises(ValueError, match="`fill` must have one value per channel: 3 for 2"):
        RandomPairTransform(erase=0.1)(positions(8, 8), positions(8, 8))


@pytest.fixture(scope="module")
def manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


def shuffled(number: int, epoch: int) -> list[tuple[int, int]]:
    return [(index, epoch) for index in torch.randperm(number, generator=seeded(epoch)).tolist()]


def batches(dataset: MultiResolutionDataset, sampler: Any, workers: int) -> list[PairBatch]:
    loader = DataLoader(
        dataset, batch_size=5, sampler=sampler, num_workers=workers, collate_fn=collate
    )
    return list(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_nothing(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(
        manifest,
        resolution="pair",
        transform=RandomPairTransform(crop=(0.25, 0.25), ratio=(1, 1), erase=0.5),
        seed=3,
    )
    expected = batches(dataset, shuffled(36, 1), 0)
    for workers in (1, 2, 4):
        for ours, theirs in zip(batches(dataset, shuffled(36, 1), workers), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))


def test_a_sample_is_a_function_of_seed_keys_and_row(manifest: Manifest) -> None:
    def dataset(seed: int = 3, **options: Any) -> MultiResolutionDataset:
        transform = RandomPairTransform(crop=(0.25, 0.25), ratio=(1, 1))
        return MultiResolutionDataset(
            manifest, resolution="pair", transform=transform, seed=seed, **options
        )

    first = dataset()[(7, 0)]
    assert torch.equal(first[0], dataset()[(7, 0)][0])
    assert torch.equal(first[0], dataset(rows=[3, 7])[(1, 0)][0])
    for other in (dataset()[(7, 1)], dataset()[(7, 0, 0)], dataset(seed=4)[(7, 0)]):
        assert other.row == 7
        assert not torch.equal(first[0], other[0])
    with pytest.raises(IndexError, match="sample 36 of 36"):
        dataset()[(36, 0)]
    with pytest.raises(ValueError, match="`seed` must be >= 0, got -1"):
        dataset(seed=-1)


def test_a_row_drawn_twice_is_transformed_twice(manifest: Manifest) -> None:
    dataset = MultiResolutionDataset(
        manifest,
        rows=[0, 1],
        resolution="pair",
        transform=RandomPairTransform(crop=(0.25, 0.25), ratio=(1, 1)),
    )
    sampler = BalancedSampler([0, 1], num_samples=10, keyed=True)
    drawn = [dataset[keyed] for keyed in sampler]
    assert {pair.row for pair in drawn} == {0, 1}
    crops = {pair[0].numpy().tobytes() for pair in drawn}
    assert len(crops) == 10


def test_the_images_of_a_row_draw_apart_where_both_are_samples(manifest: Manifest) -> None:
    def noise(image: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(2, generator=generator)

    dataset = MultiResolutionDataset(manifest, resolution="both", transform=noise)
    low, high = dataset[(4, 0)], dataset[(4 + 36, 0)]
    assert isinstance(low, Sample)
    assert low.row == high.row == 4
    assert not torch.equal(low.image, high[0])
    torch.manual_seed(0)
    assert torch.equal(dataset[4][0], torch.rand(2, generator=seeded(0)))


def test_modules_get_the_generator_and_other_transforms_do_not(manifest: Manifest) -> None:
    class Noise(nn.Module):
        def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return torch.rand(2, generator=generator)

    dataset = MultiResolutionDataset(manifest, transform=Noise())
    assert torch.equal(dataset[(4, 0)][0], dataset[(4, 0)][0])
    plain = MultiResolutionDataset(manifest, transform=lambda image: image[:1])
    assert torch.equal(plain[(4, 0)][0], plain[4][0])
