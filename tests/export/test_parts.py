"""Every part that a file may name comes back with all its settings, and none can be forgotten."""

import inspect
import json

import pytest
import torch
from torch import nn

from lowres_vision import attention, augment, ensemble, heads, losses, pooling, resizer
from lowres_vision.export._parts import _TABLE, describe, make
from lowres_vision.models import LowResClassifier

HALF = (0.5, 0.5, 0.5)
# Nothing at its default, where there is one.
PARTS: list[nn.Module] = [
    LowResClassifier(
        "test_vit",
        4,
        image_size=(32, 64),
        resizer=resizer.Resize((32, 64)),
        pool="gem",
        neck="embedding",
        head="cosine",
        drop=0.2,
        qkv_bias=False,
    ),
    augment.BatchTransform(
        (24, 32),
        mean=HALF,
        std=(0.1, 0.2, 0.3),
        scale=None,
        ratio=(0.9, 1.1),
        flip=0.0,
        via=16,
        mode="bicubic",
        dtype=torch.bfloat16,
        eval_size=40,
    ),
    resizer.Resize(
        (24, 32),
        mean=HALF,
        std=(0.1, 0.2, 0.3),
        mode="bicubic",
        antialias=False,
        rounding="uint8",
        dtype=torch.float64,
        channels_last=True,
    ),
    resizer.LearnableResizer(
        (24, 32), in_channels=1, channels=8, blocks=3, attention="cbam", checkpoint=True
    ),
    resizer.MullerResizer(
        (24, 32),
        layers=3,
        kernel_size=7,
        stddev=1.3,
        mode="bicubic",
        antialias=True,
        average_pool=True,
    ),
    attention.CBAM(24, reduction=5, kernel_size=3),
    pooling.GeM(2.5, eps=1e-4, learnable=False),
    pooling.GeM(2.5, eps=1e-4),
    heads.EmbeddingNeck(8, 5),
    heads.CosineClassifier(8, 5, subcenters=3),
    losses.CrossEntropyLoss(),
    losses.FocalLoss(),
    losses.CosineLoss(temperature=3.5),
    losses.ArcFaceLoss(scale=17.0),
    ensemble.Temperature(2.5, reads="probabilities"),
    ensemble.ClassBias([0.25, -0.5]),
    nn.Linear(3, 2, bias=False),
    nn.LayerNorm((3, 2), eps=1e-3, bias=False),
    nn.LayerNorm(3, elementwise_affine=False),
    nn.BatchNorm1d(3, eps=1e-3, momentum=None, affine=False, track_running_stats=False),
    nn.BatchNorm2d(3, eps=1e-3, momentum=0.2, affine=False, track_running_stats=False),
    nn.PReLU(3),
    nn.GELU(approximate="tanh"),
    nn.ReLU(),
    nn.SiLU(),
    nn.Dropout(0.1),
    nn.Flatten(2, 3),
    nn.AdaptiveAvgPool2d((1, 2)),
    nn.AdaptiveMaxPool2d(3),
    nn.Identity(),
    nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2))),
]
# Of no consequence for what a trained part answers, or refused when a file is written.
LEFT_OUT = {
    LowResClassifier: {"pretrained", "checkpoint_path"},
    augment.BatchTransform: {"augment", "model"},  # in training mode only; as mean and std
    resizer.LearnableResizer: {"zero_init"},  # initial weights
    resizer.MullerResizer: {"weights"},
    nn.ReLU: {"inplace"},
    nn.SiLU: {"inplace"},
    nn.Dropout: {"inplace"},
    nn.PReLU: {"init"},
    nn.Sequential: {"args"},
    nn.Identity: {"args", "kwargs"},
    nn.AdaptiveMaxPool2d: {"return_indices"},
    nn.BatchNorm1d: {"bias"},  # of torch 2.15, not of 2.8
    nn.BatchNorm2d: {"bias"},
}
OF_TENSORS = {"device", "dtype"}  # which the file's own tensors bring
OF_TRAINING = {
    "cross_entropy",
    "easy_margin",
    "gamma",
    "label_smoothing",
    "margin",
    "reduction",
    "weight",
}


def test_every_listed_part_is_tried() -> None:
    assert {type(part) for part in PARTS} == {kind for kind, _ in _TABLE}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_comes_back_with_its_settings(part: nn.Module) -> None:
    text = json.dumps(describe(part, where="it"))
    found = make(json.loads(text))
    assert type(found) is type(part)
    assert repr(found) == repr(part)
    assert json.dumps(describe(found, where="it")) == text
    shapes = {name: value.shape for name, value in part.state_dict().items()}
    assert {name: value.shape for name, value in found.state_dict().items()} == shapes


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_no_argument_of_a_constructor_is_forgotten(part: nn.Module) -> None:
    kind = type(part)
    wanted = set(inspect.signature(kind).parameters) - LEFT_OUT.get(kind, set())
    if kind.__module__.startswith("torch.nn"):
        wanted -= OF_TENSORS
    if kind.__module__.startswith("lowres_vision.losses"):
        wanted -= OF_TRAINING
    assert wanted <= set(describe(part, where="it")["arguments"])


def test_plain_values_of_numpy_and_torch_are_taken() -> None:
    given = augment.BatchTransform(
        8, mean=torch.tensor([0.5, 0.25]), std=torch.tensor([1.0, 2.0]).numpy()
    )
    found = make(describe(given, where="it"))
    assert found.mean == (0.5, 0.25)
    assert found.std == (1.0, 2.0)
