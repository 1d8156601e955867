"""What this installation has, and whether a model or its images are damaged without a word.

``python -m lowres_vision doctor`` prints it; each check is a function of its own.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from lowres_vision._modes import evaluation_mode
from lowres_vision.models import LowResClassifier
from lowres_vision.ops import resize_implementation

_PACKAGES = (
    "lowres-vision",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "numpy",
    "pillow",
    "einops",
)
_EXTRAS = {
    "train": ("lightning", "sklearn", "torchmetrics", "tyro", "rich"),
    "plot": ("matplotlib",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "sr": ("spandrel",),
    "shards": ("webdataset",),
    "track": ("tensorboard",),
}
_TWICE = 2 / 255  # white, divided by 255 twice, and a filter's overshoot
_FAR = 0.05  # of mean or std, in [0, 1] units: half of it is lost in the noise of a data set


class Finding(NamedTuple):
    """One line: ``fault`` does damage, ``note`` is to be known."""

    level: str
    words: str


def installation() -> Iterator[Finding]:
    """Tell versions, devices, what resizes, and what an extra lacks."""
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield Finding("note", f"Python {platform.python_version()} on {platform.machine()}: {packages}")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("note", f"{torch.get_num_threads()} threads, {', '.join(gpus) or 'no'} GPU")
    serves = resize_implementation()
    if serves == "reference":
        yield Finding(
            "fault",
            "ops.resize runs as plain torch, several times slower: the C kernel was not built; "
            "install a C compiler and reinstall lowres-vision",
        )
    else:
        yield Finding("note", f"ops.resize on the CPU: {serves}")
    if gpus and find_spec("triton") is None:
        yield Finding("fault", "ops.resize on the GPU runs as plain torch: Triton is not installed")
    for extra, modules in _EXTRAS.items():
        if missing := [name for name in modules if find_spec(name) is None]:
            yield Finding(
                "note",
                f"extra `{extra}` lacks {', '.join(missing)}: pip install 'lowres-vision[{extra}]'",
            )


def weights(
    name: str, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Iterator[Finding]:
    """Tell the licence of a timm model's weights, and a normalisation that is not theirs.

    Args:
        name: timm's name, with its weights' tag.
        mean: What images are normalised by, in [0, 1] units; None: not checked.
        std: As ``mean``.
    """
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    licence = config.license or "not stated: ask before you ship what they become"
    yield Finding("note", f"{name}: licence of the weights {licence}")
    for what, given, expected in (("mean", mean, config.mean), ("std", std, config.std)):
        if given is None:
            continue
        fits = len(given) == len(expected)
        if not fits or max(abs(a - b) for a, b in zip(given, expected, strict=True)) > _FAR:
            yield Finding(
                "fault",
                f"{name}: `{what}` is {tuple(given)}, its weights were trained with "
                f"{tuple(expected)}; use theirs (LowResClassifier.{what})",
            )


def member(model: nn.Module) -> list[Finding]:
    """Check a trained model as a predictor holds it: weights' licence, normalisation, pixels read.

    Args:
        model: With a :class:`~lowres_vision.models.LowResClassifier` in it, as a rule behind a
            Module that normalises.
    """
    found: list[Finding] = []
    read = next((part for part in model.children() if hasattr(part, "mean")), None)
    for part in model.modules():
        if isinstance(part, LowResClassifier):
            mean, std = getattr(read, "mean", None), getattr(read, "std", None)
            found += weights(part.backbone_name, mean=mean, std=std)
            channels = int(part.timm_args.get("in_chans", 3))
            found += unread_pixels(part, part.image_size, channels=channels)
    return found


def unread_pixels(model: nn.Module, size: tuple[int, int], *, channels: int = 3) -> list[Finding]:
    """Find the pixels that no output depends on.

    Measured, not looked up: the gradient of the outputs in a random image is exactly zero where
    the model never reads, as beyond the last whole patch of a grid. Weights that are all zero, as a
    fresh ResNet's last normalisations are, get others while it is measured: nothing passes them.

    Args:
        model: From ``(B, C, H, W)`` to a Tensor; left in its mode, run in evaluation mode.
        size: Height and width of the images.
        channels: C.
    """
    images = torch.randn(2, channels, *size, requires_grad=True)
    with evaluation_mode(model), _open_gates(model):
        outputs: Tensor = model(images)
        (gradient,) = torch.autograd.grad(
            (outputs * torch.randn_like(outputs)).sum(), images, allow_unused=True
        )
    if gradient is None:
        return [Finding("fault", "no output depends on the image")]
    read = gradient.ne(0).any(dim=0).any(dim=0)  # (H, W)
    if bool(read.all()):
        return []
    rows, columns = read.any(dim=1).sum(), read.any(dim=0).sum()
    share = 1 - float(read.float().mean())
    return [
        Finding(
            "fault",
            f"{share:.1%} of the pixels of a {size[0]} x {size[1]} image are never read: "
            f"{int(rows)} rows and {int(columns)} columns are; take a size that its patches and "
            f"strides divide",
        )
    ]


@contextmanager
def _open_gates(model: nn.Module) -> Iterator[None]:
    """Within, no parameter is all zero."""
    shut = [parameter for parameter in model.parameters() if not parameter.any()]
    try:
        for parameter in shut:
            parameter.data.normal_(std=0.1)
        yield
    finally:
        for parameter in shut:
            parameter.data.zero_()


def images(batch: Tensor | Sequence[Tensor]) -> list[Finding]:
    """Find batches whose values were damaged on their way: scaled twice, not at all, or cast.

    Args:
        batch: Images as they reach :func:`lowres_vision.ops.resize`, uint8 or float.
    """
    pixels = torch.cat([image.flatten() for image in batch])
    low, high = float(pixels.min()), float(pixels.max())
    found = []
    if low == high:
        cast = " (floats in [0, 1] that were cast to uint8?)" if pixels.dtype == torch.uint8 else ""
        found.append(Finding("fault", f"every pixel is {low:g}{cast if low == 0 else ''}"))
    elif pixels.dtype == torch.uint8 and high <= 1:
        found.append(
            Finding(
                "fault",
                "uint8 images hold 0 and 1 only: floats in [0, 1] were cast; multiply by 255 and "
                "round first, or keep them float",
            )
        )
    elif pixels.is_floating_point():
        if not torch.isfinite(pixels).all():
            found.append(Finding("fault", "images hold NaN or inf"))
        elif high > 20:
            found.append(
                Finding(
                    "fault",
                    f"float images reach {high:g}: divide by 255, or hand them on as uint8",
                )
            )
        elif low >= 0 and high <= _TWICE:
            found.append(
                Finding("fault", f"float images reach {high:g} only: divided by 255 twice")
            )
        elif low < 0:
            found.append(Finding("note", f"float images reach {low:g}: normalised already?"))
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
