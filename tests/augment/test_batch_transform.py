import pytest
import torch

from lowres_vision.augment import BatchTransform, Crops
from lowres_vision.ops import Mix, random_resized_crop_boxes, resize
from lowres_vision.training._describe import describe_module

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


def test_a_model_tells_the_normalisation_that_it_expects() -> None:
    model = torch.nn.Conv2d(3, 1, 1)
    model.mean, model.std = [*MEAN], [*STD]  # type: ignore[assignment]
    told, given = BatchTransform(24, model=model), BatchTransform(24, mean=MEAN, std=STD)
    batch = torch.stack(images(16, 16))
    assert torch.equal(told.eval()(batch), given.eval()(batch))
    # Of the model nothing is kept: neither its weights, nor a trace in what a run says of itself.
    assert not told.state_dict()
    assert describe_module(told) == describe_module(given)


def test_one_normalisation_is_given() -> None:
    model = torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match="`model` must have the attributes mean and std, Conv2d"):
        BatchTransform(24, model=model)
    with pytest.raises(ValueError, match="or a `model` that has them, not both"):
        BatchTransform(24, model=model, std=STD)
    with pytest.raises(ValueError, match="or `model`, got mean=None and std="):
        BatchTransform(24, std=STD)


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


def test_without_scale_each_image_comes_whole_whatever_its_shape() -> None:
    batch = torch.stack(images(16, 16))[:, :, :, :11]
    transform = BatchTransform((20, 24), mean=MEAN, std=STD, scale=None, flip=0.0)
    got = transform(batch)
    assert torch.equal(got, transform.eval()(batch))


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


def test_drawing_apart_is_drawing_within() -> None:
    batch = torch.stack(images(23, 23, 23))  # 23: shares of it are no binary fractions
    transform = BatchTransform(24, mean=MEAN, std=STD)
    within = transform(batch, generator=torch.Generator().manual_seed(5))
    crops = transform.draw(batch, generator=torch.Generator().manual_seed(5))
    assert torch.equal(transform(batch, crops=crops), within)
    assert torch.equal(transform.eval()(batch, crops=crops), within)

    generator = torch.Generator().manual_seed(5)
    boxes = random_resized_crop_boxes(3, (23, 23), generator=generator)
    flip = torch.rand(3, generator=generator) < 0.5
    expected = resize(batch, 24, boxes=boxes, flip=flip, mean=MEAN, std=STD)
    assert torch.equal(within, expected)


def test_one_draw_shows_the_same_part_of_a_picture_at_any_resolution() -> None:
    """On pictures that are their own coordinates, the pixels say what part was cut out."""
    # Enlarging alone: interpolating a ramp is exact but for half a source pixel at the box's edge.
    size = 300
    transform = BatchTransform(size, mean=(0.0,) * 3, std=(1.0,) * 3, scale=(0.2, 0.5))
    crops = transform.draw(torch.empty(6, 3, 64, 64), generator=torch.Generator().manual_seed(2))
    seen = []
    for height, width in ((64, 64), (256, 256), (100, 150)):
        y = ((torch.arange(height) + 0.5) / height).expand(width, height).T
        x = ((torch.arange(width) + 0.5) / width).expand(height, width)
        picture = torch.stack([y, x, torch.zeros_like(x)]).expand(6, 3, height, width)
        seen.append(transform(picture, crops=crops)[:, :, 10:-10, 10:-10])
    _, left, _, width = crops.boxes[0].tolist()
    centres = left + (torch.arange(size) + 0.5) / size * width
    expected = centres.flip(0) if crops.flip[0] else centres
    torch.testing.assert_close(seen[0][0, 1, 0], expected[10:-10].float())
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(seen[2], seen[0])


def test_a_list_of_sizes_takes_one_draw_too() -> None:
    low, high = images(16, 24, 16), images(64, 96, 64)
    transform = BatchTransform(12, mean=MEAN, std=STD)
    crops = transform.draw(low, generator=torch.Generator().manual_seed(1))
    assert isinstance(crops, Crops)
    assert crops.boxes.shape == (3, 4)
    for index in range(3):
        alone = Crops(crops.boxes[index : index + 1], crops.flip[index : index + 1])
        for batch in (low, high):
            torch.testing.assert_close(
                transform(batch, crops=crops)[index],
                transform(batch[index][None], crops=alone)[0],
            )


def test_via_and_crops_go_together() -> None:
    batch = torch.stack(images(64, 64))
    transform = BatchTransform(24, mean=MEAN, std=STD, via=8)
    crops = transform.draw(batch, generator=torch.Generator().manual_seed(0))
    assert torch.equal((crops.boxes * 8).round() / 8, crops.boxes)  # whole pixels of 8
    plain = BatchTransform(24, mean=MEAN, std=STD)
    torch.testing.assert_close(transform(batch, crops=crops), plain(resize(batch, 8), crops=crops))


def test_augmentation_comes_before_the_crop_and_in_training_alone() -> None:
    seen: list[torch.Generator | None] = []

    class Darken(torch.nn.Module):
        def forward(
            self, batch: torch.Tensor, *, generator: torch.Generator | None = None
        ) -> torch.Tensor:
            seen.append(generator)
            return batch // 2

    batch, generator = torch.stack(images(16, 16)), torch.Generator().manual_seed(0)
    plain = BatchTransform(24, mean=MEAN, std=STD)
    transform = BatchTransform(24, mean=MEAN, std=STD, augment=Darken())
    expected = plain(batch // 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform(batch, generator=generator), expected)
    assert seen == [generator]
    with pytest.raises(ValueError, match=r"^`crops` are of images that `augment` has not moved"):
        transform(batch, crops=transform.draw(batch))
    crops = transform.eval().draw(batch)
    assert torch.equal(transform(batch, crops=crops), plain.eval()(batch, crops=crops))
    assert torch.equal(transform(batch), plain(batch))


def test_evaluation_may_have_a_size_of_its_own() -> None:
    batch = torch.stack(images(16, 16))
    transform = BatchTransform(24, mean=MEAN, std=STD, eval_size=(40, 32))
    assert transform(batch).shape[2:] == (24, 24)
    assert torch.equal(transform.eval()(batch), resize(batch, (40, 32), mean=MEAN, std=STD))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"`flip` must be >= 0\.0 and <= 1\.0, got 2"):
        BatchTransform(24, mean=MEAN, std=STD, flip=2)
    with pytest.raises(ValueError, match=r"`size` must be \(height, width\) with both > 0"):
        BatchTransform((0, 4), mean=MEAN, std=STD)


def test_a_batch_without_images_stays_one() -> None:
    transform = BatchTransform(16, mean=(0.5,) * 3, std=(0.5,) * 3)
    for training in (True, False):
        images = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
        assert transform.train(training)(images).shape == (0, 3, 16, 16)
