"""The Triton kernels against the reference, on the CPU, under Triton's interpreter.

Triton decides when it is imported whether it interprets, so ``test_resize_triton.py`` runs this
file in a process of its own. The interpreter truncates float32 to bfloat16 where a device rounds;
a bfloat16 result may thus be one unit in the last place off.
"""

import random

import pytest
import torch

from lowres_vision.ops._resize import cuda, native
from lowres_vision.ops._resize.reference import (
    compose,
    mix_backward_reference,
    resize_backward_reference,
)
from lowres_vision.ops._resize.rounded import resize_uint8_reference
from lowres_vision.ops._resize.settings import Settings

# Weights and products are float32: some ten roundings of values up to 2.6 standard deviations.
EPS32 = torch.finfo(torch.float32).eps
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_images(rng, generator, shape, dtype):
    """Images (B, C, H, W) of the dtype, in one of the layouts that callers have."""
    B, C, H, W = shape
    layout = rng.choice(["planes", "pixels", "strided", "expanded"])
    if layout == "pixels":
        values = torch.rand(B, H, W, C, generator=generator).permute(0, 3, 1, 2)
    elif layout == "strided":
        values = torch.rand(B, C, 2 * H, 3 * W, generator=generator)[:, :, ::2, 1::3]
    elif layout == "expanded":
        values = torch.rand(B, 1, H, W, generator=generator).expand(B, C, H, W)
    else:
        values = torch.rand(B, C, H, W, generator=generator)
    return (values * 255).to(torch.uint8) if dtype == torch.uint8 else values.to(dtype)


def random_box(rng, H, W):
    """A box (top, left, height, width): whole, at an edge, one pixel, or anywhere."""
    sides = []
    for length in (H, W):
        kind = rng.choice(["all", "start", "end", "pixel", "any"])
        extent = {"all": length, "pixel": 1}.get(kind, rng.uniform(0.05, 1) * length)
        room = length - extent
        start = {"all": 0, "start": 0, "end": room}.get(kind, rng.uniform(0, room))
        sides.append((int(start) if kind == "pixel" else start, extent))
    (top, height), (left, width) = sides
    return top, left, height, width


def random_case(seed):
    """Images, what to do with them, and how to store the result."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    B, C = rng.choice([1, 2, 3]), rng.choice([1, 2, 3])
    H, W, height, width = (rng.choice([1, 2, 3, 7, 12]) for _ in range(4))
    images = random_images(rng, generator, (B, C, H, W), rng.choice([torch.uint8, *DTYPES]))
    boxes = flip = gain = bias = partner = lam = paste = None
    if rng.random() < 0.6:
        boxes = torch.tensor([random_box(rng, H, W) for _ in range(B)], dtype=torch.float64)
    if rng.random() < 0.5:
        flip = torch.tensor([rng.random() < 0.5 for _ in range(B)])
    if images.dtype == torch.uint8 or rng.random() < 0.5:
        gain = 0.5 + torch.rand(C, generator=generator, dtype=torch.float64)
        gain = gain / 255 if images.dtype == torch.uint8 else gain
        bias = torch.randn(C, generator=generator, dtype=torch.float64)
    if rng.random() < 0.5:
        partner = torch.randint(B, (B,), generator=generator)
        lam = torch.rand(B, generator=generator)
        if rng.random() < 0.5:
            corners = torch.randint(-2, max(height, width), (B, 2), generator=generator)
            paste = torch.cat([corners, torch.randint(0, 20, (B, 2), generator=generator)], 1)
    how = (rng.choice(["bilinear", "bicubic"]), rng.random() < 0.6)
    store = (height, width, rng.choice(DTYPES), rng.random() < 0.4)
    return images, Settings(boxes, flip, gain, bias, *how, partner, lam, paste), store


def guarded(shape, dtype, channels_last=False):
    """NaN everywhere, in the middle of a buffer of NaN: the pair (buffer, middle)."""
    B, *rest = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    buffer = torch.full((B + 2, *rest), torch.nan, dtype=dtype).contiguous(memory_format=layout)
    return buffer, buffer[1:-1]


def check(buffer, out, expected):
    scale = max(1.0, expected.abs().max().item())
    atol = 32 * EPS32 * scale
    if out.dtype != torch.float32:
        atol += torch.finfo(out.dtype).eps * scale
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
    assert buffer[0].isnan().all()
    assert buffer[-1].isnan().all()


def check_forward(images, settings, store):
    height, width, dtype, channels_last = store
    buffer, out = guarded((*images.shape[:2], height, width), dtype, channels_last)
    cuda.run(out, [images], settings)
    expected = compose([images.double()], height, width, settings, torch.float64, ragged=False)
    check(buffer, out, expected)


def check_backward(images, settings, store):
    height, width, dtype, channels_last = store
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(*images.shape[:2], height, width, generator=generator).to(dtype)
    if channels_last:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    buffer, out = guarded(images.shape, dtype)
    cuda.run(out, [gradient], settings, backward=True)
    parts = mix_backward_reference(gradient.double(), settings)
    expected = resize_backward_reference(parts, *images.shape[-2:], settings, torch.float64)
    check(buffer, out, expected)


@pytest.mark.parametrize("seed", range(24))
def test_random_cases_equal_the_reference(seed):
    images, settings, store = random_case(seed)
    check_forward(images, settings, store)
    check_backward(images, settings, store)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(35, 270), (3, 40), (2, 1)])  # two programs each way
def test_sizes_at_the_kernels_limits(mode, antialias, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 2, 12, 14), dtype=torch.uint8, generator=generator)
    settings = Settings(gain=torch.full((2,), 1 / 255), mode=mode, antialias=antialias)
    for channels_last in (False, True):
        check_forward(images, settings, (*size, torch.float32, channels_last))


@pytest.mark.parametrize("paste", [None, torch.tensor([[0, 1, 3, 4], [2, 0, 9, 9]] * 3)])
def test_gradient_of_a_shared_partner(paste):
    # Image 1 serves four; 9 and -1 are no image, and give nobody anything.
    partner, lam = torch.tensor([1, 1, 9, 1, 1, -1]), torch.rand(6)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 5.0], [1.0, 1.5, 3.0, 3.0]] * 3, dtype=torch.float64)
    flip, gain = torch.tensor([True, False] * 3), torch.tensor([0.5])
    settings = Settings(boxes, flip, gain, partner=partner, lam=lam, paste=paste)
    gradient = torch.randn(6, 1, 5, 6)
    outs = torch.full((2, 6, 1, 4, 5), torch.nan)
    for out in outs:
        cuda.run(out, [gradient], settings, backward=True)
    assert torch.equal(*outs)
    parts = gradient.double() * 0
    for image, other in enumerate(partner.tolist()):
        inside = torch.zeros(5, 6, dtype=torch.float64)
        if paste is None:
            inside[:] = 1 - lam[image]
        else:
            top, left, height, width = paste[image].tolist()
            inside[top : top + height, left : left + width] = 1
        parts[image] += (1 - inside) * gradient[image]
        if 0 <= other < 6:
            parts[other] += inside * gradient[image]
    expected = resize_backward_reference(parts, 4, 5, settings, torch.float64)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(outs[0].double(), expected, rtol=0, atol=32 * EPS32 * scale)


@pytest.mark.parametrize("seed", range(16))
def test_bytes_equal_the_references_bit_for_bit(seed):
    rng = random.Random(seed)
    images, settings, store = random_case(seed)
    height, width, _, channels_last = store
    if images.dtype != torch.uint8:
        images = (images.float() * 255).to(torch.uint8)
    if rng.random() < 0.3:  # edges from black to white make bicubic leave the range
        images = (images > 127).to(torch.uint8) * 255
    settings = Settings(settings.boxes, settings.flip, mode=settings.mode)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(len(images) + 2, images.shape[1], height, width, dtype=torch.uint8)
    out = out.contiguous(memory_format=layout)
    expected = resize_uint8_reference(
        images, height, width, settings.boxes, settings.flip, settings.mode
    )
    for filling in (0, 255):  # what is not written differs once
        out.fill_(filling)
        cuda.run(out[1:-1], [images], settings)
        assert torch.equal(out[1:-1], expected)
        assert (out[[0, -1]] == filling).all()
    if native.available():
        out = torch.empty_like(expected)
        native.run(out, [images], settings)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), [(64, 100), (100, 40)])  # the two forward kernels
def test_bytes_of_long_axes_equal_the_references(mode, source, target):
    images = torch.randint(0, 256, (1, 1, 3, source), dtype=torch.uint8)
    out = torch.empty(1, 1, 2, target, dtype=torch.uint8)
    cuda.run(out, [images], Settings(mode=mode))
    assert torch.equal(out, resize_uint8_reference(images, *out.shape[2:], None, None, mode))


def test_gradient_of_a_wide_image_in_a_narrow_window():
    # 33 columns read by 300, more than are summed at a time.
    images = torch.empty(1, 1, 2, 33)
    boxes = torch.tensor([[0.0, 30.0, 2.0, 2.0]], dtype=torch.float64)
    for flip in (None, torch.tensor([True])):
        check_backward(images, Settings(boxes, flip), (3, 300, torch.float32, False))


@pytest.mark.parametrize(("mode", "limit"), [("bilinear", 2e-6), ("bicubic", 5e-6)])
def test_error_against_float64(mode, limit):
    images = torch.rand(1, 1, 64, 16, generator=torch.Generator().manual_seed(0))
    settings = Settings(mode=mode)
    out = torch.empty(1, 1, 224, 56)
    cuda.run(out, [images], settings)
    expected = compose([images.double()], 224, 56, settings, torch.float64, ragged=False)
    assert (out - expected).abs().max() <= limit


def test_nothing_outside_the_box_is_read():
    images = torch.full((1, 1, 12, 12), torch.nan)
    images[..., 2:7, 3:8] = torch.rand(5, 5)
    boxes = torch.tensor([[2.5, 3.0, 4.25, 5.0]], dtype=torch.float64)
    for mode in ("bilinear", "bicubic"):
        for antialias in (False, True):
            for size in (9, 3, 1):
                out = torch.empty(1, 1, size, size)
                cuda.run(out, [images], Settings(boxes, mode=mode, antialias=antialias))
                assert out.isfinite().all()


@pytest.mark.parametrize("paste", [None, torch.tensor([[0, 0, 4, 4]] * 3)])
@pytest.mark.parametrize("height", [5, 1])  # the two forward kernels
def test_a_partner_outside_the_batch_gives_nan(paste, height):
    images = torch.rand(3, 1, 30, 4)
    out = torch.empty(3, 1, height, 4)
    partner, lam = torch.tensor([-1, 0, 3]), torch.full((3,), 0.5)
    cuda.run(out, [images], Settings(partner=partner, lam=lam, paste=paste))
    assert out[[0, 2]].isnan().all()
    assert out[1].isfinite().all()


def test_the_probe_passes():
    assert cuda.works(torch.device("cpu"))


def test_empty_batch():
    cuda.run(torch.empty(0, 3, 4, 4), [torch.empty(0, 3, 2, 2)], Settings())
