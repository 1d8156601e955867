import io

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.augment._jpeg import jpeg_quality, jpeg_round_trip


def picture(seed: int, channels: int = 3, size: tuple[int, int] = (48, 56)) -> torch.Tensor:
    """Noise of a coarse and a fine grain: something in every coefficient, levels of 20 to 235."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 6, 7, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    fine = torch.rand(channels, *size, generator=generator)
    return (20 + 215 * (0.7 * coarse.clamp(0, 1) + 0.3 * fine)).round().to(torch.uint8)


def test_round_trip_is_pillows() -> None:
    image = picture(0)
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(jpeg_round_trip(image, 40), expected)


def test_grey_keeps_one_channel_and_other_numbers_are_refused() -> None:
    assert jpeg_round_trip(picture(0, channels=1), 90).shape == (1, 48, 56)
    with pytest.raises(ValueError, match="images of 1 or 3 channels, got 4"):
        jpeg_round_trip(picture(0, channels=4), 90)


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 90, 95, 99])
@pytest.mark.parametrize("channels", [1, 3])
def test_quality_is_read_off_the_pixels(quality: int, channels: int) -> None:
    images = [jpeg_round_trip(picture(seed, channels), quality) for seed in range(4)]
    assert jpeg_quality(images) == quality


def test_no_quality_is_read_off_images_that_were_never_jpeg() -> None:
    pictures = [picture(seed) for seed in range(4)]
    assert jpeg_quality(pictures) is None
    moved = [jpeg_round_trip(image, 60)[:, 3:, 5:] for image in pictures]  # off the 8 x 8 grid
    assert jpeg_quality(moved) is None
    shrunk = [jpeg_round_trip(image, 60)[:, ::2, ::2] for image in pictures]
    assert jpeg_quality(shrunk) is None


def test_nothing_is_read_off_nothing() -> None:
    assert jpeg_quality([torch.full((3, 16, 16), 128, dtype=torch.uint8)]) is None
    assert jpeg_quality([torch.full((3, 16, 16), 255, dtype=torch.uint8)]) is None
    assert jpeg_quality([picture(0, size=(7, 7))]) is None
