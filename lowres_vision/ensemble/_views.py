"""Test-time views of an image, and the Module that averages a model's answers to them."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range, check_size
from lowres_vision.ensemble._inputs import check_weights
from lowres_vision.ensemble._vote import Vote, combine
from lowres_vision.ops import resize

Average = Literal["probability", "log"]
Box = tuple[float, float, float, float]

VOTE_OF: dict[Average, Vote] = {"probability": "soft", "log": "geometric"}
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """One way to show an image to a model.

    Args:
        name: Of the view, e.g. in a ledger; ``"plain"`` for the image as it is.
        box: Top, left, height and width of the part shown, as shares of the image.
        flip: Whether it is mirrored left and right.
        size: Side or ``(height, width)`` it is resized to; None for the size that
            :class:`TestTimeAugmentation` names.
        bypass: Child of the model that is left out, e.g. ``"resizer"``, so that plain resampling
            to ``size`` takes the place of the learned one.

    Raises:
        ValueError: If the box is empty or reaches beyond the image.
    """

    name: str = "plain"
    box: Box = _WHOLE
    flip: bool = False
    size: int | tuple[int, int] | None = None
    bypass: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size("size", self.size)
        top, left, height, width = self.box
        inside = top + height <= 1 + 1e-9 and left + width <= 1 + 1e-9
        if not (inside and min(top, left) >= 0 and min(height, width) > 0):
            raise ValueError(
                f"`box` must be top, left, height, width as shares of the image, inside [0, 1] and "
                f"not empty, got {self.box}"
            )


def make_views(
    *,
    flip: bool = True,
    crop: float | None = None,
    sizes: Sequence[int | tuple[int, int]] = (),
    without_resizer: int | tuple[int, int] | None = None,
) -> tuple[View, ...]:
    """Return the plain view and the usual others, each also mirrored.

    Args:
        flip: Whether each view has a mirrored twin.
        crop: Side of a centre crop and four corner crops as a share of the image's sides, or None.
        sizes: Other sizes that the whole image is resized to; the model must take them.
        without_resizer: Size that a view without the model's ``resizer`` is resized to: what its
            backbone reads.

    Returns:
        Views, the plain one first.

    Example:
        >>> [view.name for view in make_views(crop=0.875)][:6]
        ['plain', 'plain flip', 'centre', 'centre flip', 'top left', 'top left flip']
        >>> len(make_views(flip=False, sizes=(56, 72), without_resizer=224))
        4
    """
    views = [View()]
    if crop is not None:
        check_range("crop", crop, 0, 1, open_low=True)
        rest = 1 - crop
        corners = {
            "centre": (rest / 2, rest / 2),
            "top left": (0.0, 0.0),
            "top right": (0.0, rest),
            "bottom left": (rest, 0.0),
            "bottom right": (rest, rest),
        }
        views += [View(name, box=(*corner, crop, crop)) for name, corner in corners.items()]
    for size in sizes:
        height, width = check_size("sizes", size)
        name = f"{height} px" if height == width else f"{height} x {width} px"
        views.append(View(name, size=(height, width)))
    if without_resizer is not None:
        views.append(View("no resizer", size=without_resizer, bypass="resizer"))
    if not flip:
        return tuple(views)
    twins = [View(f"{v.name} flip", v.box, True, v.size, v.bypass) for v in views]
    return tuple(view for pair in zip(views, twins, strict=True) for view in pair)


class TestTimeAugmentation(nn.Module):
    """Average a model's probabilities over several views of each image.

    Views are made from the images as they were loaded, uint8 and at their own size: crop, flip,
    resize and normalisation are one call of :func:`lowres_vision.ops.resize` per view. Cropping
    what was resized already would resample twice, and a low-resolution image has nothing to spare.

    More views are not always better: enter each in an :class:`OutOfFold` ledger (``view=name``),
    let :func:`select_views` say which to keep, and :meth:`keep` those.

    Args:
        model: From normalised images to outputs ``(B, K)``.
        probabilities: From outputs to probabilities, e.g. ``loss.probabilities`` of a Module of
            :mod:`lowres_vision.losses`.
        views: Of different names; the plain one is no matter of course, name it.
        size: Side or ``(height, width)`` that the model reads.
        mean: Of the normalisation, in [0, 1] units; None for none.
        std: As ``mean``.
        mode: ``"bilinear"`` or ``"bicubic"``.
        average: ``"probability"`` as in :func:`soft_vote`, or ``"log"`` as in
            :func:`geometric_mean_vote`: averaging logits, where one view can veto a class.
        weights: ``(V,)`` non-negative weights; default equal.

    Raises:
        ValueError: If there is no view, names repeat, or choices and weights do not fit.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        >>> augmented = TestTimeAugmentation(
        ...     model, probabilities=lambda z: z.softmax(1), views=make_views(crop=0.75), size=8)
        >>> images = torch.randint(256, (2, 3, 16, 16)).to(torch.uint8)
        >>> augmented(images).shape, augmented.each(images).shape
        (torch.Size([2, 4]), torch.Size([12, 2, 4]))
        >>> augmented.keep(["plain", "plain flip"]).names
        ('plain', 'plain flip')
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        probabilities: Callable[[Tensor], Tensor],
        views: Sequence[View],
        size: int | tuple[int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mode: Literal["bilinear", "bicubic"] = "bilinear",
        average: Average = "probability",
        weights: Sequence[float] | npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        if not views:
            raise ValueError("`views` must hold at least one View, got none")
        self.names = tuple(view.name for view in views)
        if len(set(self.names)) != len(views):
            raise ValueError(f"`views` must have different names, got {list(self.names)}")
        check_choice("average", average, tuple(VOTE_OF))
        check_choice("mode", mode, ("bilinear", "bicubic"))
        self.model = model
        self.probabilities = probabilities
        self.views = tuple(views)
        self.size = check_size("size", size)
        self.mean, self.std, self.mode = mean, std, mode
        self.average: Average = average
        self.weights = check_weights(weights, len(views))

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Map images to mean probabilities.

        Args:
            images: ``(B, C, H, W)`` uint8, or float before normalisation, or a list of B
                ``(C, H, W)`` of different sizes.

        Returns:
            ``(B, K)``, float32 or better; rows sum to 1.
        """
        return combine(self._answers(images), self.weights, VOTE_OF[self.average])

    def each(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Map images to the probabilities ``(V, B, K)`` that each view gets."""
        return torch.stack(list(self._answers(images)))

    def keep(self, names: Sequence[str]) -> Self:
        """Return the augmentation of these views alone, with the same model and their weights.

        Raises:
            ValueError: If a name is unknown.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise ValueError(f"`names` must be views of {list(self.names)}, got {unknown}")
        places = [self.names.index(name) for name in names]
        return type(self)(
            self.model,
            probabilities=self.probabilities,
            views=[self.views[place] for place in places],
            size=self.size,
            mean=self.mean,
            std=self.std,
            mode=self.mode,
            average=self.average,
            weights=[self.weights[place] for place in places],
        )

    @torch.inference_mode()
    def seconds_per_image(
        self, images: Tensor | Sequence[Tensor], *, repeats: int = 5
    ) -> dict[str, float]:
        """Return what each view costs: the median seconds of a batch by its number of images.

        Args:
            images: As for :meth:`forward`; one batch.
            repeats: Timed runs per view, after one that is not; at least 1.
        """
        check_range("repeats", repeats, 1)
        times: dict[str, list[float]] = {name: [] for name in self.names}
        for _ in range(repeats + 1):
            for view in self.views:
                _wait_for(images[0])
                start = time.perf_counter()
                self._answer(images, view)
                _wait_for(images[0])
                times[view.name].append(time.perf_counter() - start)
        return {
            name: sorted(taken[1:])[repeats // 2] / len(images) for name, taken in times.items()
        }

    def _answers(self, images: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
        return (self._answer(images, view) for view in self.views)

    def _answer(self, images: Tensor | Sequence[Tensor], view: View) -> Tensor:
        shown = resize(
            images,
            self.size if view.size is None else view.size,
            boxes=None if view.box == _WHOLE else _boxes(images, view.box),
            flip=torch.ones(len(images), dtype=torch.bool, device=images[0].device)
            if view.flip
            else None,
            mean=self.mean,
            std=self.std,
            mode=self.mode,
            channels_last=True,
        )
        model = self.model if view.bypass is None else _without(self.model, view.bypass)
        return self.probabilities(model(shown))

    def extra_repr(self) -> str:
        """Name the views and how they are averaged."""
        return f"views={list(self.names)}, size={self.size}, average={self.average!r}"


def _boxes(images: Tensor | Sequence[Tensor], share: Box) -> Tensor:
    """Return the part ``(B, 4)`` of each image in its pixels."""
    sizes = [image.shape[-2:] for image in images]
    top, left, height, width = share
    boxes = [
        (top * H, left * W, min(height * H, H - top * H), min(width * W, W - left * W))
        for H, W in sizes
    ]
    return torch.tensor(boxes, dtype=torch.float32, device=images[0].device)


def _without(model: nn.Module, child: str) -> nn.Module:
    """Return the model without a child; all the rest is shared with it, not copied."""
    if getattr(model, child, None) is None:
        raise ValueError(f"`bypass` names {child!r}, which the model does not have")
    bare = copy.copy(model)
    bare.__dict__["_modules"] = dict(model._modules)
    setattr(bare, child, None)
    return bare


def _wait_for(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
