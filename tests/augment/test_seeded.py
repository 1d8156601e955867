import pickle
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lowres_vision.augment import QuarterCrop, Seeded, painters_augmentation
from lowres_vision.data import Manifest, MultiResolutionDataset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(height: int = 40, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator(9))


def draw_all(x: torch.Tensor) -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_all_three_generators_follow_the_seed_and_are_put_back() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = draw_all(image())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    transform = Seeded(draw_all)
    first, again, other = (transform(image(), generator=generator(s)) for s in (0, 0, 1))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert draw_all(image()) == expected


def test_generators_are_put_back_after_an_error() -> None:
    def fail(x: torch.Tensor) -> None:
        draw_all(x)
        raise KeyError("inside")

    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    with pytest.raises(KeyError, match="inside"):
        Seeded(fail)(image(), generator=generator())
    assert (random.random(), np.random.rand()) == expected


def test_without_a_generator_it_follows_pytorchs_own() -> None:
    transform = Seeded(v2.RandAugment(num_ops=2, magnitude=9))
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append([transform(image()) for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in pairwise(results[0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_randaugment_in_a_dataset_depends_on_seed_epoch_and_row(toy: Path, workers: int) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    transform = Seeded(v2.RandAugment(num_ops=2, magnitude=9))
    dataset = MultiResolutionDataset(manifest, transform=transform)

    def epoch(number: int, order: list[int]) -> dict[int, torch.Tensor]:
        loader = torch.utils.data.DataLoader(
            dataset,
            sampler=[(index, number) for index in order],  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
        )
        return {sample.row: sample.image for sample in loader}

    first, again = epoch(0, [0, 1, 2, 3]), epoch(0, [3, 1])
    assert all(torch.equal(again[row], first[row]) for row in (3, 1))
    assert torch.equal(first[0], dataset[0, 0].image)
    later = epoch(1, [0, 1, 2, 3])
    assert not all(torch.equal(first[row], later[row]) for row in range(4))


def test_painters_augmentation_is_uint8_of_one_size_and_varies() -> None:
    transform = pickle.loads(pickle.dumps(painters_augmentation((24, 20))))
    results = [transform(image(), generator=generator(seed)) for seed in range(12)]
    assert {(r.dtype, tuple(r.shape)) for r in results} == {(torch.uint8, (3, 24, 20))}
    assert len({r.numpy().tobytes() for r in results}) == 12


def test_painters_augmentation_without_chance_is_a_quarter() -> None:
    picture = torch.arange(64, dtype=torch.uint8).repeat(3, 64, 1)
    got = painters_augmentation(32, p=0.0)(picture, generator=generator())
    left = int(got[0, 0, 0])
    assert torch.equal(got, picture[:, :32, left : left + 32])


def test_quarter_crops_are_parts_of_the_picture_and_reach_every_place() -> None:
    picture = torch.arange(6 * 4).reshape(1, 6, 4)
    source, places = generator(), set()
    for _ in range(200):
        part = QuarterCrop()(picture, generator=source)
        top, left = divmod(int(part[0, 0, 0]), 4)
        assert torch.equal(part, picture[:, top : top + 3, left : left + 2])
        places.add((top, left))
    assert places == {(top, left) for top in range(4) for left in range(3)}


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"both sides >= 2, got \(3, 1, 8\)"):
        QuarterCrop()(torch.zeros(3, 1, 8))
    with pytest.raises(ValueError, match=r"`p` must be >= 0\.0 and <= 1\.0, got 2"):
        painters_augmentation(p=2)
