from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.augment import Degradation, Degrade, degrade
from lowres_vision.augment._jpeg import jpeg_round_trip
from lowres_vision.data import Manifest, MultiResolutionDataset, decode_image


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, size: tuple[int, int] = (96, 96)) -> list[torch.Tensor]:
    """Discs and bars with sharp edges on even grounds, levels of 30 to 220."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    images = []
    for _ in range(count):
        image = np.full((3, *size), random.uniform(60, 190, (3, 1, 1)))
        for _ in range(8):
            top, left = random.uniform(0, size[0]), random.uniform(0, size[1])
            radius = random.uniform(4, 20)
            disc = (y - top) ** 2 + (x - left) ** 2 < radius**2
            bar = np.abs((y - top) * random.normal() + (x - left) * random.normal()) < radius / 6
            image[:, disc | bar] = random.uniform(30, 220, (3, 1))
        images.append(torch.from_numpy(image.round().astype(np.uint8)))
    return images


def test_shrinking_by_whole_factors_is_pillows_box() -> None:
    image = pictures(1)[0]
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = np.array(pixels.resize((24, 24), Image.Resampling.BOX))
    got = Degrade(shrink=4)(image).permute(1, 2, 0).int()  # type: ignore[union-attr]
    # Pillow rounds to whole levels between its two passes, which moves the result by at most one.
    assert int((got - torch.from_numpy(expected).int()).abs().max()) <= 1
    exact = image.double().reshape(3, 24, 4, 24, 4).mean((2, 4)).permute(1, 2, 0)
    assert torch.equal(got.double(), (exact + 0.5).floor())


def test_the_order_is_blur_shrink_noise_jpeg() -> None:
    image = pictures(1)[0]
    degradation = Degradation(blur=2.0, size=(24, 24), noise=8.0, seed=5, quality=40)
    blurred = degrade(image, Degradation(blur=2.0))
    shrunk = degrade(blurred, Degradation(size=(24, 24)))
    noise = 8.0 * torch.randn(3, 24, 24, generator=generator(5))
    noisy = (shrunk + noise + 0.5).floor().clamp(0, 255).to(torch.uint8)
    got = degrade(image, Degradation(blur=2.0, size=(24, 24), noise=8.0, seed=5))
    # Step by step rounds after the blur and after the shrinking: half a level each, so at most 1.
    assert int((got.int() - noisy.int()).abs().max()) <= 1
    assert torch.equal(degrade(image, degradation), jpeg_round_trip(got, 40))


def test_nothing_asked_for_changes_nothing() -> None:
    image = pictures(1)[0]
    assert torch.equal(Degrade()(image), image)
    assert torch.equal(degrade(image, Degradation()), image)


def test_the_input_is_not_written_to_and_strides_do_not_matter() -> None:
    image = pictures(1)[0]
    before = image.clone()
    transform = Degrade(blur=1.0, shrink=3, noise=4, jpeg=80)
    got = transform(image, generator=generator())
    assert torch.equal(image, before)
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(transform(turned, generator=generator()), got)


def test_noise_has_the_strength_asked_for() -> None:
    image = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    noise = Degrade(noise=6.0)(image, generator=generator()).double() - 128
    # 120,000 values: the standard error of the deviation is 6 / sqrt(240,000) = 0.012.
    assert float(noise.std()) == pytest.approx(np.sqrt(36 + 1 / 12), abs=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.08)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.8  # channels are independent


def test_a_batch_draws_for_each_image_and_repeats_by_generator() -> None:
    batch = torch.stack(pictures(1) * 4)
    transform = Degrade(blur=(0, 3), shrink=2, noise=(0, 9), jpeg=(20, 95), kernel=("area", "box"))
    first, again = (transform(batch, generator=generator(3)) for _ in range(2))
    assert isinstance(first, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert first.shape == (4, 3, 48, 48)
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in pairwise(first))


def test_sizes_drawn_differ_and_come_as_a_list() -> None:
    got = Degrade(shrink=(1, 8))(pictures(6), generator=generator())
    assert isinstance(got, list)
    sides = [image.shape[1] for image in got]
    assert len(set(sides)) > 2
    assert all(12 <= side <= 96 for side in sides)
    whole = Degrade(size=(10, 20))([*pictures(1), *pictures(1, (50, 70))])
    assert isinstance(whole, torch.Tensor)
    assert whole.shape == (2, 3, 10, 20)


def test_draws_cover_their_ranges_evenly() -> None:
    transform = Degrade(blur=(1, 3), shrink=(2, 8), noise=(0, 10), jpeg=(30, 32))
    source = generator()
    draws = [transform.draw((800, 800), generator=source) for _ in range(2000)]
    assert {d.quality for d in draws} == {30, 31, 32}
    assert np.mean([d.blur for d in draws]) == pytest.approx(2, abs=0.05)
    assert np.mean([d.noise for d in draws]) == pytest.approx(5, abs=0.3)
    sides = [d.size[0] for d in draws if d.size]
    assert np.mean(np.log2(np.array(sides) / 100)) == pytest.approx(1, abs=0.05)  # 4 = sqrt(2 * 8)
    assert min(sides) >= 100
    assert max(sides) <= 400


def test_what_is_switched_on_does_not_move_the_other_draws() -> None:
    plain = Degrade(blur=(0, 3), shrink=(2, 8)).draw((96, 96), generator=generator())
    more = Degrade(blur=(0, 3), shrink=(2, 8), noise=9, jpeg=50)
    drawn = more.draw((96, 96), generator=generator())
    assert (drawn.blur, drawn.size) == (plain.blur, plain.size)


def test_a_dataset_keys_its_draws(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    transform = Degrade(shrink=4, noise=(0, 20), jpeg=(30, 90))
    dataset = MultiResolutionDataset(manifest, resolution="high", transform=transform)
    first, again, later = dataset[2, 0], dataset[2, 0], dataset[2, 1]
    assert first.image.shape == (3, 64, 64)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, later.image)


def test_a_range_may_be_a_list() -> None:
    """As files of settings give them."""
    assert Degrade(blur=[0.5, 2.0], jpeg=[60, 95]).draw((8, 8)).quality in range(60, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": (1, 2, 3)}, r"`blur` must be a number or \(low, high\), got \(1, 2, 3\)"),
        ({"blur": -1}, r"`blur` must be >= 0\.0, got -1"),
        ({"noise": (4, 2)}, r"`noise\[1\]` must be >= 4, got 2"),
        ({"shrink": 0.5}, r"`shrink` must be >= 1\.0, got 0\.5"),
        ({"jpeg": (0, 50)}, r"`jpeg\[0\]` must be >= 1 and <= 100, got 0"),
        ({"kernel": "cubic"}, r"`kernel` must be one of 'area', .*, got 'cubic'"),
        ({"kernel": ()}, "`kernel` must name a kernel, got none"),
        ({"shrink": 2, "size": 8}, "give `shrink` or `size`, not both, got 2 and 8"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Degrade(**arguments)  # type: ignore[arg-type]


def test_refusals_of_images() -> None:
    with pytest.raises(TypeError, match=r"`images` must be uint8, got torch\.float32"):
        Degrade()(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(B, C, H, W\), got shape \(8, 8\)"):
        Degrade()(torch.zeros(8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`size` \(9, 9\) must not exceed the image's, \(8, 8\)"):
        Degrade(size=9)(torch.zeros(3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "made",
    [
        Degrade(shrink=4),
        Degrade(shrink=4, kernel="bicubic", blur=1.5),
        Degrade(shrink=4, kernel="aliased_bilinear", noise=2.0),
        Degrade(shrink=4, kernel="lanczos", jpeg=60),
        Degrade(shrink=4, kernel="nearest", blur=1.0, noise=4.0, jpeg=90),
        Degrade(shrink=2.5, kernel="box", noise=8.0, jpeg=40),
    ],
    ids=repr,
)
def test_fit_finds_what_the_pairs_were_made_with(made: Degrade) -> None:
    high = pictures(12, (120, 120))
    source = generator(7)
    low = [made(image, generator=source) for image in high]
    fitted = Degrade.fit(low, high)  # type: ignore[arg-type]
    assert fitted.kernels == made.kernels
    assert fitted.jpeg == made.jpeg
    assert fitted.shrink == pytest.approx(made.shrink)
    # A Gaussian narrower than 0.3 px touches no neighbour, and JPEG and noise hide 0.1 more.
    assert fitted.blur[0] == pytest.approx(made.blur[0], abs=0.1 if made.blur[0] else 0.4)
    assert fitted.noise[0] == pytest.approx(made.noise[0], abs=0.1 + 0.1 * made.noise[0])
    assert fitted.report is not None
    if made.jpeg is None:  # rounding leaves at most 1 / 12 of a squared level, noise its square
        least, most = made.noise[0], np.sqrt(1 / 12 + made.noise[0] ** 2)
        assert 0.98 * least < fitted.report.residual < 1.02 * most


def test_fit_reports_a_chain_it_cannot_follow() -> None:
    high = pictures(6, (96, 96))
    low = [image.flip(2) for image in Degrade(shrink=4)(high)]  # not the same pictures at all
    report = Degrade.fit(low, high).report
    assert report is not None
    assert report.residual > 20
    assert [row[2] for row in report.kernels] == sorted(row[2] for row in report.kernels)
    assert report.kernels[0][0] == report.kernel


def test_fit_takes_several_sizes_and_a_part_of_the_pairs() -> None:
    high = [*pictures(3, (96, 96)), *pictures(3, (64, 128))]
    low = [Degrade(shrink=4, kernel="bicubic")(image) for image in high]
    fitted = Degrade.fit(low, high, max_pairs=4)  # type: ignore[arg-type]
    assert fitted.kernels == ("bicubic",)
    assert fitted.report is not None
    assert fitted.report.pairs == 4


def test_fit_refusals() -> None:
    high = pictures(2)
    low = [Degrade(shrink=4)(image) for image in high]
    with pytest.raises(ValueError, match="must be as many, at least one, got 1 and 2"):
        Degrade.fit(low[:1], high)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must not be larger than `high`, got a factor of 0\.250"):
        Degrade.fit(high, low)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one factor throughout, got 1\.000 to 4\.000"):
        Degrade.fit([low[0], high[1]], high)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"`low` must be uint8, got torch\.float32"):
        Degrade.fit([image / 255 for image in high], high)
    with pytest.raises(ValueError, match="must agree in channels, got 1 and 3"):
        Degrade.fit([low[0][:1], low[1]], high)  # type: ignore[index,list-item]


def test_fit_on_real_pairs(shared_data: Path) -> None:
    """The low images are a box reduction of crops of 227 px, of which the high ones are copies."""
    manifest = Manifest.read_csv(shared_data / "birds25" / "train.csv")
    assert manifest.high is not None
    rows = range(0, len(manifest), len(manifest) // 24)
    low = [decode_image(manifest.root / manifest.low[row]) for row in rows]
    high = [decode_image(manifest.root / manifest.high[row]) for row in rows]
    report = Degrade.fit(low, high).report
    assert report is not None
    assert (report.kernel, report.blur, report.quality) == ("area", 0.0, None)
    assert 2.0 < report.residual < 2.8
    assert report.noise < 1.0

    crops = [degrade(image, Degradation(size=(227, 227), kernel="bicubic")) for image in high]
    report = Degrade.fit(low, crops).report
    assert report is not None
    assert (report.kernel, report.blur) == ("box", 0.0)
    assert report.residual < 1.3
    assert report.kernels[1][2] > 1.8 * report.residual
