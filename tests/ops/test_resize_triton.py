"""The Triton kernels: interpreted on the CPU, and where there is a GPU, on that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lowres_vision.ops import Mix, resize
from lowres_vision.ops._resize import cuda
from lowres_vision.ops._resize.operator import resize_backward_op

EPS32 = torch.finfo(torch.float32).eps


def test_without_triton_everything_else_works():
    code = """
import sys
sys.modules["triton"] = None  # an import of it fails
import torch
from lowres_vision.ops import resize
assert resize(torch.rand(1, 3, 4, 4), 8).shape == (1, 3, 8, 8)
assert "lowres_vision.ops._resize.triton_kernels" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_interpreted_kernels_equal_the_reference():
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("resize_triton_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), run.stdout


def test_a_named_implementation_does_not_fall_back():
    with pytest.raises(RuntimeError, match="`impl`='triton' needs"):
        resize(torch.rand(1, 1, 4, 4), 8, impl="triton")


def test_the_probe_says_why_the_kernels_cannot_serve(caplog):
    # There is no device to compile for, or no Triton: either way the reference takes over.
    assert not cuda.works.__wrapped__(torch.device("cpu"))
    assert "plain torch" in caplog.text


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="fake tensors of CUDA needed a driver")
@pytest.mark.parametrize("there", [False, True])
def test_a_graph_for_a_device_needs_none(there, monkeypatch):
    if there:
        monkeypatch.setattr(cuda, "available", lambda device: True)
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def run(images):
        plain = resize(images, 80, std=(0.2, 0.3, 0.4), channels_last=True, dtype=torch.bfloat16)
        return plain, resize(images, 80, rounding="uint8", dtype=torch.uint8)

    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(4, 3, 64, 50, dtype=torch.uint8, device="cuda")
        plain, whole = torch.compile(run, fullgraph=True, backend=backend)(images)
        assert plain.device.type == whole.device.type == "cuda"
        assert plain.is_contiguous(memory_format=torch.channels_last)
        assert (plain.dtype, whole.dtype) == (torch.bfloat16, torch.uint8)
        rest = (None, None, None, "bilinear", True, None, None, None)
        back = resize_backward_op(plain, 64, 50, torch.float16, *rest)
        assert (back.shape, back.dtype, back.device) == (images.shape, torch.float16, images.device)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert ("lowres_vision.resize.default" in called) == there
    assert ("lowres_vision.resize_uint8.default" in called) == there


def batch(device, dtype, shape=(5, 3, 64, 50)):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    images = (values * 255).to(torch.uint8) if dtype == torch.uint8 else values.to(dtype)
    H, W = shape[-2:]
    boxes = torch.tensor(
        [
            [0, 0, H, W],
            [H / 4, 1.5, H / 2, W / 3],
            [H - 1, W - 1, 1, 1],
            [0, 0, 9, W],
            [1, 2, 30, 8],
        ]
    )
    flip = torch.tensor([True, False, True, False, True])
    return images.to(device), boxes.to(device), flip.to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (31, 300), (7, 9), (2, 1)])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_device_equals_the_reference(mode, antialias, size, source, dtype):
    images, boxes, flip = batch("cuda", source)
    partner = torch.tensor([1, 0, 4, 3, 3], device="cuda")
    lam = torch.tensor([0.2, 1.0, 0.0, 0.7, 0.5], device="cuda")
    paste = torch.tensor([[0, 0, 5, 9], [3, -4, 99, 9], [0, 0, 0, 3], [1, 1, 1, 1], [9, 9, 99, 99]])
    mixes = (None, Mix(partner, lam), Mix(partner, lam, paste.cuda()))
    hwc = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    std = (0.2, 0.3, 0.4)
    for mix in mixes:
        for cropped in ({}, {"boxes": boxes, "flip": flip}):
            kwargs = {"mode": mode, "antialias": antialias, "mix": mix, "std": std, **cropped}
            expected = resize(
                images.double() / (255 if source == torch.uint8 else 1), size,
                impl="reference", **kwargs,
            )  # fmt: skip
            scale = max(1.0, expected.abs().max().item())
            # Half dtypes round once more, half a unit in the last place of values up to `scale`.
            half = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * scale
            for layout in (images, hwc):
                for channels_last in (False, True):
                    memory = torch.channels_last if channels_last else torch.contiguous_format
                    out = torch.full(expected.shape, torch.nan, dtype=dtype, device="cuda")
                    out = out.contiguous(memory_format=memory)
                    resize(
                        layout, size, out=out, channels_last=channels_last, impl="triton", **kwargs
                    )
                    torch.testing.assert_close(
                        out.double(), expected, rtol=0, atol=32 * EPS32 * scale + half
                    )


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (31, 300), (7, 9)])
@pytest.mark.parametrize("cropped", [False, True])
def test_device_gradient_equals_the_reference_and_repeats(mode, antialias, size, cropped):
    images, boxes, flip = batch("cuda", torch.float32)
    kwargs = {"boxes": boxes, "flip": flip} if cropped else {}
    kwargs |= {"mode": mode, "antialias": antialias, "std": (0.2, 0.3, 0.4)}
    wide = images.double().requires_grad_()
    y = resize(wide, size, impl="reference", **kwargs)
    g = torch.randn(y.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    (expected,) = torch.autograd.grad(y, wide, g.double())
    gradients = []
    for _ in range(5):
        images.requires_grad_()
        y = resize(images, size, impl="triton", **kwargs)
        gradients += torch.autograd.grad(y, images, g)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(gradients[0].double(), expected, rtol=0, atol=32 * EPS32 * scale)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (31, 300), (7, 9), (2, 1)])
def test_device_bytes_are_the_references(mode, size):
    images, boxes, flip = batch("cuda", torch.uint8)
    for cropped in ({}, {"boxes": boxes, "flip": flip}):
        kwargs = {"mode": mode, "rounding": "uint8", "dtype": torch.uint8, **cropped}
        ours = resize(images, size, impl="triton", **kwargs)
        assert torch.equal(ours, resize(images, size, impl="reference", **kwargs))
        moved = {name: value.cpu() for name, value in cropped.items()}
        assert torch.equal(ours.cpu(), resize(images.cpu(), size, **{**kwargs, **moved}))


@pytest.mark.gpu
@pytest.mark.parametrize("cutmix", [False, True])
def test_device_gradient_of_a_shared_partner_repeats(cutmix):
    images, boxes, flip = batch("cuda", torch.float32)
    partner, lam = torch.tensor([3, 3, 0, 3, 3], device="cuda"), torch.rand(5, device="cuda")
    paste = torch.tensor([[0, 0, 5, 9], [3, -4, 99, 9], [0, 0, 0, 3], [1, 1, 1, 1], [9, 9, 99, 99]])
    mix = Mix(partner, lam, paste.cuda() if cutmix else None)
    kwargs = {"boxes": boxes, "flip": flip, "mix": mix}
    wide = images.double().requires_grad_()
    y = resize(wide, 100, impl="reference", **kwargs)
    g = torch.randn(y.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    (expected,) = torch.autograd.grad(y, wide, g.double())
    images.requires_grad_()
    gradients = [
        torch.autograd.grad(resize(images, 100, impl="triton", **kwargs), images, g)[0]
        for _ in range(5)
    ]
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(gradients[0].double(), expected, rtol=0, atol=32 * EPS32 * scale)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.gpu
def test_device_offsets_beyond_32_bits():
    count = (1 << 31) // (3 * 32 * 32) + 2
    images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8, device="cuda")
    images[-1] = 255
    out = resize(images, 32, dtype=torch.float16, impl="triton")
    assert (out[-1] == 1).all()
    assert not out[:-1].any()


@pytest.mark.gpu
def test_device_compiles_without_a_graph_break():
    images, *_ = batch("cuda", torch.uint8)
    compiled = torch.compile(lambda x: 2 * resize(x, 80, std=(0.2, 0.3, 0.4)), fullgraph=True)
    assert torch.equal(compiled(images), 2 * resize(images, 80, std=(0.2, 0.3, 0.4)))
