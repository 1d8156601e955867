import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.library import opcheck

from lowres_vision.ops import Mix, resize
from lowres_vision.ops._resize import native
from lowres_vision.ops._resize.rounded import resize_uint8_op
from lowres_vision.ops._resize.settings import Settings
from lowres_vision.resizer import Resize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIDES = (1, 2, 3, 7, 16, 31, 64, 65, 100)
CASES = 100
IMPLS = ("reference", pytest.param("native", marks=pytest.mark.skipif(
    not native.available(), reason="the C kernel was not built")))  # fmt: skip


def pillow(images, size, mode, boxes=None, flip=None):
    """Resize with Pillow, columns first: its order until 13, which two calls ask for by name."""
    height, width = size
    results = []
    for index, image in enumerate(images):
        item = Image.fromarray(image.permute(1, 2, 0).numpy())
        if boxes is not None:
            top, left, box_height, box_width = boxes[index].tolist()
            item = item.crop((left, top, left + box_width, top + box_height))
        item = item.resize((width, item.height), FILTERS[mode])
        item = item.resize((width, height), FILTERS[mode])
        if flip is not None and flip[index]:
            item = item.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        results.append(torch.from_numpy(np.array(item)).permute(2, 0, 1))
    return torch.stack(results)


def random_case(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    H, W, height, width = (rng.choice(SIDES) for _ in range(4))
    images = torch.randint(0, 256, (2, 3, H, W), dtype=torch.uint8, generator=generator)
    if rng.random() < 0.3:  # edges from black to white make bicubic leave the range
        images = (images > 127).to(torch.uint8) * 255
    if rng.random() < 0.5:
        images = images.contiguous(memory_format=torch.channels_last)
    boxes = flip = None
    if rng.random() < 0.5:
        box_height, box_width = rng.randint(1, H), rng.randint(1, W)
        top, left = rng.randint(0, H - box_height), rng.randint(0, W - box_width)
        boxes = torch.tensor([[0, 0, H, W], [top, left, box_height, box_width]])
        flip = torch.tensor([rng.random() < 0.5, rng.random() < 0.5])
    return images, (height, width), rng.choice(list(FILTERS)), boxes, flip


@pytest.mark.parametrize("impl", IMPLS)
def test_bytes_are_pillows(impl):
    for seed in range(CASES):
        images, size, mode, boxes, flip = random_case(seed)
        result = resize(
            images, size, mode=mode, rounding="uint8", dtype=torch.uint8, impl=impl, flip=flip,
            boxes=None if boxes is None else boxes.double(),
        )  # fmt: skip
        assert torch.equal(result, pillow(images, size, mode, boxes, flip)), seed


@pytest.mark.parametrize(("source", "target"), [(64, 224), (32, 224), (256, 224), (512, 224)])
@pytest.mark.parametrize("mode", FILTERS)
def test_one_call_of_pillow_on_squares(source, target, mode):
    image = np.random.default_rng(0).integers(0, 256, (source, source, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(image).resize((target, target), FILTERS[mode]))
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    ours = resize(images, target, mode=mode, rounding="uint8", dtype=torch.uint8)
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.skipif(not native.available(), reason="the C kernel was not built")
def test_instruction_sets_agree_on_fractional_boxes():
    images = torch.randint(0, 256, (2, 3, 40, 37), dtype=torch.uint8)
    boxes = torch.tensor([[0.25, 3.5, 30.5, 20.125], [39.0, 36.0, 1.0, 1.0]])
    flip = torch.tensor([True, False])
    expected = resize(
        images, (70, 19), boxes=boxes, flip=flip, rounding="uint8", dtype=torch.uint8,
        impl="reference",
    )  # fmt: skip
    best = native.instructions()
    for instructions in ("portable", "avx2", "avx512", "avx512bf16"):
        out = torch.empty_like(expected)
        native.run(out, [images], Settings(boxes, flip), instructions=instructions)
        assert torch.equal(out, expected)
        if instructions == best:
            break


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_rest_follows_at_the_final_size(channels_last):
    images = torch.randint(0, 256, (3, 3, 9, 12), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 12.0], [1.0, 2.0, 5.0, 6.0], [4.0, 0.0, 5.0, 12.0]])
    mix = Mix(torch.tensor([2, 0, 1]), torch.tensor([0.25, 0.5, 1.0]))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    y = resize(
        images, 20, boxes=boxes, rounding="uint8", mean=mean, std=std, mix=mix,
        dtype=torch.bfloat16, channels_last=channels_last,
    )  # fmt: skip
    small = pillow(images, (20, 20), "bilinear", boxes.long()).double() / 255
    small = (small - mean[:, None, None]) / std[:, None, None]
    lam = mix.lam[:, None, None, None]
    expected = lam * small + (1 - lam) * small[mix.partner]
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    bound = 2 * torch.finfo(torch.bfloat16).eps  # values up to 3 round by one eps of 2
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound)


def test_lists_out_and_empty_batches():
    images = [torch.randint(0, 256, (3, *s), dtype=torch.uint8) for s in ((8, 9), (1, 30))]
    kwargs = {"rounding": "uint8", "dtype": torch.uint8}
    result = resize(images, (6, 7), **kwargs)
    for image, y in zip(images, result, strict=True):
        assert torch.equal(y, pillow(image[None], (6, 7), "bilinear")[0])
    out = torch.zeros_like(result)
    assert resize(images, (6, 7), rounding="uint8", out=out) is out
    assert torch.equal(out, result)
    none = torch.empty(0, 3, 4, 4, dtype=torch.uint8)
    assert resize(none, 8, rounding="uint8").shape == (0, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_operator_compiles_exports_and_maps():
    images = torch.randint(0, 256, (4, 2, 3, 6, 5), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 6.0, 5.0], [1.0, 1.0, 4.0, 3.0]])
    flip = torch.tensor([True, False])
    opcheck(resize_uint8_op, (images[0], 7, 8, boxes, flip, "bicubic"))

    def run(x):
        return resize(x, (7, 8), boxes=boxes, flip=flip, rounding="uint8", std=(0.2, 0.3, 0.4))

    expected = torch.stack([run(x) for x in images])
    assert torch.equal(torch.vmap(run)(images), expected)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images[0]), expected[0])
    module = Resize((7, 8), rounding="uint8", dtype=torch.float32)
    program = torch.export.export(module, (images[0],))
    assert not any("lowres_vision" in str(node.target) for node in program.graph.nodes)
    # The exported graph is the reference; only the order of the last affine map differs.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(program.module()(images[0]), module(images[0]), rtol=0, atol=2 * eps)


def test_refusals_say_why():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="`rounding`='uint8' needs uint8 images, got"):
        resize(images.float(), 8, rounding="uint8")
    with pytest.raises(ValueError, match="`rounding`='uint8' is Pillow's"):
        resize(images, 8, rounding="uint8", antialias=False)
    with pytest.raises(ValueError, match="leaves no room for `mean`"):
        resize(images, 8, rounding="uint8", dtype=torch.uint8, mean=(0.5, 0.5, 0.5))
    with pytest.raises(RuntimeError, match="`impl`='triton' needs Triton"):
        resize(images, 8, rounding="uint8", impl="triton")
    with pytest.raises(ValueError, match="`rounding` must be one of 'uint8', got 'int8'"):
        resize(images, 8, rounding="int8")
    with pytest.raises(TypeError, match=r"`dtype` must be a float dtype or torch\.uint8"):
        resize(images, 8, rounding="uint8", dtype=torch.int32)
    with pytest.raises(TypeError, match=r"`dtype` must be a float dtype, got torch\.uint8"):
        resize(images, 8, dtype=torch.uint8)
