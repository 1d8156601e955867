"""Twelve kinds of timm backbone, with and without a learned resizer, against ONNX Runtime.

Real weights where the test data has them, random ones elsewhere. A fresh network gives nearly the
same outputs for every photo, and any file would agree with that; so its convolutions keep the
spread of what they read, its BatchNorm statistics are taken from the photos and its logits are
brought to zero mean and unit variance over them. That also brings out its rounding. No file can be
nearer to a network than that is to itself in float64, which is 3e-6 to 8e-6 for most of them, but
2e-5 and more for a random EfficientNet: where it is that large, twenty times as much is allowed.
"""

import copy
from pathlib import Path

import pytest
import torch

from lowres_vision.data import decode_image
from lowres_vision.export import export_onnx
from lowres_vision.models import LowResClassifier
from lowres_vision.ops import resize
from lowres_vision.resizer import LearnableResizer

REAL = {"mobilenetv2_100": "mobilenetv2_100.in1k_tf2ptq"}
BACKBONES = {  # name: (image size, arguments)
    "resnet18": (224, {}),
    "vgg11": (224, {}),
    "mobilenetv2_100": (224, {"pad_type": "same"}),
    "efficientnet_b0": (224, {}),
    "convnext_atto": (224, {}),
    "regnety_002": (224, {}),
    "densenet121": (224, {}),
    "vit_tiny_patch16_224": (224, {}),
    "vit_small_patch14_dinov2": (224, {"init_values": 1.0}),  # at 1e-5 no block has a say
    "beit_base_patch16_224": (224, {"depth": 4}),
    "swin_tiny_patch4_window7_224": (224, {}),
    "tiny_vit_5m_224": (224, {}),
}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> torch.Tensor:
    """The probe photos at 64 px, in [-1, 1]."""
    files = sorted((shared_data / "imagenet_probe100").rglob("*.jpg"))
    small = resize([decode_image(file) for file in files], 64, mean=[0.5] * 3, std=[0.5] * 3)
    assert len(small) == 100
    return small


@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True], ids=["bilinear", "resizer"])
@pytest.mark.parametrize("name", BACKBONES)
def test_parity(
    name: str, learned: bool, photos: torch.Tensor, shared_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size, arguments = BACKBONES[name]
    weights = shared_data / "weights" / f"{REAL.get(name)}.safetensors"
    model = LowResClassifier(
        name,
        25,
        image_size=size,
        resizer=LearnableResizer(size) if learned else None,
        checkpoint_path=weights if name in REAL else None,
        **arguments,
    )
    images = photos if learned else resize(photos, size)
    if name not in REAL:
        _spread(model, images)
    rounding = _rounding(model.eval(), images[:10])
    tolerance = 20 * rounding if rounding > 1.5e-5 else 1e-4
    certificate = export_onnx(model, tmp_path / "model.onnx", images, tolerance=tolerance)
    print(
        f"\n{name} {learned=} {certificate.largest_difference:.1e} of {tolerance:.1e}, "
        f"{certificate.same_class} same, {certificate.undecided} undecided"
    )
    assert certificate.tolerance == tolerance
    assert certificate.images == 100


@torch.no_grad()
def _rounding(model: LowResClassifier, images: torch.Tensor) -> float:
    exact = copy.deepcopy(model).double()(images.double())
    return float((model(images) - exact).abs().max())


@torch.no_grad()
def _spread(model: LowResClassifier, images: torch.Tensor) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()(images)
    logits = model.eval()(images)
    model.head.weight /= logits.std(0)[:, None]
    model.head.bias.copy_((model.head.bias - logits.mean(0)) / logits.std(0))
