"""The public door: what it refuses, and that it survives tracing."""

import numpy as np
import pytest
import torch

from lowres_vision.ops import Mix, resize

IMAGES = torch.randint(
    0, 256, (4, 3, 10, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
BOXES = torch.tensor([[0.0, 0.0, 10.0, 8.0], [1.5, 2.0, 3.0, 4.5], [9.0, 7.0, 1.0, 1.0]])
BOXES = torch.cat([BOXES, torch.tensor([[0.0, 4.0, 10.0, 4.0]])])
FLIP = torch.tensor([True, False, True, False])
MIX = Mix(torch.tensor([1, 2, 3, 0]), torch.tensor([0.2, 0.5, 0.9, 1.0]))
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"images": IMAGES[0]}, ValueError, r"`images` must be \(B, C, H, W\), got shape \(3, "),
        ({"images": IMAGES.int()}, TypeError, "`images` must be uint8 or float, got torch.int32"),
        ({"images": IMAGES[:, :, :0]}, ValueError, "`images` must have C, H, W > 0"),
        ({"images": []}, ValueError, "`images` must hold at least one image"),
        ({"images": [IMAGES]}, ValueError, r"`images` must be a list of \(C, H, W\)"),
        ({"images": [IMAGES[0], IMAGES[0].float()]}, ValueError, "must share dtype, device"),
        ({"images": [np.zeros((3, 4, 4))]}, TypeError, "a tensor or a list of tensors"),
        ({"size": (0, 32)}, ValueError, r"`size` must be .* both > 0, got \(0, 32\)"),
        ({"mode": "nearest"}, ValueError, "`mode` must be one of 'bilinear', 'bicubic'"),
        ({"impl": "cuda"}, ValueError, "`impl` must be one of 'auto', 'reference'"),
        ({"boxes": BOXES[:3]}, ValueError, r"`boxes` must have shape \(4, 4\), got \(3, 4\)"),
        ({"boxes": BOXES.long()}, TypeError, "`boxes` must be torch.float16 or"),
        ({"boxes": BOXES.to("meta")}, ValueError, "`boxes` must be on the images' device"),
        ({"flip": FLIP.int()}, TypeError, "`flip` must be torch.bool, got torch.int32"),
        ({"mean": (0.5, 0.5)}, ValueError, r"`mean` must have shape \(3,\), got \(2,\)"),
        ({"std": torch.ones(1)}, ValueError, r"`std` must have shape \(3,\), got \(1,\)"),
        ({"dtype": torch.int32}, TypeError, "`dtype` must be a float dtype"),
        ({"mix": Mix(FLIP, MIX.lam)}, TypeError, "`mix.partner` must be torch.int64"),
        ({"mix": Mix(MIX.partner + 1, MIX.lam)}, ValueError, r"must be in 0\.\.3, got 4"),
        ({"mix": Mix(MIX.partner - 1, MIX.lam)}, ValueError, r"must be in 0\.\.3, got -1"),
        ({"mix": Mix(*MIX[:2], BOXES)}, TypeError, "`mix.box` must be torch.int64"),
        ({"out": torch.empty(4, 3, 5, 6)}, ValueError, r"`out` must have shape \(4, 3, 6, 6\)"),
        (
            {"out": torch.empty(4, 3, 6, 6), "channels_last": True},
            ValueError,
            "`out` must be contiguous in torch.channels_last",
        ),
        ({"out": torch.empty(4, 3, 6, 6), "dtype": torch.float16}, TypeError, "must be `out`'s"),
        ({"out": torch.empty(4, 3, 6, 6, dtype=torch.uint8)}, TypeError, "be a float dtype"),
    ],
)
def test_refusals(kwargs, error, text):
    arguments = {"images": IMAGES, "size": 6} | kwargs
    with pytest.raises(error, match=text):
        resize(arguments.pop("images"), arguments.pop("size"), **arguments)


@pytest.mark.parametrize(
    "box",
    [
        (-0.5, 0.0, 4.0, 4.0),
        (0.0, -0.01, 4.0, 4.0),
        (7.0, 0.0, 3.01, 4.0),
        (0.0, 5.0, 4.0, 4.0),
        (0.0, 0.0, 0.0, 4.0),
        (0.0, 0.0, 4.0, -1.0),
        (float("nan"), 0.0, 4.0, 4.0),
        (0.0, 0.0, float("inf"), 4.0),
    ],
)
def test_boxes_outside_the_image_are_refused(box):
    boxes = BOXES.clone()
    boxes[2] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"`boxes` must be .* for image 2 of 10 x 8 pixels"):
        resize(IMAGES, 6, boxes=boxes)


def test_boxes_of_a_list_are_held_to_their_own_image():
    images = [IMAGES[0], IMAGES[1, :, :5]]
    resize(images, 6, boxes=BOXES[[3, 1]])
    with pytest.raises(ValueError, match="for image 1 of 5 x 8 pixels"):
        resize(images, 6, boxes=BOXES[[1, 3]])


def test_a_box_may_overshoot_by_its_own_rounding():
    top = torch.tensor(0.1)
    boxes = torch.stack([top, top * 0, 10 - top, top * 0 + 8])[None]
    boxes[0, 2] = torch.nextafter(boxes[0, 2], torch.tensor(11.0))
    resize(IMAGES[:1], 6, boxes=boxes)


def test_out_is_written_and_returned():
    out = torch.full((4, 3, 6, 5), torch.nan, dtype=torch.bfloat16)
    assert resize(IMAGES, (6, 5), out=out) is out
    assert torch.equal(out, resize(IMAGES, (6, 5), dtype=torch.bfloat16))


def test_out_refuses_gradients():
    images = IMAGES.float().requires_grad_()
    with pytest.raises(ValueError, match="`out` cannot be used where"):
        resize(images, 6, out=torch.empty(4, 3, 6, 6))
    with torch.no_grad():
        resize(images, 6, out=torch.empty(4, 3, 6, 6))


def test_arguments_are_left_as_they_were():
    arguments = (IMAGES.float(), BOXES, FLIP, *MIX[:2])
    before = [argument.clone() for argument in arguments]
    resize(arguments[0], 6, boxes=BOXES, flip=FLIP, mix=MIX, **STATISTICS)
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("view", ["plain", "hwc", "strided", "expanded"])
def test_layouts(channels_last, view):
    images = {
        "plain": IMAGES,
        "hwc": IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "strided": IMAGES.repeat_interleave(2, 2).repeat_interleave(3, 3)[:, :, ::2, ::3],
        "expanded": IMAGES[:, :1].expand(-1, 3, -1, -1),
    }[view]
    result = resize(images, 6, boxes=BOXES, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)
    expected = resize(images.contiguous(), 6, boxes=BOXES)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_empty_batch():
    empty = resize(IMAGES[:0], 6, boxes=BOXES[:0], flip=FLIP[:0], **STATISTICS)
    assert empty.shape == (0, 3, 6, 6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic):
    def run(images, boxes, flip, partner, lam):
        mix = Mix(partner, lam)
        return resize(images, 6, boxes=boxes, flip=flip, mix=mix, channels_last=True, **STATISTICS)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    images = IMAGES.float().requires_grad_()
    other = images.detach().clone().requires_grad_()
    expected = run(images, BOXES, FLIP, *MIX[:2])
    result = compiled(other, BOXES, FLIP, *MIX[:2])
    torch.testing.assert_close(result, expected)
    weight = torch.rand_like(expected)
    (expected * weight).sum().backward()
    (result * weight).sum().backward()
    torch.testing.assert_close(other.grad, images.grad)


class Resizer(torch.nn.Module):
    def __init__(self, antialias=True, mode="bilinear"):
        super().__init__()
        self.antialias, self.mode = antialias, mode

    def forward(self, images):
        return resize(images, (6, 13), mode=self.mode, antialias=self.antialias, **STATISTICS)


def test_exports_with_a_dynamic_batch():
    program = torch.export.export(
        Resizer(), (IMAGES,), dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}}
    )
    for batch in (1, 3):
        torch.testing.assert_close(program.module()(IMAGES[:batch]), Resizer()(IMAGES[:batch]))


@pytest.mark.parametrize(("mode", "antialias"), [("bilinear", True), ("bicubic", False)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_runtime_agrees(mode, antialias, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = Resizer(antialias, mode).eval()
    path = tmp_path / "resize.onnx"
    torch.onnx.export(
        module,
        (IMAGES,),
        path,
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:3].numpy()})
    torch.testing.assert_close(torch.from_numpy(result), module(IMAGES[:3]), rtol=0, atol=2e-6)
