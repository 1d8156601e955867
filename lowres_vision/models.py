"""A classifier of low-resolution images around any timm backbone.

``LowResClassifier`` brings the backbone's feature layout (NCHW maps of CNNs, NHWC maps of Swin,
tokens of ViT and BEiT) to what its pooling needs, loads weights strictly from the hub or from a
file, and refuses image sizes of which a patch grid would leave pixels unread. ``freeze_except``
leaves a part of a model trainable and truly holds the rest.
"""

import difflib
import os
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import timm.models
from einops import rearrange
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range, check_size
from lowres_vision.heads import CosineClassifier, EmbeddingNeck
from lowres_vision.pooling import GeM

__all__ = ["LowResClassifier", "freeze_except"]


class LowResClassifier(nn.Module):
    """Resizer, backbone, pooling, neck and head in one Module.

    ``images -> [resizer] -> backbone -> pool -> [neck] -> [dropout] -> head``

    Args:
        backbone: Name of a timm model, e.g. ``"beit_base_patch16_224.in22k_ft_in22k"``.
        num_classes: Number of classes K, at least 2.
        resizer: Module from images to images that stands before the backbone, e.g. a
            :class:`~lowres_vision.resizer.LearnableResizer`.
        image_size: Side or ``(height, width)`` that reaches the backbone; default is the size it
            was pretrained at. Position embeddings of pretrained weights are resampled by timm.
        pool: None for the backbone's own pooling, ``"gem"``, or a Module from a ``(B, C, h, w)``
            feature map to ``(B, C)``.
        neck: None, ``"embedding"`` for an :class:`~lowres_vision.heads.EmbeddingNeck` of 512, or
            a Module with an ``out_features`` attribute.
        head: ``"linear"`` gives logits, ``"cosine"`` cosines for
            :class:`~lowres_vision.losses.ArcFaceLoss`.
        pretrained: Fetch timm's weights, from its cache or the network.
        checkpoint_path: Weights file of this backbone (safetensors, or a ``.pth`` without code)
            in place of a download; every parameter but the old classifier must be in it.
        drop: Dropout probability before the head.
        **timm_args: Passed to ``timm.create_model``, e.g. ``pad_type="same"``.

    Attributes:
        backbone_name: The argument ``backbone``.
        timm_args: The arguments for ``timm.create_model``.
        image_size: ``(height, width)`` the backbone reads.
        mean: Normalisation the weights expect, in [0, 1] units.
        std: As ``mean``.
        outputs: ``"logits"`` or ``"cosines"``, what :meth:`forward` gives.

    Raises:
        ValueError: If an argument is out of range, timm has no such model, the checkpoint does not
            fit, or a patch grid does not divide the image size.
        FileNotFoundError: If ``checkpoint_path`` is not a file.
        OSError: If ``pretrained`` weights can neither be found in the cache nor be downloaded.

    Example:
        >>> import torch
        >>> model = LowResClassifier("test_vit", num_classes=3, image_size=64)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> model(images).shape, model.embed(images).shape
        (torch.Size([2, 3]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        resizer: nn.Module | None = None,
        image_size: int | tuple[int, int] | None = None,
        pool: Literal["gem"] | nn.Module | None = None,
        neck: Literal["embedding"] | nn.Module | None = None,
        head: Literal["linear", "cosine"] = "linear",
        pretrained: bool = False,
        checkpoint_path: str | os.PathLike[str] | None = None,
        drop: float = 0.0,
        **timm_args: Any,
    ) -> None:
        super().__init__()
        check_range("num_classes", num_classes, 2)
        check_choice("head", head, ("linear", "cosine"))
        check_range("drop", drop, 0.0, 1.0)
        if isinstance(pool, str):
            check_choice("pool", pool, ("gem",))
        if isinstance(neck, str):
            check_choice("neck", neck, ("embedding",))
        if pretrained and checkpoint_path is not None:
            raise ValueError("give `pretrained=True` or `checkpoint_path`, not both")

        self.backbone_name, self.timm_args = backbone, timm_args
        config = _pretrained_config(backbone)
        size = config["input_size"][1:] if image_size is None else image_size
        self.image_size = check_size("image_size", tuple(size) if isinstance(size, list) else size)
        self.mean = tuple(float(value) for value in config["mean"])
        self.std = tuple(float(value) for value in config["std"])
        if config.get("fixed_input_size"):
            timm_args = {"img_size": self.image_size, **timm_args}
        self.resizer = resizer
        self.backbone = _create(backbone, timm_args, pretrained, checkpoint_path)
        _refuse_unread_pixels(self.backbone, backbone, self.image_size)

        self.pool = GeM() if pool == "gem" else pool
        width: int = self.backbone.head_hidden_size if pool is None else self.backbone.num_features
        self.neck = EmbeddingNeck(width) if neck == "embedding" else neck
        if self.neck is not None:
            width = int(getattr(self.neck, "out_features", 0))
            check_range("neck.out_features", width, 1)
        self.drop = nn.Dropout(drop)
        self.head = (CosineClassifier if head == "cosine" else nn.Linear)(width, num_classes)
        self.outputs = "logits" if head == "linear" else "cosines"
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, C, H, W)`` to logits or cosines ``(B, K)``."""
        return self.classify(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, C, H, W)`` to the embedding ``(B, D)`` before the head."""
        if self.resizer is not None:
            images = self.resizer(images)
        if not images.is_floating_point():
            raise TypeError(
                f"`images` must be float and normalised, got {images.dtype}; send them through a "
                f"BatchTransform, a Resize or ops.resize first"
            )
        features = self.backbone.forward_features(images)
        if self.pool is None:
            embedding: Tensor = self.backbone.forward_head(features, pre_logits=True)
        else:
            embedding = self.pool(_feature_map(self.backbone, features))
        embedding = embedding if self.neck is None else self.neck(embedding)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to logits or cosines ``(B, K)``."""
        output: Tensor = self.head(self.drop(embedding))
        return output

    def set_image_size(self, size: int | tuple[int, int]) -> None:
        """Let the backbone read another image size; its weights stay, resampled where they must.

        Raises:
            ValueError: If a patch grid does not divide the size.
        """
        new = check_size("size", size)
        _refuse_unread_pixels(self.backbone, type(self.backbone).__name__, new)
        if hasattr(self.backbone, "set_input_size"):
            self.backbone.set_input_size(img_size=new)
        self.image_size = new


def freeze_except(
    model: nn.Module, names: str | Collection[str] | None = None, *, last: int | None = None
) -> list[str]:
    """Make a model's named, or last, parameters trainable and freeze all others.

    A layer that keeps running statistics (BatchNorm) stays in evaluation mode while its weights
    are frozen, whatever ``model.train()`` says: otherwise its statistics would drift from those its
    weights, and all layers behind it, were trained with. One without weights goes by its parent's.
    Parameters keep their place in ``state_dict``; a later call decides anew for all of them.

    Args:
        model: Any Module.
        names: Names of parameters or of Modules, or patterns of either: ``"head"``,
            ``"backbone.blocks.1?"``, ``"*.bias"``. Each must match.
        last: Number of parameter tensors to leave trainable, from the end of
            ``model.named_parameters()``; a layer has one or two.

    Returns:
        The names of the trainable parameters, in the model's order.

    Raises:
        ValueError: If neither or both of ``names`` and ``last`` are given, a name matches nothing,
            or there are fewer than ``last`` parameters.

    Example:
        >>> model = LowResClassifier("test_resnet", num_classes=3)
        >>> freeze_except(model, last=2)
        ['head.weight', 'head.bias']
        >>> len(freeze_except(model, ["backbone.layer4", "head"]))
        11
    """
    if (names is None) == (last is None):
        raise ValueError(f"give `names` or `last`, one of them, got {names!r} and {last!r}")
    every = [name for name, _ in model.named_parameters()]
    if last is not None:
        check_range("last", last, 1, len(every))
        chosen = set(every[-last:])
    else:
        assert names is not None
        chosen = _matching(every, [names] if isinstance(names, str) else names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    for parent in model.modules():
        for layer in [parent] if parent is model else parent.children():
            _hold_statistics(layer, parent, training=model.training)
    return [name for name in every if name in chosen]


def _matching(every: Sequence[str], patterns: Collection[str]) -> set[str]:
    if not patterns:
        raise ValueError("`names` must hold at least one name, got none")
    chosen: set[str] = set()
    for pattern in patterns:
        found = {n for n in every if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not found:
            modules = {name.rpartition(".")[0] for name in every}
            near = difflib.get_close_matches(pattern, sorted({*every, *modules}), n=3)
            hint = f" (near ones: {', '.join(near)})" if near else ""
            raise ValueError(f"`names` has {pattern!r}, which matches no parameter{hint}")
        chosen |= found
    return chosen


def _hold_statistics(layer: nn.Module, parent: nn.Module, *, training: bool) -> None:
    """Keep a layer with running statistics in evaluation mode, or stop keeping it."""
    if all(name != "running_mean" for name, _ in layer.named_buffers(recurse=False)):
        return
    weights = list(layer.parameters()) or list(parent.parameters())
    if any(weight.requires_grad for weight in weights):
        layer.__dict__.pop("train", None)
        layer.train(training)
    else:
        layer.eval()
        layer.train = partial(_keep_mode, layer)  # type: ignore[method-assign]


def _keep_mode(layer: nn.Module, mode: bool = True) -> nn.Module:
    return layer


def _pretrained_config(backbone: str) -> dict[str, Any]:
    try:
        config: Any = timm.get_pretrained_cfg(backbone, allow_unregistered=False)
        return dict(config.to_dict())
    except RuntimeError as error:
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f" (near ones: {', '.join(near)})" if near else ""
        message = f"`backbone` must be the name of a timm model, got {backbone!r}{hint}"
        raise ValueError(message) from error


def _create(
    backbone: str,
    timm_args: dict[str, Any],
    pretrained: bool,
    checkpoint_path: str | os.PathLike[str] | None,
) -> Any:
    """Return the backbone without its classifier, a Module of which timm types little."""
    if checkpoint_path is not None:
        return _create_from_file(backbone, timm_args, Path(checkpoint_path))
    try:
        return timm.create_model(backbone, pretrained=pretrained, num_classes=0, **timm_args)
    except OSError:
        page = f"https://huggingface.co/{_pretrained_config(backbone).get('hf_hub_id')}"
        raise OSError(
            f"the weights of {backbone!r} are not in the local cache and could not be downloaded; "
            f"give their file, model.safetensors of {page}, with `checkpoint_path`, or train from "
            f"scratch with pretrained=False"
        ) from None


def _create_from_file(backbone: str, timm_args: dict[str, Any], path: Path) -> Any:
    """Load every weight strictly, the file's own classifier included, then drop that classifier."""
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint_path` {path} is not a file")
    state = timm.models.load_state_dict(str(path))
    classifier = _pretrained_config(backbone)["classifier"]
    name = classifier if isinstance(classifier, str) else classifier[0]
    weight = state.get(f"{name}.weight")
    num_classes = 0 if weight is None else len(weight)
    overlay = {"state_dict": state, "num_classes": num_classes, "custom_load": False}
    try:
        model: Any = timm.create_model(
            backbone,
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay,
            **timm_args,
        )
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(f"`checkpoint_path` {path} does not fit {backbone!r}: {detail}") from error
    model.pretrained_cfg.pop("state_dict", None)
    model.reset_classifier(0)
    return model


def _refuse_unread_pixels(model: Any, name: str, size: tuple[int, int]) -> None:
    patch = _patch_size(model)
    if patch is None:
        return
    read = (size[0] // patch[0] * patch[0], size[1] // patch[1] * patch[1])
    if read != size:
        share = 1 - read[0] * read[1] / (size[0] * size[1])
        pads = hasattr(getattr(model, "patch_embed", None), "dynamic_img_pad")
        remedy = f", or dynamic_img_pad=True with {name!r}" if pads else ""
        raise ValueError(
            f"`image_size` {size} leaves {share:.1%} of the pixels unread: patches of {patch} "
            f"cover {read}; use a multiple of {patch[0]}{remedy}"
        )


def _patch_size(model: Any) -> tuple[int, int] | None:
    """Return the size of patches that lie side by side and are all a model reads, or None."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    patch_embed = getattr(model, "patch_embed", None)
    if patch_embed is None:  # ConvNeXt's stem is a grid as well
        if first is None or first.kernel_size != first.stride:
            return None
        return first.kernel_size[0], first.kernel_size[1]
    if getattr(patch_embed, "dynamic_img_pad", False):
        return None
    # Padded patches overlap (PVT v2); an int is what a stem of small kernels shrinks by (XCiT).
    overlap = first is not None and any(first.padding)
    patch = getattr(patch_embed, "patch_size", None)
    return patch if isinstance(patch, tuple) and not overlap else None


def _feature_map(model: nn.Module, features: Any) -> Tensor:
    """Bring a backbone's features to NCHW."""
    if isinstance(features, Tensor):
        if features.ndim == 4:
            if getattr(model, "output_fmt", "NCHW") == "NHWC":
                return rearrange(features, "b h w c -> b c h w")
            return features
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        prefix = getattr(model, "num_prefix_tokens", 0)
        if features.ndim == 3 and grid and features.shape[1] - prefix == grid[0] * grid[1]:
            return rearrange(features[:, prefix:], "b (h w) c -> b c h w", h=grid[0])
        given = f"shape {tuple(features.shape)}"
    else:
        given = "several tensors"
    raise ValueError(
        f"{type(model).__name__} gives features of {given}, which `pool` cannot read as a map; "
        f"use pool=None, the backbone's own pooling"
    )
