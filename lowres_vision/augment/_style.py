"""Neural style transfer as an augmentation for rare classes."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range
from lowres_vision.augment._features import Features, vgg19, vgg19_layers
from lowres_vision.augment._style_loss import (
    content_loss,
    gram_matrix,
    style_loss,
    total_variation,
)
from lowres_vision.augment._style_pairs import add_rows, draw_style_pairs
from lowres_vision.data import Manifest
from lowres_vision.ops import resize


class StyleTransfer(nn.Module):
    r"""Paint a content image anew in the style of another, by optimising its pixels.

    .. math:: \alpha L_\mathrm{content} + \beta \sum_l w_l E_l + \gamma L_\mathrm{TV},
              \quad w_l = 1 / L

    with :func:`content_loss` and :func:`style_loss` on a frozen network's feature maps, starting
    from the content image. As an augmentation the result has the label of the content image.

    **Network.** VGG-19 as in the paper, with layers named ``conv4_2`` as there, each after its
    ReLU; or any network, with layers as ``named_modules()`` has them. The losses are relative to
    the targets, so the weights mean much the same for any network.

    **Cost.** A step is a forward and a backward pass of the network. The images of a batch go
    through Adam together; L-BFGS takes them one by one, for its curvature would couple them. So
    an image's result does not depend on its batch.

    Args:
        network: Feature network; None for torchvision's VGG-19.
        content_layers: Default ``("conv4_2",)`` with VGG-19; required with ``network``.
        style_layers: Default ``("conv1_1", ..., "conv5_1")`` with VGG-19; likewise.
        checkpoint_path: VGG-19 weights file (safetensors or ``.pth``) in place of a download.
        mean: Normalisation that the network's weights expect, in [0, 1] units.
        std: As ``mean``.
        content_weight: The weight alpha.
        style_weight: The weight beta.
        tv_weight: The weight gamma.
        average_pooling: Put average poolings in place of max poolings, as the paper does for its
            pictures; False keeps the network as it was trained.
        optimizer: ``"lbfgs"`` with a strong Wolfe line search, which never diverges, or
            ``"adam"``.
        steps: Iterations; a line search evaluates about 1.1 times per iteration.
        lr: Step size: first step of L-BFGS, or Adam's rate in units of normalised pixels.
            Default 1 and 0.05.
        max_side: Larger images are shrunk first so that this is their longer side, and come back
            at that size; None never shrinks.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        >>> transfer = StyleTransfer(network, content_layers=["2"], style_layers=["1"], steps=3)
        >>> content = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        >>> transfer(content, content[:1]).shape
        torch.Size([2, 3, 16, 16])

    References:
        Gatys et al., Image Style Transfer Using Convolutional Neural Networks, 2016,
        https://doi.org/10.1109/CVPR.2016.265. They start from noise or from an image; here always
        from the content image. Their losses are sums over places and channels; these are in units
        of the targets, see :func:`content_loss`.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        content_layers: Sequence[str] | None = None,
        style_layers: Sequence[str] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        content_weight: float = 1.0,
        style_weight: float = 10.0,
        tv_weight: float = 0.0,
        average_pooling: bool = True,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        steps: int = 100,
        lr: float | None = None,
        max_side: int | None = 512,
    ) -> None:
        super().__init__()
        check_choice("optimizer", optimizer, ("lbfgs", "adam"))
        check_range("steps", steps, 1)
        for name, weight in (
            ("content_weight", content_weight),
            ("style_weight", style_weight),
            ("tv_weight", tv_weight),
        ):
            check_range(name, weight, 0.0)
        self.lr = lr if lr is not None else (1.0 if optimizer == "lbfgs" else 0.05)
        check_range("lr", self.lr, 0.0, open_low=True)
        if max_side is not None:
            check_range("max_side", max_side, 1)
        if network is None:
            names = vgg19_layers()
            content_layers = _named(content_layers or ("conv4_2",), names)
            style_layers = _named(
                style_layers or [f"conv{block}_1" for block in range(1, 6)], names
            )
            network = vgg19(checkpoint_path)
        elif checkpoint_path is not None:
            raise ValueError(
                "`checkpoint_path` is of VGG-19; load the weights of `network` into it"
            )
        if not content_layers or not style_layers:
            raise ValueError("`network` needs `content_layers` and `style_layers`, by name")
        self.content_layers, self.style_layers = tuple(content_layers), tuple(style_layers)
        layers = tuple(dict.fromkeys((*self.content_layers, *self.style_layers)))
        self.features = Features(network, layers, average_pooling=average_pooling)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.content_weight = content_weight
        self.style_weight = style_weight
        self.tv_weight = tv_weight
        self.optimizer = optimizer
        self.steps = steps
        self.max_side = max_side

    def forward(
        self,
        content: Tensor,
        style: Tensor,
        *,
        callback: Callable[[int, float], None] | None = None,
    ) -> Tensor:
        """Return the content images in the style of the style images.

        Args:
            content: uint8 ``(B, 3, H, W)``.
            style: uint8 ``(B, 3, h, w)``, one for each content image, or ``(1, 3, h, w)``.
            callback: Called as ``callback(evaluation, loss)`` after each evaluation, counted from
                1 for each optimisation; the loss is the sum over the images in it.

        Returns:
            uint8 ``(B, 3, H, W)``, with the longer side at most ``max_side``.

        Raises:
            TypeError: If images are not uint8.
            ValueError: If shapes do not fit, or the network cannot take images so small.
            FloatingPointError: If the loss is no longer finite.
        """
        for name, images in (("content", content), ("style", style)):
            if images.dtype != torch.uint8:
                raise TypeError(f"`{name}` must be uint8, got {images.dtype}")
            if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
                raise ValueError(
                    f"`{name}` must be (B, 3, H, W), not empty, got shape {tuple(images.shape)}"
                )
        if len(style) not in (1, len(content)):
            raise ValueError(
                f"`style` must be one image or one for each content image, got {len(style)} for "
                f"{len(content)}"
            )
        source, model = self._normalised(content), self._normalised(style)
        if self.optimizer == "adam":
            result = self._optimise(source, model, callback)
        else:
            parts = zip(source, model.expand(len(source), -1, -1, -1), strict=True)
            result = torch.cat(
                [self._optimise(image[None], other[None], callback) for image, other in parts]
            )
        pixels = (result * self._std + self._mean).clamp(0, 1)
        return (pixels * 255 + 0.5).to(torch.uint8)

    def top_up(
        self,
        manifest: Manifest,
        folder: str | os.PathLike[str],
        *,
        to: int | Mapping[str, int],
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        style_from: Literal["same", "other", "any"] = "same",
        seed: int = 0,
        callback: Callable[[int, int], None] | None = None,
    ) -> Manifest:
        """Return a manifest in which rare classes are topped up with restyled images.

        New rows follow the old ones, so old row numbers stay. They have the label of their content
        image and the id ``styled-<content id>-<style id>``, numbered where that is taken. Their
        ``columns`` are those of the content image, and two more, ``content_id`` and ``style_id``,
        tell what each was made of, empty for the others; columns of these names go on.
        :func:`lowres_vision.plots.styled_rows` draws them.

        **No leak.** Content and style come from ``rows`` alone. Give the training rows of a fold,
        and train on them and the new ones::

            made = transfer.top_up(manifest, folder, to=50, rows=train)
            dataset = MultiResolutionDataset(
                made, rows=[*train, *range(len(manifest), len(made))]
            )

        Fold *before* topping up: in a manifest that was topped up first, a picture and its
        restyled copy could fall on two sides.

        Args:
            manifest: Labelled rows of single images.
            folder: Where the PNG files go; made if missing. A file that is there is not made
                again, so an interrupted call goes on where it stopped.
            to: Number of images that each class shall at least have, or a number by class name.
            rows: Row numbers to count and to draw from; default all.
            style_from: Where a style image comes from, see :func:`draw_style_pairs`.
            seed: Seed of the draw.
            callback: Called as ``callback(done, total)`` after each image.

        Raises:
            DataError: If rows are unlabelled or images cannot be decoded.
            IndexError: If one of ``rows`` is not there.
            TypeError: If ``rows`` are no row numbers: a mask, say.
            ValueError: If the manifest has a high-resolution column, of which a restyled image
                has no counterpart; or no pair can be drawn.
        """
        manifest.require_labels()
        if manifest.high is not None:
            raise ValueError(
                "`manifest` must have single images: a restyled one has no high-resolution "
                "counterpart; leave that out, `dataclasses.replace(manifest, high=None)`"
            )
        names = manifest.classes
        by_name = to if isinstance(to, Mapping) else dict.fromkeys(names, to)
        if unknown := sorted(set(by_name) - set(names)):
            raise ValueError(f"`to` names no class of the manifest: {unknown}")
        wanted = {names.index(name): count for name, count in by_name.items()}
        pairs = draw_style_pairs(
            manifest.labels.tolist(), to=wanted, rows=rows, style_from=style_from, seed=seed
        )
        return add_rows(manifest, pairs, Path(folder), self, callback=callback)

    def losses(self, images: Tensor, content: Tensor, style: Tensor) -> Tensor:
        """Return the objective of normalised images, per image.

        Args:
            images: ``(B, 3, H, W)``, normalised by ``mean`` and ``std``.
            content: Likewise, the content images.
            style: ``(B, 3, h, w)`` or ``(1, 3, h, w)``, likewise.

        Returns:
            ``(B,)``.
        """
        return self._losses(images, *self._targets(content, style))

    def _losses(
        self, images: Tensor, contents: dict[str, Tensor], grams: dict[str, Tensor]
    ) -> Tensor:
        found = self.features(images)
        total = self.tv_weight * total_variation(images)
        for name, target in contents.items():
            total = total + self.content_weight / len(contents) * content_loss(found[name], target)
        for name, target in grams.items():
            gram = gram_matrix(found[name])
            total = total + self.style_weight / len(grams) * style_loss(gram, target)
        return total

    def _targets(
        self, content: Tensor, style: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            try:
                contents, styles = self.features(content), self.features(style)
            except RuntimeError as error:
                raise ValueError(
                    f"`content` of {tuple(content.shape[-2:])} or `style` of "
                    f"{tuple(style.shape[-2:])} is too small for the network: {error}"
                ) from error
            return (
                {name: contents[name] for name in self.content_layers},
                {name: gram_matrix(styles[name]) for name in self.style_layers},
            )

    def _optimise(
        self, content: Tensor, style: Tensor, callback: Callable[[int, float], None] | None
    ) -> Tensor:
        """Return the optimised images, normalised as ``content`` is."""
        contents, grams = self._targets(content, style)
        images = content.clone().requires_grad_()
        optimizer: torch.optim.Optimizer
        if self.optimizer == "lbfgs":
            optimizer = torch.optim.LBFGS(
                [images],
                lr=self.lr,
                max_iter=self.steps,
                tolerance_grad=0,
                tolerance_change=0,
                history_size=20,
                line_search_fn="strong_wolfe",
            )
        else:
            optimizer = torch.optim.Adam([images], lr=self.lr)
        evaluations = 0

        def closure() -> float:
            nonlocal evaluations
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = self._losses(images, contents, grams).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            evaluations += 1
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss of evaluation {evaluations} is {value}; lower `style_weight`, now "
                    f"{self.style_weight}, or `lr`, now {self.lr}"
                )
            if callback is not None:
                callback(evaluations, value)
            return value

        for _ in range(1 if self.optimizer == "lbfgs" else self.steps):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return images.detach()

    def extra_repr(self) -> str:
        """Return every setting that shapes the result."""
        return (
            f"content_layers={self.content_layers}, style_layers={self.style_layers}, "
            f"mean={self._mean.flatten().tolist()}, std={self._std.flatten().tolist()}, "
            f"content_weight={self.content_weight}, style_weight={self.style_weight}, "
            f"tv_weight={self.tv_weight}, optimizer={self.optimizer!r}, steps={self.steps}, "
            f"lr={self.lr}, max_side={self.max_side}"
        )

    @property
    def _mean(self) -> Tensor:
        return self.get_buffer("mean")

    @property
    def _std(self) -> Tensor:
        return self.get_buffer("std")

    def _normalised(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        share = 1.0 if self.max_side is None else min(1.0, self.max_side / max(height, width))
        size = max(round(height * share), 1), max(round(width * share), 1)
        pixels = resize(images, size, mode="bicubic").clamp(0, 1)
        return (pixels - self._mean) / self._std


def _named(layers: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    for layer in layers:
        if layer not in names:
            raise ValueError(f"VGG-19 has no layer {layer!r}; its layers are {', '.join(names)}")
    return tuple(names[layer] for layer in layers)
