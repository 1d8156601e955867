"""The C kernel against the reference, over every instruction set this machine has."""

import os
import random
import subprocess
import sys
import threading

import pytest
import torch
from torch.library import opcheck

from lowres_vision.ops import Mix, resize
from lowres_vision.ops._resize import native
from lowres_vision.ops._resize.checks import box_slack, check_values
from lowres_vision.ops._resize.operator import (
    resize_backward_op,
    resize_op,
    resize_out_op,
    resize_ragged_op,
)
from lowres_vision.ops._resize.reference import compose, resize_backward_reference
from lowres_vision.ops._resize.settings import Settings

pytestmark = pytest.mark.skipif(not native.available(), reason="the C kernel was not built")

SETS = ("portable", "avx2", "avx512", "avx512bf16")
CASES = 500
# Weights and products are float32: some ten roundings of values up to 2.6 standard deviations.
EPS32 = torch.finfo(torch.float32).eps


def instruction_sets():
    if not native.available():
        return ["portable"]
    return SETS[: SETS.index(native.instructions()) + 1]


def random_images(rng, generator, shape, dtype):
    """Images (B, C, H, W) of the dtype, in one of the layouts that callers have."""
    B, C, H, W = shape
    layout = rng.choice(["planes", "pixels", "strided", "mirrored", "transposed"])
    if layout == "pixels":
        values = torch.rand(B, H, W, C, generator=generator).permute(0, 3, 1, 2)
    elif layout == "strided":
        values = torch.rand(B, C, 2 * H, 3 * W, generator=generator)[:, :, ::2, 1::3]
    elif layout == "mirrored":
        values = torch.rand(B, 1, H, W, generator=generator).expand(B, C, H, W)
    elif layout == "transposed":
        values = torch.rand(B, C, W, H, generator=generator).mT
    else:
        values = torch.rand(B, C, H, W, generator=generator)
    return (values * 255).to(torch.uint8) if dtype == torch.uint8 else values.to(dtype)


def random_box(rng, H, W):
    """A box (top, left, height, width): whole, at an edge, a pixel, or anywhere."""
    sides = []
    for length in (H, W):
        kind = rng.choice(["all", "start", "end", "pixel", "any", "whole"])
        extent = {"all": length, "pixel": 1}.get(kind, rng.uniform(0.05, 1) * length)
        extent = float(max(1, round(extent))) if kind == "whole" else float(extent)
        room = length - extent
        start = {"all": 0.0, "start": 0.0, "end": room}.get(kind, rng.uniform(0, room))
        start = float(int(start)) if kind in ("whole", "pixel") else start
        sides.append((start, extent))
    (top, height), (left, width) = sides
    return top, left, height, width


def random_case(seed):
    """Arguments of `resize_op`, with float64 boxes so that no box rounds out of its image."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, 2, 3, 5, 8, 13, 16, 31, 32, 48, 65]
    B, C = rng.choice([1, 1, 2, 3, 5]), rng.choice([1, 2, 3, 3, 3, 5])
    H, W, height, width = (rng.choice(lengths) for _ in range(4))
    image_type = rng.choice(
        [torch.uint8, torch.uint8, torch.float32, torch.float16, torch.bfloat16]
    )
    images = random_images(rng, generator, (B, C, H, W), image_type)
    boxes = flip = gain = bias = partner = lam = paste = None
    if rng.random() < 0.6:
        boxes = torch.tensor([random_box(rng, H, W) for _ in range(B)], dtype=torch.float64)
    if rng.random() < 0.5:
        flip = torch.tensor([rng.random() < 0.5 for _ in range(B)])
    if rng.random() < 0.7 or image_type == torch.uint8:
        gain = 0.5 + torch.rand(C, generator=generator, dtype=torch.float64)
        gain = gain / 255 if image_type == torch.uint8 else gain
        bias = torch.randn(C, generator=generator, dtype=torch.float64)
    if rng.random() < 0.4:
        partner = torch.randint(B, (B,), generator=generator)
        lam = torch.rand(B, generator=generator)
        if rng.random() < 0.5:
            corners = torch.randint(-2, max(height, width), (B, 2), generator=generator)
            paste = torch.cat([corners, torch.randint(0, 40, (B, 2), generator=generator)], 1)
    mode = rng.choice(["bilinear", "bicubic"])
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    return (
        images, height, width, boxes, flip, gain, bias, mode, rng.random() < 0.6, dtype,
        rng.random() < 0.5, partner, lam, paste,
    )  # fmt: skip


def tolerance(dtype, scale):
    # Half dtypes round once more, half a unit in the last place of values up to `scale`.
    return 32 * EPS32 * scale + (0 if dtype == torch.float32 else torch.finfo(dtype).eps * scale)


def check_forward(case, instructions=None):
    images, height, width, *settings, dtype, channels_last, partner, lam, paste = case
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.full((*images.shape[:2], height, width), torch.nan, dtype=dtype)
    out = out.contiguous(memory_format=layout)
    settings = Settings(*settings, partner, lam, paste)
    native.run(out, [images], settings, instructions=instructions)
    expected = compose([images.double()], height, width, settings, torch.float64, ragged=False)
    atol = tolerance(dtype, max(1.0, expected.abs().max().item()))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


def check_backward(case, instructions=None):
    images, height, width, boxes, flip, gain, _, mode, antialias, dtype = case[:10]
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(*images.shape[:2], height, width, generator=generator)
    gradient = gradient.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    out = torch.full(images.shape, torch.nan, dtype=dtype)
    settings = Settings(boxes, flip, gain, None, mode, antialias)
    native.run(out, [gradient], settings, backward=True, instructions=instructions)
    expected = resize_backward_reference(gradient, *images.shape[-2:], settings, torch.float64)
    # A pixel's gradient sums over what reads it; the largest sum bounds the roundings.
    atol = tolerance(dtype, max(1.0, expected.abs().max().item()))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("instructions", instruction_sets())
def test_random_cases_equal_the_reference(instructions):
    for seed in range(CASES):
        case = random_case(seed)
        check_forward(case, instructions)
        check_backward(case, instructions)


@pytest.mark.parametrize(
    ("mode", "limit"),
    # Bilinear weights are a product of two; bicubic ones sum to 1 from terms up to 1.6.
    [("bilinear", 2e-6), ("bicubic", 5e-6)],
)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("source", "target"), [(64, 224), (256, 224), (32, 224), (512, 224)])
def test_error_against_float64(mode, limit, antialias, source, target):
    images = torch.rand(1, 3, source, source)
    expected = resize(images.double(), target, mode=mode, antialias=antialias)
    for instructions in instruction_sets():
        out = torch.empty(expected.shape)
        settings = Settings(mode=mode, antialias=antialias)
        native.run(out, [images], settings, instructions=instructions)
        assert (out - expected).abs().max() <= limit


@pytest.mark.parametrize("instructions", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_equal_torchs_bit_for_bit(instructions, dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    # Every number, what lies half-way to its neighbour, and either side of that.
    wide = every.float()
    half = (wide + torch.nextafter(every, torch.tensor(torch.inf).to(dtype)).float()) / 2
    values = torch.cat([wide, half, half.nextafter(wide), half.nextafter(2 * wide)])
    values = torch.cat([values, torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0])])
    row = values[None, None, None]
    narrow = torch.empty(row.shape, dtype=dtype)
    native.run(narrow, [row], Settings(antialias=False), instructions=instructions)
    # A neighbour that is infinite or NaN meets a weight of 0, so only finite ones are compared.
    finite = values.isfinite() & values.roll(-1).isfinite()
    assert torch.equal(narrow.flatten()[finite], values.to(dtype)[finite])
    wide_rows = torch.empty(len(values), 1, 1, 33, dtype=dtype)  # a vector's width and one more
    native.run(wide_rows, [values[:, None, None, None]], Settings(), instructions=instructions)
    expected = values.to(dtype)[:, None].expand(-1, 33)
    torch.testing.assert_close(wide_rows[:, 0, 0], expected, rtol=0, atol=0, equal_nan=True)
    back = torch.empty(len(every), 1, 1, 1)
    native.run(back, [every[:, None, None, None]], Settings(), instructions=instructions)
    assert torch.equal(back.flatten(), wide)


def small_case(dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 6, 5, generator=generator).to(dtype)
    boxes = torch.tensor([[0.0, 0.0, 6.0, 5.0], [1.5, 0.0, 3.0, 2.5], [5.0, 4.0, 1.0, 1.0]])
    flip = torch.tensor([True, False, True])
    gain, bias = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 0.0])
    partner, lam = torch.tensor([1, 1, 0]), torch.tensor([0.2, 0.5, 1.0])
    return images.requires_grad_(requires_grad), (boxes, flip, gain, bias), (partner, lam)


@pytest.mark.parametrize("paste", [None, torch.tensor([[0, 0, 2, 3], [1, 1, 9, 9], [2, 2, 0, 1]])])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck(paste, channels_last):
    images, settings, mix = small_case()
    rest = (7, 8, torch.float32, channels_last, *settings, "bicubic", True, *mix, paste)
    opcheck(resize_op, (images, *rest))
    opcheck(resize_op, (images.detach().to(torch.uint8), *rest))
    ragged = [image.clone().requires_grad_() for image in images.detach()]
    opcheck(resize_ragged_op, (ragged, *rest))
    out = torch.empty(3, 2, 7, 8)
    opcheck(
        resize_out_op,
        (out, [images.detach()], False, *settings, "bilinear", False, *mix, paste),
    )
    gradient = torch.rand(3, 2, 7, 8, requires_grad=True)
    rest = (6, 5, torch.float32, *settings[:3], "bilinear", True, *mix, paste)
    opcheck(resize_backward_op, (gradient, *rest))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_gradcheck_of_the_operators(mode, antialias):
    # In float64 the operators run the reference: this checks formulas, the next test the kernel.
    images, settings, mix = small_case(torch.float64)
    rest = (4, 7, torch.float64, False, *settings, mode, antialias, *mix, None)
    assert torch.autograd.gradcheck(lambda x: resize_op(x, *rest), images)
    assert torch.autograd.gradgradcheck(lambda x: resize_op(x, *rest), images)


def test_first_and_second_gradients_equal_the_references():
    results = []
    for impl in ("native", "reference"):
        images, (boxes, flip, *_), mix = small_case()
        y = resize(images, (4, 7), boxes=boxes, flip=flip, std=[0.5, 2.0], mix=Mix(*mix), impl=impl)
        # The gradient depends on the images through the square.
        (first,) = torch.autograd.grad((y**2).sum(), images, create_graph=True)
        (second,) = torch.autograd.grad((first**3).sum(), images)
        results.append((y, first, second))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=64 * EPS32, atol=64 * EPS32)


def test_kernel_and_its_backward_are_adjoint():
    images, (boxes, flip, gain, _), _ = small_case(requires_grad=False)
    v = torch.randn(3, 2, 9, 4)
    y = torch.empty_like(v)
    settings = Settings(boxes, flip, gain, mode="bicubic")
    native.run(y, [images], settings)
    back = torch.empty_like(images)
    native.run(back, [v], settings, backward=True)
    left, right = (y.double() * v).sum(), (images.double() * back).sum()
    torch.testing.assert_close(left, right, rtol=0, atol=64 * EPS32 * y.abs().sum().item())


def test_backward_repeats_bit_for_bit_on_any_number_of_threads():
    images = torch.rand(4, 3, 33, 31, requires_grad=True)
    before = torch.get_num_threads()
    gradients = []
    try:
        for threads in (1, 2, 2, 3, 7):
            torch.set_num_threads(threads)
            y = resize(images, (70, 20), impl="native")
            gradients += torch.autograd.grad(y, images, torch.linspace(0, 1, y.numel()).view_as(y))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients[1:])


def test_callers_in_many_threads_do_not_disturb_each_other():
    images = [torch.rand(2, 3, 8 + i, 9) for i in range(8)]
    expected = [resize(x, 30, impl="native") for x in images]
    wrong = []

    def work(i):
        for _ in range(30):
            if not torch.equal(resize(images[i], 30, impl="native"), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os, sys, warnings
import torch
from lowres_vision.ops import output_pool, resize

warnings.simplefilter("ignore")  # forking with threads is what is tested
torch.set_num_threads(3)
images = torch.arange(32 * 3 * 64 * 64).view(32, 3, 64, 64).to(torch.uint8)
expected = resize(images, 224, impl="native").numpy().copy()
assert output_pool.idle > 0
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(60, exit=True)
    assert output_pool.idle == 0
    for _ in range(3):
        # numpy compares: torch's own threads do not survive a fork.
        assert (resize(images, 224, impl="native").numpy() == expected).all()
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_works():
    run = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_ragged_list_equals_each_image_alone():
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
        for shape in ((8, 9), (1, 30), (40, 5))
    ]
    images[1] = images[1].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 3.5, 1.0, 20.0], [0.0, 0.0, 40.0, 5.0]])
    mix = Mix(torch.tensor([2, 0, 1]), torch.tensor([0.1, 0.4, 0.9]))
    for channels_last in (False, True):
        kwargs = {"boxes": boxes, "mix": mix, "channels_last": channels_last}
        ours = resize(images, (6, 7), impl="native", **kwargs)
        expected = resize(images, (6, 7), impl="reference", **kwargs)
        torch.testing.assert_close(ours, expected, rtol=0, atol=16 * EPS32)
        out = torch.empty_like(ours)
        assert resize(images, (6, 7), impl="native", out=out, **kwargs) is out
        assert torch.equal(out, ours)


@pytest.mark.parametrize("paste", [None, torch.tensor([[0, 0, 2, 3], [1, 1, 9, 9], [2, 2, 0, 1]])])
def test_ragged_gradients_equal_the_references(paste):
    shapes = ((8, 9), (1, 30), (40, 5))
    boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 3.5, 1.0, 20.0], [0.0, 0.0, 40.0, 5.0]])
    mix = Mix(torch.tensor([2, 0, 0]), torch.tensor([0.1, 0.4, 0.9]), paste)
    results = []
    for impl in ("native", "reference"):
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(2, *shape, generator=generator).requires_grad_() for shape in shapes]
        flip = torch.tensor([True, False, True])
        y = resize(images, (6, 7), boxes=boxes, flip=flip, std=[0.5, 2.0], mix=mix, impl=impl)
        first = torch.autograd.grad((y**2).sum(), images, create_graph=True)
        second = torch.autograd.grad(sum((g**3).sum() for g in first), images)
        results.append((y, *first, *second))
    for ours, expected in zip(*results, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours, expected, rtol=0, atol=64 * EPS32 * scale)


@pytest.mark.parametrize("paste", [None, torch.tensor([[0, 0, 2, 3], [1, 1, 9, 9]])])
def test_vmap_equals_a_loop(paste):
    images = torch.rand(4, 2, 3, 6, 5)
    boxes = torch.tensor([[0.0, 0.0, 6.0, 5.0], [1.5, 0.0, 3.0, 2.5]])
    partner, lam = torch.tensor([1, 0]), torch.rand(4, 2)

    def run(images, lam):
        return resize(images, (4, 7), boxes=boxes, mix=Mix(partner, lam, paste), impl="native")

    expected = torch.stack([run(*pair) for pair in zip(images, lam, strict=True)])
    assert torch.equal(torch.vmap(run)(images, lam), expected)


def test_batched_gradients_equal_a_loop():
    images, (boxes, flip, *_), mix = small_case()
    y = resize(images, (4, 7), boxes=boxes, flip=flip, mix=Mix(*mix), impl="native")
    directions = torch.rand(5, *y.shape)
    (batched,) = torch.autograd.grad(
        y, images, directions, is_grads_batched=True, retain_graph=True
    )
    loop = [torch.autograd.grad(y, images, v, retain_graph=True)[0] for v in directions]
    torch.testing.assert_close(batched, torch.stack(loop))


def test_writing_into_out_is_seen_by_autograd():
    images, out = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 9, 9)
    weight = torch.rand(2, 3, 9, 9, requires_grad=True)
    product = (weight * out).sum()
    resize(images, 9, out=out, impl="native")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_the_short_way_and_the_operator_agree():
    images, (boxes, flip, *_), mix = small_case(requires_grad=False)
    arguments = {"boxes": boxes, "flip": flip, "mean": (0.1, 0.2), "mix": Mix(*mix)}
    direct = resize(images, 9, **arguments, impl="native")
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        watched = resize(images, 9, **arguments, impl="native")
    assert torch.equal(watched, direct)
    assert any("lowres_vision.resize" in name for name in seen)
    assert torch.equal(resize(images.requires_grad_(), 9, **arguments, impl="native"), direct)


def test_mean_and_std_as_numbers_and_as_tensors_agree():
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for given in ({"mean": mean}, {"std": std}, {"mean": mean, "std": std}, {}):
        tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in given.items()}
        for x in (images, images / 255):
            assert torch.equal(resize(x, 6, **given), resize(x, 6, **tensors))


def test_function_transforms_take_the_reference():
    images = torch.rand(2, 3, 6, 5)
    gradient = torch.func.grad(lambda x: (resize(x, 9) ** 2).sum())(images)
    other = images.clone().requires_grad_()
    (resize(other, 9, impl="reference") ** 2).sum().backward()
    torch.testing.assert_close(gradient, other.grad)


def test_dynamic_shapes_compile_once():
    traces = []

    def backend(graph, _):
        traces.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: resize(x, 12, std=(0.2, 0.3, 0.4), impl="native"),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for shape in ((4, 3, 10, 8), (5, 3, 9, 11), (7, 3, 30, 31)):
        images = torch.rand(shape)
        expected = resize(images, 12, std=(0.2, 0.3, 0.4), impl="native")
        assert torch.equal(compiled(images), expected)
    assert len(traces) == 1


def test_out_compiles():
    images, out = torch.rand(2, 3, 5, 5), torch.empty(2, 3, 9, 9)
    compiled = torch.compile(lambda x, out: resize(x, 9, out=out), fullgraph=True)
    compiled(images, out)
    assert torch.equal(out, resize(images, 9, impl="native"))


def test_partners_out_of_range_are_refused_by_the_kernel():
    images, settings, (_, lam) = small_case(requires_grad=False)
    rest = (4, 7, torch.float32, False, *settings, "bilinear", True)
    for bad in (-1, 3):
        with pytest.raises(IndexError, match=r"`mix.partner` must be in 0\.\.2"):
            resize_op(images, *rest, torch.tensor([0, 1, bad]), lam, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e30, 1e30, 0.0])
def test_unchecked_boxes_stay_in_memory(value):
    # The public door refuses these; a compiled graph does not look at values.
    images = torch.rand(1, 1, 8, 8)
    for column in range(4):
        box = torch.tensor([[1.0, 1.0, 5.0, 5.0]], dtype=torch.float64)
        box[0, column] = value
        for antialias in (False, True):
            settings = Settings(box, mode="bicubic", antialias=antialias)
            native.run(torch.empty(1, 1, 9, 9), [images], settings)
            native.run(torch.empty(1, 1, 8, 8), [torch.rand(1, 1, 9, 9)], settings, backward=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_kernel_refuses_the_boxes_that_the_check_refuses(dtype, ragged):
    images = [torch.rand(3, 9, 7), torch.rand(3, 9, 7)]
    batch = images if ragged else [torch.stack(images)]
    limits = torch.tensor([9.0, 7.0], dtype=torch.float64)
    starts = torch.tensor([1.0, 0.0], dtype=torch.float64)
    steps = box_slack(dtype) * torch.tensor([0, 0.5, 1, 1.5, 2, 4], dtype=torch.float64)
    ends = [limits * (1 + share) for share in (*steps, *-steps)]
    cases = [torch.cat([starts, end - starts]) for end in ends]
    for column in range(4):
        for value in (-1e-9, -0.0, 1e-9, 20.0, float("nan"), float("inf"), -float("inf")):
            cases.append(torch.cat([starts, limits - starts]))
            cases[-1][column] = value
    refused = []
    for case in cases:
        boxes = torch.stack([torch.tensor([0.0, 0.0, 9.0, 7.0]), case]).to(dtype)
        out = torch.full((2, 3, 5, 5), -7.0)
        try:
            native.run(out, batch, Settings(boxes), ragged=ragged, checked=False)
        except ValueError:
            refused.append(True)
            assert out.eq(-7.0).all()
        else:
            refused.append(False)
            assert out.ge(0.0).all()
        try:
            check_values(boxes, None, batch)
        except ValueError:
            assert refused[-1], boxes
        else:
            assert not refused[-1], boxes
    assert 0 < sum(refused) < len(refused)


def test_kept_statistics_serve_calls_of_every_kind():
    images, std = torch.rand(2, 3, 5, 5), (0.3, 0.3, 0.4)  # of no other test
    with torch.inference_mode():
        expected = resize(images, 7, std=std).clone()
    assert torch.equal(resize(images, 7, std=list(std)), expected)
    tracked = images.clone().requires_grad_()
    for impl in ("auto", "reference"):
        resize(tracked, 7, std=std, impl=impl).sum().backward()
    precise = resize(images.double(), 7, std=std)
    torch.testing.assert_close(precise.float(), expected)


def test_a_named_implementation_never_falls_back():
    with pytest.raises(RuntimeError, match=r"`impl`='native' needs .* got torch.float64"):
        resize(torch.rand(1, 1, 4, 4, dtype=torch.float64), 8, impl="native")
    with pytest.raises(RuntimeError, match="`impl`='native' needs"):
        resize(torch.rand(1, 1, 4, 4, device="meta"), 8, impl="native")
    with pytest.raises(RuntimeError, match="`impl`='triton' needs Triton"):
        resize(torch.rand(1, 1, 4, 4), 8, impl="triton")


def test_auto_takes_the_kernel():
    images = torch.rand(2, 3, 9, 9)
    assert torch.equal(resize(images, 20), resize(images, 20, impl="native"))
