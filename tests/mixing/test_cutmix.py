import math
from fractions import Fraction

import numpy as np
import pytest
import timm.data.mixup
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from lowres_vision.mixing import cutmix, sample_cutmix, scale_mix
from lowres_vision.mixing._cutmix import _boxes
from lowres_vision.ops import Mix

SIDE = st.integers(1, 70)
DTYPES = [torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64]


def draw(batch: int, size: tuple[int, int], seed: int = 0, **options) -> Mix:
    generator = torch.Generator().manual_seed(seed)
    return sample_cutmix(batch, size, generator=generator, **options)


def images_of(batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, 3, *size), generator=generator).to(dtype)


def paste_by_loop(images, mix):
    mixed = images.clone()
    for b in range(images.shape[0]):
        top, left, height, width = mix.box[b].tolist()
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                if top <= y < top + height and left <= x < left + width:
                    mixed[b, :, y, x] = images[mix.partner[b], :, y, x]
    return mixed


# Drawing


@given(st.floats(0, 1), SIDE, SIDE, st.data())
def test_boxes_are_those_of_the_paper(lam, height, width, data):
    centre_y = data.draw(st.integers(0, height - 1))
    centre_x = data.draw(st.integers(0, width - 1))
    ratio = np.sqrt(1.0 - lam)
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    top = int(np.clip(centre_y - cut_height // 2, 0, height))
    bottom = int(np.clip(centre_y + cut_height // 2, 0, height))
    left = int(np.clip(centre_x - cut_width // 2, 0, width))
    right = int(np.clip(centre_x + cut_width // 2, 0, width))
    box = _boxes(
        torch.tensor([lam], dtype=torch.float64),
        torch.tensor([centre_y]),
        torch.tensor([centre_x]),
        (height, width),
    )
    assert box.tolist() == [[top, left, bottom - top, right - left]]


@given(SIDE, SIDE, st.integers(0, 9), st.booleans(), st.integers(0, 999))
def test_label_share_is_the_realised_area(height, width, batch, per_sample, seed):
    mix = draw(batch, (height, width), seed, per_sample=per_sample)
    for lam, (top, left, box_height, box_width) in zip(mix.lam, mix.box.tolist(), strict=True):
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        share = 1 - Fraction(box_height * box_width, height * width)
        assert lam.item() == np.float32(share.numerator / share.denominator)


@pytest.mark.parametrize("per_sample", [False, True])
def test_shapes_and_dtypes(per_sample):
    mix = draw(5, (8, 12), per_sample=per_sample)
    assert [value.shape for value in mix] == [(5,), (5,), (5, 4)]
    assert [value.dtype for value in mix] == [torch.int64, torch.float32, torch.int64]
    assert (len(mix.box.unique(dim=0)) > 1) == per_sample


def test_height_and_width_keep_their_places():
    boxes = draw(2000, (8, 64), per_sample=True).box
    ends = boxes[:, :2] + boxes[:, 2:]
    assert ends.amax(0).tolist() == [8, 64]
    assert float(boxes[:, 3].float().mean() / boxes[:, 2].float().mean()) > 4


def test_centres_are_uniform_over_the_pixels():
    # With alpha 1e6, lam is 1/2 within 0.002 and a box 2 * (7 // 2) by 2 * (14 // 2), clipped.
    top, left, height, width = draw(40_000, (10, 20), alpha=1e6, per_sample=True).box.unbind(1)
    centre_y = torch.where(top > 0, top + 3, height - 3)
    centre_x = torch.where(left > 0, left + 7, width - 7)
    for centre, side in ((centre_y, 10), (centre_x, 20)):
        counts = torch.bincount(centre, minlength=side).double()
        expected = 40_000 / side
        assert len(counts) == side
        assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


def test_alpha_zero_cuts_nothing():
    mix, images = draw(4, (6, 5), alpha=0), images_of(4, (6, 5))
    assert mix.lam.tolist() == [1.0] * 4
    assert int((mix.box[:, 2] * mix.box[:, 3]).sum()) == 0
    assert torch.equal(cutmix(images, torch.eye(4), mix)[0], images)


def test_torchvision_draws_the_same_boxes():
    height, width = 24, 40
    transform = v2.CutMix(num_classes=2)
    for seed in range(100):
        torch.manual_seed(seed)
        theirs = transform.make_params([torch.zeros(2, 3, height, width)])
        torch.manual_seed(seed)
        lam = transform._dist.sample(()).double()
        centre_x, centre_y = torch.randint(width, (1,)), torch.randint(height, (1,))
        top, left, box_height, box_width = _boxes(lam, centre_y, centre_x, (height, width))[0]
        assert theirs["box"] == (left, top, left + box_width, top + box_height)


# Applying


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equal_to_a_loop(dtype, batch):
    images = images_of(batch, (7, 12), dtype)
    mix = draw(batch, (7, 12), per_sample=True)
    mixed, _ = cutmix(images, torch.eye(batch), mix)
    assert mixed.dtype == dtype
    assert torch.equal(mixed, paste_by_loop(images, mix))


def test_share_of_the_label_is_the_share_of_the_pixels():
    batch, size = 9, (11, 6)
    images = torch.arange(batch).view(-1, 1, 1, 1).expand(-1, 1, *size).float()
    mix = draw(batch, size, per_sample=True)
    mixed, targets = cutmix(images, torch.arange(batch), mix, num_classes=batch)
    for b in range(batch):
        own = int((mixed[b] == b).sum())
        assert targets[b, b].item() == np.float32(own / 66)
        assert targets[b, mix.partner[b]].item() == pytest.approx(1 - own / 66, abs=6e-8)


def test_empty_full_and_overhanging_boxes():
    images = images_of(4, (5, 6))
    box = torch.tensor([[2, 2, 0, 3], [0, 0, 5, 6], [-2, -3, 4, 5], [3, 4, 9, 9]])
    mix = Mix(torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.0, 0.8, 0.8]), box)
    mixed, targets = cutmix(images, torch.arange(4), mix, num_classes=4)
    assert torch.equal(mixed[0], images[0])
    assert torch.equal(mixed[1], images[2])
    assert torch.equal(mixed, paste_by_loop(images, mix))
    assert targets[:2].argmax(1).tolist() == [0, 2]


def test_a_batch_of_one_stays_as_it_is():
    images = images_of(1, (6, 6))
    mixed, targets = cutmix(images, torch.tensor([2]), draw(1, (6, 6)), num_classes=3)
    assert torch.equal(mixed, images)
    assert targets.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "hwc", "expanded"])
def test_memory_layouts_and_untouched_inputs(layout):
    images = images_of(4, (7, 5))
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "hwc":
        images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    elif layout == "expanded":
        images = images[:, :1].expand(-1, 3, -1, -1)
    targets, mix = torch.eye(4), draw(4, (7, 5), per_sample=True)
    before = [value.clone() for value in (images, targets, *mix)]
    mixed, _ = cutmix(images, targets, mix)
    assert torch.equal(mixed, paste_by_loop(images.contiguous(), mix))
    mixed.zero_()
    assert all(map(torch.equal, before, (images, targets, *mix)))


def test_equal_to_timm():
    images, labels = images_of(6, (20, 12)), torch.tensor([0, 1, 2, 0, 1, 1])
    theirs = timm.data.mixup.Mixup(
        mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=3
    )
    for seed in range(10):
        np.random.seed(seed)
        lam, _ = theirs._params_per_batch()
        (y0, y1, x0, x1), lam = timm.data.mixup.cutmix_bbox_and_lam(images.shape, lam)
        box = torch.tensor([[y0, x0, y1 - y0, x1 - x0]]).expand(6, 4)
        mix = Mix(torch.arange(6).flip(0), torch.full((6,), float(lam)), box)
        mixed, targets = cutmix(images, labels, mix, num_classes=3)
        np.random.seed(seed)
        expected_images, expected_targets = theirs(images.clone(), labels)
        assert torch.equal(mixed, expected_images)
        # 1 - lam is rounded once, there in float64 and here in float32.
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=6e-8)


def test_equal_to_torchvision():
    images, labels = images_of(5, (20, 12), torch.uint8), torch.tensor([0, 1, 2, 0, 1])
    theirs = v2.CutMix(num_classes=3)
    for seed in range(10):
        torch.manual_seed(seed)
        params = theirs.make_params([images])
        left, top, right, bottom = params["box"]
        box = torch.tensor([[top, left, bottom - top, right - left]]).expand(5, 4)
        mix = Mix(torch.arange(5).roll(1), torch.full((5,), params["lam_adjusted"]), box)
        mixed, targets = cutmix(images, labels, mix, num_classes=3)
        torch.manual_seed(seed)
        expected_images, expected_targets = theirs(images, labels)
        assert torch.equal(mixed, expected_images)
        torch.testing.assert_close(targets, expected_targets, rtol=0, atol=6e-8)


def test_gradients():
    images = torch.rand(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    mix = draw(3, (4, 5), per_sample=True)
    assert torch.autograd.gradcheck(lambda x, t: cutmix(x, t, mix), (images, soft))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_compiled_equals_eager(dtype):
    images, labels = images_of(4, (7, 5), dtype), torch.tensor([0, 1, 2, 2])
    box = torch.tensor([[2, 2, 0, 3], [0, 0, 7, 5], [-2, -3, 4, 5], [3, 4, 9, 9]])
    mix = Mix(torch.tensor([1, 2, 3, 0]), torch.rand(4), box)
    compiled = torch.compile(cutmix, fullgraph=True, backend="aot_eager")
    actual = compiled(images, labels, mix, num_classes=3)
    assert all(map(torch.equal, actual, cutmix(images, labels, mix, num_classes=3)))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    images, labels, mix = images_of(4, (7, 5)), torch.arange(4), draw(4, (7, 5), per_sample=True)
    moved = Mix(*(value.cuda() for value in mix))
    actual = cutmix(images.cuda(), labels.cuda(), moved, num_classes=4)
    expected = cutmix(images, labels, mix, num_classes=4)
    assert all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("images", "targets", "mix", "message"),
    [
        (torch.zeros(2, 4, 4), torch.eye(2), draw(2, (4, 4)), r"`images` must have shape \(B, C,"),
        (torch.zeros(2, 1, 4, 4), torch.eye(3), draw(2, (4, 4)), "one row for each of 2 images"),
        (torch.zeros(2, 1, 4, 4), torch.tensor(1), draw(2, (4, 4)), "one row for each of 2 images"),
        (
            torch.zeros(2, 1, 4, 4),
            torch.eye(2),
            draw(3, (4, 4)),
            r"`mix.box` must have shape \(2, ",
        ),
        (
            torch.zeros(2, 1, 4, 4),
            torch.eye(2, device="meta"),
            draw(2, (4, 4)),
            "`targets` must be on the images' device, cpu, got meta",
        ),
        (
            torch.zeros(2, 1, 4, 4),
            torch.eye(2),
            draw(2, (4, 4))._replace(box=None),
            "`mix` must have a box, got None: a MixUp draw is applied by `mixup`",
        ),
    ],
)
def test_refusals(images, targets, mix, message):
    with pytest.raises(ValueError, match=message):
        cutmix(images, targets, mix)


# Another resolution


@given(SIDE, SIDE, st.integers(1, 8), st.integers(1, 8), st.integers(0, 999))
def test_scaled_to_multiples_the_box_covers_the_same_share(height, width, by_y, by_x, seed):
    mix = draw(3, (height, width), seed, per_sample=True)
    scaled = scale_mix(mix, (height, width), (height * by_y, width * by_x))
    assert torch.equal(scaled.box, mix.box * torch.tensor([by_y, by_x, by_y, by_x]))
    share = (scaled.box[:, 2] * scaled.box[:, 3]).double() / (height * by_y * width * by_x)
    assert torch.equal((1 - share).float(), mix.lam)
    assert scaled.lam is mix.lam
    back = scale_mix(scaled, (height * by_y, width * by_x), (height, width))
    assert torch.equal(back.box, mix.box)


@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 999))
def test_scaled_edges_are_the_nearest_pixels(height, width, new_height, new_width, seed):
    mix = draw(2, (height, width), seed, per_sample=True)
    scaled = scale_mix(mix, (height, width), (new_height, new_width)).box.tolist()

    def nearest(edge: int, old: int, new: int) -> int:
        return math.floor(Fraction(edge * new, old) + Fraction(1, 2))

    for before, after in zip(mix.box.tolist(), scaled, strict=True):
        for axis, (old, new) in enumerate([(height, new_height), (width, new_width)]):
            start, extent = after[axis], after[axis + 2]
            assert start == nearest(before[axis], old, new)
            assert start + extent == nearest(before[axis] + before[axis + 2], old, new)
            assert 0 <= start <= start + extent <= new


def test_a_mixup_draw_needs_no_scaling():
    mix = Mix(torch.tensor([1, 0]), torch.rand(2), None)
    assert scale_mix(mix, (8, 8), (32, 32)) is mix
    with pytest.raises(ValueError, match=r"`new_size` must be \(height, width\)"):
        scale_mix(mix, (8, 8), (32, 0))
