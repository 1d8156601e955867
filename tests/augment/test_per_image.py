"""Each image's result is a function of its seed alone."""

import random

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from lowres_vision.augment import PerImage


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 3, 20, 24), dtype=torch.uint8, generator=seeded(9))


JITTER = PerImage(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(30), v2.ColorJitter(0.5)]))


def test_the_generator_decides_and_the_global_state_stays() -> None:
    torch.manual_seed(1)
    first = JITTER(batch(), generator=seeded(0))
    after = torch.rand(3)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.rand(3), after)
    assert torch.equal(first, JITTER(batch(), generator=seeded(0)))
    assert not torch.equal(first, JITTER(batch(), generator=seeded(1)))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    images = batch()
    whole = JITTER(images, generator=seeded(3))
    images[0] = 0
    assert torch.equal(whole[1:], JITTER(images, generator=seeded(3))[1:])


def test_equal_images_get_draws_of_their_own() -> None:
    same = batch(1).expand(8, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in JITTER(same, generator=seeded(0))}) > 4


def test_without_a_generator_the_global_one_seeds() -> None:
    torch.manual_seed(5)
    first = JITTER(batch())
    torch.manual_seed(5)
    assert torch.equal(first, JITTER(batch()))


def test_lists_and_results_of_different_sizes() -> None:
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 9, 5, dtype=torch.uint8)]
    assert [image.shape for image in JITTER(images)] == [image.shape for image in images]
    sizes = iter([4, 5])
    odd = PerImage(lambda image: image[:, : next(sizes)])
    assert [image.shape[1] for image in odd(torch.stack([images[0]] * 2))] == [4, 5]


def test_draws_from_python_and_numpy_are_the_images_own_too() -> None:
    def add_noise(image: Tensor) -> Tensor:
        return image + random.randrange(256) + np.random.randint(256)

    state = random.getstate()
    first, second = (PerImage(add_noise)(batch(), generator=seeded(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert random.getstate() == state
