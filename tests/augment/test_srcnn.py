import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lowres_vision.augment import SRCNN, psnr, train_srcnn
from lowres_vision.data import Manifest, decode_image


def pairs(count: int, scale: int = 2, side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Slanted edges, and their box reduction."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        angle, offset = random.uniform(0, np.pi), random.uniform(-10, 10)
        side_of = (y - side / 2) * np.sin(angle) + (x - side / 2) * np.cos(angle) > offset
        first, second = random.uniform(20, 235, (2, 3, 1, 1))
        images.append(np.where(side_of, first, second))
    high = torch.from_numpy(np.array(images)).round().to(torch.uint8)
    low = (F.avg_pool2d(high.double(), scale) + 0.5).floor().to(torch.uint8)
    return low, high


def bicubic(low: torch.Tensor, scale: int) -> torch.Tensor:
    side = low.shape[-1] * scale
    enlarged = [
        np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), 3))
        for image in low
    ]
    return torch.from_numpy(np.array(enlarged)).permute(0, 3, 1, 2)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    return (x.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def test_numbers_of_parameters_are_the_papers() -> None:
    count = {
        sizes: sum(p.numel() for p in SRCNN(4, kernel_sizes=sizes).parameters())
        for sizes in ((9, 5, 5), (9, 1, 5))
    }
    assert count == {(9, 5, 5): 69_251, (9, 1, 5): 20_099}


def test_forward_is_bicubic_plus_three_convolutions() -> None:
    images = torch.rand(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    network = SRCNN(2)
    with torch.no_grad():
        network.reconstruction.weight.normal_(generator=torch.Generator().manual_seed(1))
        enlarged = F.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)
        x = F.pad(enlarged, [8] * 4, mode="replicate")
        for layer in (network.features, network.mapping):
            x = F.conv2d(x, layer.weight, layer.bias).relu()
        x = F.conv2d(x, network.reconstruction.weight, network.reconstruction.bias)
        # Sums of 800 float32 products of size up to about 1: 1e-4 is 800 units in the last place.
        torch.testing.assert_close(network(images), enlarged + x, rtol=1e-5, atol=1e-4)
        network.residual = False
        torch.testing.assert_close(network(images), x, rtol=1e-5, atol=1e-4)


def test_an_untrained_residual_network_is_close_to_bicubic() -> None:
    low, high = pairs(3)
    network = SRCNN(2)
    with torch.no_grad():
        network.reconstruction.weight.zero_()
        got = to_uint8(network(low / 255))
    assert int((got.int() - bicubic(low, 2).int()).abs().max()) <= 1
    assert psnr(got, high) == pytest.approx(psnr(bicubic(low, 2), high), abs=0.05)


def test_training_learns_to_copy_without_the_sum() -> None:
    low, high = pairs(24)
    losses: list[float] = []
    network = train_srcnn(
        low[:16],
        high[:16],
        kernel_sizes=(9, 1, 5),
        residual=False,
        steps=80,
        batch_size=8,
        lr=3e-3,
        callback=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 80
    assert not network.training
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    with torch.no_grad():
        assert psnr(to_uint8(network(low[16:] / 255)), high[16:]) > 20  # black images have 8


@pytest.mark.slow
def test_training_beats_bicubic_on_birds_it_has_not_seen(shared_data: Path) -> None:
    manifest = Manifest.read_csv(shared_data / "birds25" / "train.csv")
    assert manifest.high is not None
    low = [decode_image(manifest.root / path) for path in manifest.low]
    high = [decode_image(manifest.root / path) for path in manifest.high]
    held = slice(None, None, 20)
    rows = [row for row in range(len(low)) if row % 20]
    network = train_srcnn(
        [low[row] for row in rows],
        [high[row] for row in rows],
        kernel_sizes=(9, 1, 5),
        steps=300,
    )
    small, large = torch.stack(low[held]), torch.stack(high[held])
    with torch.no_grad():
        got = torch.cat([to_uint8(network(part / 255)) for part in small.split(8)])
    # 300 steps gave 0.58 dB on other held-out rows (seed 0).
    assert psnr(got, large) > psnr(bicubic(small, 4), large) + 0.4


def test_training_repeats_and_leaves_the_default_generator_alone() -> None:
    low, high = pairs(4)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    runs = [train_srcnn(low, high, steps=3, batch_size=2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (run.features.weight for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scale_is_read_off_the_pairs(scale: int) -> None:
    low, high = pairs(2, scale)
    network = train_srcnn(list(low), list(high), steps=1, batch_size=1)
    assert network.scale == scale
    assert network(low / 255).shape == high.shape


def test_training_refusals() -> None:
    low, high = pairs(2)
    with pytest.raises(ValueError, match="must be as many, at least one, got 1 and 2"):
        train_srcnn(low[:1], high)
    with pytest.raises(ValueError, match=r"whole factor >= 2, got \(3, 24, 24\) and \(3, 47, 48\)"):
        train_srcnn(low, high[:, :, 1:])
    with pytest.raises(ValueError, match=r"one factor, got \[2, 4\]"):
        train_srcnn([low[0], low[1][:, ::2, ::2]], high)
    with pytest.raises(ValueError, match=r"sides >= 33, got \(3, 24, 24\)"):
        train_srcnn(low[..., ::2, ::2], low)
    with pytest.raises(TypeError, match=r"`low` must be uint8, got torch\.float32"):
        train_srcnn(low / 255, high)
    with pytest.raises(FloatingPointError, match=r"the loss of step 2 is .*; lower `lr`"):
        train_srcnn(low, high, steps=5, batch_size=1, lr=1e30)
    with pytest.raises(ValueError, match=r"`kernel_sizes` must be odd and positive, got \(8, 5, 5"):
        SRCNN(2, kernel_sizes=(8, 5, 5))
    with pytest.raises(ValueError, match="`scale` must be >= 2, got 1"):
        SRCNN(1)


def test_psnr_is_the_formula_and_refuses_floats() -> None:
    low, high = pairs(3)
    other = bicubic(low, 2)
    expected = [
        10 * math.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))
        for a, b in zip(high.numpy(), other.numpy(), strict=True)
    ]
    assert psnr(other, high) == pytest.approx(np.mean(expected))
    assert psnr(high, high) == math.inf
    with pytest.raises(TypeError, match="`reference` must be uint8"):
        psnr(high, high / 255)
    with pytest.raises(ValueError, match=r"must both be \(B, C, H, W\)"):
        psnr(high, low)
