import numpy as np
import pytest
import timm.data.mixup
import torch
from torchvision.transforms import v2

from lowres_vision.mixing import mixup, sample_mixup
from lowres_vision.ops import Mix


def draw(batch: int, seed: int = 0, **options) -> Mix:
    return sample_mixup(batch, generator=torch.Generator().manual_seed(seed), **options)


def images_of(batch: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, 3, 7, 5), generator=generator).to(dtype)


def blend_by_loop(images, mix):
    """Float64, exact but for its own rounding."""
    images = images.double()
    return torch.stack(
        [
            lam * image + (1 - lam) * images[partner]
            for image, partner, lam in zip(
                images, mix.partner.tolist(), mix.lam.tolist(), strict=True
            )
        ]
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_draw(per_sample):
    mix = draw(50, per_sample=per_sample)
    assert mix.box is None
    assert (mix.partner.dtype, mix.lam.dtype) == (torch.int64, torch.float32)
    assert (len(mix.lam.unique()) > 1) == per_sample
    assert draw(3, alpha=0).lam.tolist() == [1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_float_images_equal_a_loop(dtype, batch):
    images, mix = images_of(batch, dtype) / 256, draw(batch, per_sample=True)
    mixed, _ = mixup(images, torch.eye(batch), mix)
    assert mixed.dtype == dtype
    # Of numbers below 1, a rounding is off by eps / 4: one to the dtype, three in the average,
    # which is float32 at least.
    eps = torch.finfo(dtype).eps
    error = (mixed.double() - blend_by_loop(images, mix)).abs().max()
    assert float(error) <= (eps + 3 * min(eps, torch.finfo(torch.float32).eps)) / 4


def test_uint8_is_rounded_to_the_nearest():
    images, mix = images_of(32, torch.uint8), draw(32, per_sample=True)
    mixed, _ = mixup(images, torch.eye(32), mix)
    assert mixed.dtype == torch.uint8
    error = (mixed.double() - blend_by_loop(images, mix)).abs()
    # Float32 averages of numbers below 256 are within 3 * 2^-17 of exact.
    assert float(error.max()) <= 0.5 + 3 * 2**-17
    assert float(error.max()) > 0.49


def test_uint8_halves_go_to_even():
    images = torch.tensor([0, 1, 2, 3, 255, 254], dtype=torch.uint8).reshape(6, 1, 1, 1)
    mix = Mix(torch.tensor([1, 0, 3, 2, 5, 4]), torch.full((6,), 0.5), None)
    assert mixup(images, torch.eye(6), mix)[0].flatten().tolist() == [0, 0, 2, 2, 254, 254]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_lam_zero_and_one_are_exact(dtype):
    images = images_of(4, dtype)
    mix = Mix(torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.0, 1.0, 0.0]), None)
    mixed, targets = mixup(images, torch.arange(4), mix, num_classes=4)
    assert torch.equal(mixed, images[[0, 2, 2, 0]])
    assert targets.argmax(1).tolist() == [0, 2, 2, 0]


def test_a_batch_of_one_stays_as_it_is():
    images = torch.rand(1, 3, 4, 4)
    mixed, targets = mixup(images, torch.tensor([1]), draw(1), num_classes=2)
    assert torch.equal(mixed, images)
    assert targets.tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_are_untouched(dtype, channels_last):
    images, targets, mix = images_of(4, dtype), torch.eye(4), draw(4)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = [value.clone() for value in (images, targets, mix.partner, mix.lam)]
    mixed, _ = mixup(images, targets, mix)
    torch.testing.assert_close(mixed, mixup(images.contiguous(), targets, mix)[0], rtol=0, atol=0)
    mixed.zero_()
    assert all(map(torch.equal, before, (images, targets, mix.partner, mix.lam)))


def test_equal_to_torchvision():
    images, labels = images_of(5) / 255, torch.tensor([0, 1, 2, 0, 1])
    theirs = v2.MixUp(num_classes=3)
    for seed in range(10):
        torch.manual_seed(seed)
        lam = theirs.make_params([])["lam"]
        mix = Mix(torch.arange(5).roll(1), torch.full((5,), lam), None)
        torch.manual_seed(seed)
        expected = theirs(images, labels)
        actual = mixup(images, labels, mix, num_classes=3)
        # Both round three times, numbers below 1.
        torch.testing.assert_close(actual, expected, rtol=0, atol=6 * 2**-24)


def test_equal_to_timm():
    images, labels = images_of(6) / 255, torch.tensor([0, 1, 2, 0, 1, 1])
    theirs = timm.data.mixup.Mixup(mixup_alpha=0.4, label_smoothing=0.0, num_classes=3)
    for seed in range(10):
        np.random.seed(seed)
        lam, _ = theirs._params_per_batch()
        mix = Mix(torch.arange(6).flip(0), torch.full((6,), lam), None)
        np.random.seed(seed)
        expected = theirs(images.clone(), labels)
        actual = mixup(images, labels, mix, num_classes=3)
        torch.testing.assert_close(actual, expected, rtol=0, atol=6 * 2**-24)


def test_gradients():
    images = torch.rand(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    mix = draw(3, per_sample=True)
    assert torch.autograd.gradcheck(lambda x, t: mixup(x, t, mix), (images, soft))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_compiled_equals_eager(dtype):
    images, labels, mix = images_of(4, dtype), torch.tensor([0, 1, 2, 2]), draw(4, per_sample=True)
    compiled = torch.compile(mixup, fullgraph=True, backend="aot_eager")
    actual = compiled(images, labels, mix, num_classes=3)
    expected = mixup(images, labels, mix, num_classes=3)
    torch.testing.assert_close(actual, expected, rtol=2**-22, atol=0)


def test_refusals():
    box = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="`mix` must have no box: a CutMix draw is applied by"):
        mixup(torch.zeros(2, 1, 4, 4), torch.eye(2), draw(2)._replace(box=box))
    with pytest.raises(TypeError, match=r"`images` must be uint8 or float, got torch.int32"):
        mixup(torch.zeros(2, 1, 4, 4, dtype=torch.int32), torch.eye(2), draw(2))
    with pytest.raises(ValueError, match=r"`images` must have shape \(B, C, H, W\), got \(2, 4\)"):
        mixup(torch.zeros(2, 4), torch.eye(2), draw(2))
