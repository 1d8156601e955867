"""Which Modules a predictor file can describe, and how each is made again from its description.

A description is plain JSON: the name of a part and the arguments of its constructor. Names are
looked up in one table and nothing is imported by name, so a file can ask for nothing but the parts
listed here, whose constructors read no file and fetch nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowres_vision import attention, augment, ensemble, heads, losses, pooling, resizer
from lowres_vision.models import LowResClassifier

Json = Any
Arguments = dict[str, Any]


def describe(value: Any, *, where: str) -> Json:
    """Return a Module, or an argument of one, as JSON.

    Args:
        value: A Module of the table, or a plain value.
        where: What it is called in errors.

    Raises:
        ValueError: If it cannot be described, with what to do instead.
    """
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [describe(item, where=where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items = {key: describe(item, where=f"{where}, {key}") for key, item in value.items()}
        return {"mapping": items}
    if not isinstance(value, nn.Module):
        raise ValueError(
            f"{where} is {value!r}, which no file of plain values can hold; give numbers, texts "
            f"and timm's own names (act_layer='relu', not nn.ReLU)"
        )
    name, read = _NAMES.get(_kind(value), (None, None))
    if name is None or read is None:
        raise ValueError(
            f"{where} is {type(value).__module__}.{type(value).__qualname__}, which a predictor "
            f"file cannot describe; put it together from {_listed()}, or write it with "
            f"`export_onnx`"
        )
    arguments = {
        key: describe(argument, where=f"{where}, {key}") for key, argument in read(value).items()
    }
    return {"part": name, "arguments": arguments}


def make(description: Json) -> Any:
    """Return the value that :func:`describe` was given, with fresh weights where it has some.

    Raises:
        ValueError: If the description is none of this version's.
    """
    if isinstance(description, list):
        return tuple(make(item) for item in description)
    if not isinstance(description, dict):
        return description
    if description.keys() == {"dtype"}:
        dtype = getattr(torch, str(description["dtype"]), None)
        if isinstance(dtype, torch.dtype):
            return dtype
    elif description.keys() == {"mapping"}:
        return {key: make(item) for key, item in description["mapping"].items()}
    elif description.keys() == {"part", "arguments"} and description["part"] in _MAKERS:
        arguments = {key: make(item) for key, item in description["arguments"].items()}
        return _MAKERS[description["part"]](**arguments)
    raise ValueError(f"it describes {description!r:.200}, which this version does not know")


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the class, or Sequential for one that only puts its parts in a row."""
    kind = type(module)
    return nn.Sequential if kind.forward is nn.Sequential.forward else kind


def _listed() -> str:
    return ", ".join(name for name in _MAKERS if "." not in name) + " and torch's plain layers"


def _same(*names: str) -> Callable[[Any], Arguments]:
    """Return what reads constructor arguments that are attributes of the same names."""
    return lambda module: {name: getattr(module, name) for name in names}


def _read_learnable(module: resizer.LearnableResizer) -> Arguments:
    names = _same("size", "in_channels", "channels", "attention", "checkpoint")
    return {**names(module), "blocks": len(module.blocks)}


def _read_muller(module: resizer.MullerResizer) -> Arguments:
    names = _same("size", "kernel_size", "stddev", "mode", "antialias", "average_pool")
    return {**names(module), "layers": len(module.alpha)}


def _read_cbam(module: attention.CBAM) -> Arguments:
    squeeze: Any = module.channel.mlp[0]
    return {
        "channels": squeeze.in_features,
        "reduction": squeeze.in_features // squeeze.out_features,
        "kernel_size": module.spatial.conv.kernel_size[0],
    }


def _read_gem(module: pooling.GeM) -> Arguments:
    learnable = isinstance(module.p, nn.Parameter)
    return {"p": torch.as_tensor(module.p).item(), "eps": module.eps, "learnable": learnable}


def _read_classifier(model: LowResClassifier) -> Arguments:
    timm_args = {key: value for key, value in model.timm_args.items() if key not in _OF_WEIGHTS}
    names = _same("num_classes", "image_size", "resizer", "pool", "neck", "head")
    return {
        "backbone": model.backbone_name,
        **names(model),
        "drop": model.drop.p,
        "timm_args": timm_args,
        "channels_last": _is_channels_last(model),
    }


def _make_classifier(
    *, timm_args: Arguments, head: nn.Module, channels_last: bool, **arguments: Any
) -> LowResClassifier:
    if refused := _OF_WEIGHTS & (timm_args.keys() | arguments.keys()):
        raise ValueError(f"it gives timm {sorted(refused)}, which no predictor file needs")
    model = LowResClassifier(**arguments, **timm_args)
    model.add_module("head", head)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def _is_channels_last(model: nn.Module) -> bool:
    """Whether convolutions are stored so: it decides how fast they are, and their last bit."""
    return any(
        weight.ndim == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
        for weight in model.parameters()
    )


def _read_sequential(module: nn.Sequential) -> Arguments:
    width = {"out_features": module.out_features} if hasattr(module, "out_features") else {}
    return {"parts": dict(module.named_children()), **width}


def _make_sequential(
    *, parts: dict[str, nn.Module], out_features: int | None = None
) -> nn.Sequential:
    module = nn.Sequential()
    for name, part in parts.items():
        module.add_module(name, part)
    if out_features is not None:  # what a neck tells LowResClassifier
        module.out_features = out_features  # type: ignore[assignment]
    return module


def _read_with_bias(*names: str) -> Callable[[Any], Arguments]:
    return lambda module: {**_same(*names)(module), "bias": module.bias is not None}


_OF_WEIGHTS = {  # say where weights come from, and the file brings its own
    "cache_dir",
    "checkpoint_path",
    "model_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}
_BATCH_NORM = _same("num_features", "eps", "momentum", "affine", "track_running_stats")
_TABLE: list[tuple[type[nn.Module], Callable[[Any], Arguments]]] = [
    (LowResClassifier, _read_classifier),
    (
        augment.BatchTransform,
        _same("size", "mean", "std", "scale", "ratio", "flip", "via", "mode", "dtype", "eval_size"),
    ),
    (
        resizer.Resize,
        _same("size", "mean", "std", "mode", "antialias", "rounding", "dtype", "channels_last"),
    ),
    (resizer.LearnableResizer, _read_learnable),
    (resizer.MullerResizer, _read_muller),
    (attention.CBAM, _read_cbam),
    (pooling.GeM, _read_gem),
    (heads.EmbeddingNeck, _same("in_features", "out_features")),
    (heads.CosineClassifier, _same("in_features", "num_classes", "subcenters")),
    # Of a loss, what its `probabilities` reads; the rest belongs to training.
    (losses.CrossEntropyLoss, _same()),
    (losses.FocalLoss, _same()),
    (losses.CosineLoss, _same("temperature")),
    (losses.ArcFaceLoss, _same("scale")),
    (
        ensemble.Temperature,
        lambda module: {"temperature": float(module.temperature), "reads": module.reads},
    ),
    (ensemble.ClassBias, lambda module: {"offsets": module.offsets.tolist()}),
    (nn.Linear, _read_with_bias("in_features", "out_features")),
    (nn.LayerNorm, _read_with_bias("normalized_shape", "eps", "elementwise_affine")),
    (nn.BatchNorm1d, _BATCH_NORM),
    (nn.BatchNorm2d, _BATCH_NORM),
    (nn.PReLU, _same("num_parameters")),
    (nn.GELU, _same("approximate")),
    (nn.ReLU, _same()),
    (nn.SiLU, _same()),
    (nn.Dropout, _same("p")),
    (nn.Flatten, _same("start_dim", "end_dim")),
    (nn.AdaptiveAvgPool2d, _same("output_size")),
    (nn.AdaptiveMaxPool2d, _same("output_size")),
    (nn.Identity, _same()),
    (nn.Sequential, _read_sequential),
]


def _name(kind: type[nn.Module]) -> str:
    return f"torch.nn.{kind.__name__}" if kind.__module__.startswith("torch.") else kind.__name__


_NAMES = {kind: (_name(kind), read) for kind, read in _TABLE}
_MAKERS: dict[str, Callable[..., nn.Module]] = {
    **{name: kind for kind, (name, _) in _NAMES.items()},
    "LowResClassifier": _make_classifier,
    "torch.nn.Sequential": _make_sequential,
}
