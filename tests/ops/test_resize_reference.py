"""The reference against torch, Pillow and torchvision, and the laws it obeys."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

from lowres_vision.ops import Mix, resize
from lowres_vision.ops._resize.reference import exporting

FILTERS = list(itertools.product(("bilinear", "bicubic"), (False, True)))
PIL_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Each output is a sum of some ten products of weights and values of size 1, in float64.
EPS64 = 64 * torch.finfo(torch.float64).eps
# Pillow's float images are float32, and it rounds between its passes.
EPS32 = 16 * torch.finfo(torch.float32).eps


def reference(*args, **kwargs):
    return resize(*args, impl="reference", **kwargs)


def pillow_resize(image, size, box, mode):
    """Antialiased crop and resize of an (H, W) float image: Pillow on the pixels the box owns."""
    top, left, height, width = box
    y0, x0 = int(np.floor(top)), int(np.floor(left))
    y1, x1 = int(np.ceil(top + height)), int(np.ceil(left + width))
    owned = Image.fromarray(image[y0:y1, x0:x1].float().numpy())
    inner = (left - x0, top - y0, left - x0 + width, top - y0 + height)
    resized = owned.resize((size[1], size[0]), PIL_FILTER[mode], box=inner)
    return torch.from_numpy(np.array(resized))


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize("shape", [(16, 13), (1, 1), (1, 7), (33, 2)])
@pytest.mark.parametrize("size", [(17, 9), (40, 33), (5, 7), (1, 2), (16, 13)])
def test_equals_interpolate_with_gradients(mode, antialias, shape, size):
    x = torch.rand(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    ours = reference(x, size, mode=mode, antialias=antialias)
    theirs = F.interpolate(x, size, mode=mode, antialias=antialias, align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EPS64)
    gradient = torch.randn_like(ours)
    (mine,) = torch.autograd.grad(ours, x, gradient)
    (other,) = torch.autograd.grad(theirs, x, gradient)
    # A gradient sums over as many outputs as read a pixel.
    reads = max(1, ours[0, 0].numel() / x[0, 0].numel())
    torch.testing.assert_close(mine, other, rtol=0, atol=EPS64 * 8 * reads)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 1), (1, 1)])
def test_one_pixel_wide_antialiased_output_equals_pillow(mode, size):
    # torch.nn.functional.interpolate 2.15 repeats the first row here, so it is no reference.
    x = torch.rand(1, 1, 9, 9)
    expected = pillow_resize(x[0, 0], size, (0, 0, 9, 9), mode)
    torch.testing.assert_close(reference(x, size, mode=mode)[0, 0], expected, rtol=0, atol=EPS32)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 20.0, 24.0),
        (3.0, 5.0, 9.0, 11.0),
        (2.25, 3.5, 7.75, 10.0),
        (19.5, 23.25, 0.5, 0.75),  # inside the last pixel
        (0.125, 7.0, 0.25, 17.0),
        (8.0, 8.0, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("size", [(6, 5), (24, 31), (1, 3)])
def test_boxes_equal_pillow(mode, box, size):
    x = torch.rand(1, 1, 20, 24)
    ours = reference(x, size, boxes=torch.tensor([box]), mode=mode)
    expected = pillow_resize(x[0, 0], size, box, mode)
    torch.testing.assert_close(ours[0, 0], expected, rtol=0, atol=EPS32)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_equals_crop_flip_resize_normalize_per_sample(mode, antialias):
    x = torch.rand(5, 3, 32, 40, dtype=torch.float64)
    boxes = torch.tensor(
        [[0, 0, 32, 40], [0, 0, 5, 7], [27, 33, 5, 7], [3, 9, 20, 30], [31, 39, 1, 1]]
    ).float()
    flip = torch.tensor([False, True, False, True, True])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = reference(
        x, (24, 18), boxes=boxes, flip=flip, mean=mean, std=std, mode=mode, antialias=antialias
    )
    for image, box, flipped, result in zip(x, boxes.int().tolist(), flip, ours, strict=True):
        crop = v2.functional.crop(image, *box)
        crop = v2.functional.horizontal_flip(crop) if flipped else crop
        crop = F.interpolate(
            crop[None], (24, 18), mode=mode, antialias=antialias, align_corners=False
        )[0]
        expected = v2.functional.normalize(crop, mean, std)
        torch.testing.assert_close(result, expected, rtol=0, atol=EPS64 / min(std))


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_no_pixel_outside_the_box_is_read(mode, antialias):
    x = torch.rand(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[2.5, 3.0, 4.25, 5.0]])
    reference(x, 9, boxes=boxes, mode=mode, antialias=antialias).sum().backward()
    read = x.grad[0, 0] != 0
    assert read.any(1).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert read.any(0).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_same_size_is_identity(mode, antialias):
    x = torch.rand(2, 3, 9, 7)
    assert torch.equal(reference(x, (9, 7), mode=mode, antialias=antialias), x)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 7.0]]).expand(2, 4)
    assert torch.equal(reference(x, (9, 7), boxes=boxes, mode=mode, antialias=antialias), x)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_constant_stays_constant(mode, antialias):
    x = torch.full((2, 1, 9, 7), 0.625, dtype=torch.float64)
    boxes = torch.tensor([[0.3, 0.4, 5.5, 6.6], [8.0, 6.5, 1.0, 0.5]])
    y = reference(x, (13, 4), boxes=boxes, mode=mode, antialias=antialias)
    torch.testing.assert_close(y, torch.full_like(y, 0.625), rtol=0, atol=EPS64)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_resize_and_its_gradient_are_adjoint(mode, antialias):
    boxes = torch.tensor([[0.3, 0.4, 5.5, 6.6], [2.0, 0.0, 7.0, 7.0]])
    flip = torch.tensor([True, False])
    x = torch.randn(2, 1, 9, 7, dtype=torch.float64, requires_grad=True)
    y = reference(x, (13, 4), boxes=boxes, flip=flip, mode=mode, antialias=antialias)
    v = torch.randn_like(y)
    (adjoint,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close((y * v).sum(), (x * adjoint).sum(), rtol=EPS64, atol=EPS64)


def test_gradcheck_through_everything():
    x = torch.rand(2, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.5, 0.0, 4.0, 3.5], [1.0, 1.0, 2.0, 2.0]])
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.3, 0.9]))

    def run(x):
        return reference(
            x, (3, 6), boxes=boxes, flip=torch.tensor([True, False]), std=[0.5], mode="bicubic",
            mix=mix,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


def test_uint8_is_read_as_0_to_1():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    ours = reference(x, 12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = reference(x.double() / 255, 12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6 / 0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    x = torch.rand(2, 3, 8, 8).to(dtype)
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.3, 0.9]))
    expected = reference(x.float(), 13, mix=mix).to(dtype)
    assert torch.equal(reference(x, 13, mix=mix), expected)


def test_autocast_changes_nothing():
    x = torch.rand(2, 3, 8, 8)
    expected = reference(x, 13)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reference(x, 13), expected)


def test_ragged_list_is_each_image_alone():
    images = [
        torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((8, 9), (1, 30), (40, 5))
    ]
    boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 3.5, 1.0, 20.0], [0.0, 0.0, 40.0, 5.0]])
    flip = torch.tensor([True, False, True])
    expected = torch.cat(
        [
            reference(image[None], (6, 7), boxes=box[None], flip=flipped[None])
            for image, box, flipped in zip(images, boxes, flip, strict=True)
        ]
    )
    assert torch.equal(reference(images, (6, 7), boxes=boxes, flip=flip), expected)
    partner = torch.tensor([2, 0, 1])
    mixed = reference(
        images, (6, 7), boxes=boxes, flip=flip, mix=Mix(partner, torch.tensor([0.0, 0.0, 1.0]))
    )
    assert torch.equal(mixed, torch.stack([expected[2], expected[0], expected[2]]))


def test_mixup_equals_mixing_the_results():
    x = torch.rand(3, 2, 5, 6, dtype=torch.float64)
    partner, lam = torch.tensor([1, 2, 0]), torch.tensor([0.0, 0.25, 1.0])
    plain = reference(x, 8)
    expected = torch.stack(
        [lam[i].item() * plain[i] + (1 - lam[i].item()) * plain[partner[i]] for i in range(3)]
    )
    torch.testing.assert_close(reference(x, 8, mix=Mix(partner, lam)), expected, rtol=0, atol=EPS64)


def test_cutmix_equals_pasting_the_partner():
    x = torch.rand(4, 2, 5, 6)
    partner = torch.tensor([1, 2, 3, 0])
    box = torch.tensor([[0, 0, 8, 9], [2, 3, 4, 5], [6, 7, 50, 50], [3, 3, 0, 4]])
    plain = reference(x, (8, 9))
    expected = plain.clone()
    for i, (top, left, height, width) in enumerate(box.tolist()):
        expected[i, :, top : top + height, left : left + width] = plain[
            partner[i], :, top : top + height, left : left + width
        ]
    ours = reference(x, (8, 9), mix=Mix(partner, torch.rand(4), box))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("answer", [False, True])
def test_exporting_is_known_without_the_private_flag(answer, monkeypatch):
    assert not exporting()
    monkeypatch.delattr(torch.compiler, "_is_exporting_flag", raising=False)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: answer)
    assert exporting() == answer
