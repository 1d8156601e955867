import pytest
import torch

from lowres_vision.augment import BatchTransform
from lowres_vision.ops import Mix, resize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
        for side in sizes
    ]


def test_evaluation_is_a_plain_resize() -> None:
    batch = torch.stack(images(16, 16))
    transform = BatchTransform(24, mean=MEAN, std=STD).eval()
    expected = resize(batch, 24, mean=MEAN, std=STD)
    torch.testing.assert_close(transform(batch), expected)
    assert transform(batch).is_contiguous(memory_format=torch.channels_last)


def test_training_repeats_by_generator_and_draws_per_image() -> None:
    image = images(32)[0]
    transform = BatchTransform(24, mean=MEAN, std=STD)
    first, again, other = (
        transform(torch.stack([image] * 4), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_without_crop_each_image_comes_whole_or_mirrored() -> None:
    batch = torch.stack(images(*[16] * 32))
    transform = BatchTransform(16, mean=MEAN, std=STD, scale=(1, 1), ratio=(1, 1), flip=0.5)
    got = transform(batch, generator=torch.Generator().manual_seed(0))
    plain = transform.eval()(batch)
    as_is = (got == plain).flatten(1).all(dim=1)
    mirrored = (got == plain.flip(3)).flatten(1).all(dim=1)
    assert bool((as_is ^ mirrored).all())
    assert 8 <= int(mirrored.sum()) <= 24  # 32 fair coins; outside with probability 0.002


def test_sizes_may_differ_within_a_batch() -> None:
    batch = images(16, 16, 48)
    transform = BatchTransform(24, mean=MEAN, std=STD)
    assert transform(batch).shape == (3, 3, 24, 24)
    whole = transform.eval()(batch)
    torch.testing.assert_close(whole[2:], resize(batch[2][None], 24, mean=MEAN, std=STD))


def test_via_detours_over_another_size() -> None:
    batch = torch.stack(images(64, 64))
    transform = BatchTransform(24, mean=MEAN, std=STD, via=8).eval()
    detour = resize(resize(batch, 8), 24, mean=MEAN, std=STD)
    torch.testing.assert_close(transform(batch), detour)
    assert not torch.allclose(detour, resize(batch, 24, mean=MEAN, std=STD), atol=0.1)


def test_mix_is_applied_to_the_cropped_images() -> None:
    batch = torch.stack(images(16, 16))
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), torch.tensor([[0, 0, 12, 12]] * 2))
    transform = BatchTransform(24, mean=MEAN, std=STD)
    plain = transform(batch, generator=torch.Generator().manual_seed(3))
    mixed = transform(batch, mix=mix, generator=torch.Generator().manual_seed(3))
    expected = plain.clone()
    expected[:, :, :12, :12] = plain.flip(0)[:, :, :12, :12]
    torch.testing.assert_close(mixed, expected)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"`flip` must be >= 0\.0 and <= 1\.0, got 2"):
        BatchTransform(24, mean=MEAN, std=STD, flip=2)
    with pytest.raises(ValueError, match=r"`size` must be \(height, width\) with both > 0"):
        BatchTransform((0, 4), mean=MEAN, std=STD)
