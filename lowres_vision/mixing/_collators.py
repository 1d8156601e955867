"""Collators that mix a batch while a DataLoader puts it together."""

import zlib
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from lowres_vision._batch import Batch, Pair, PairBatch, Sample, stack_images
from lowres_vision._checks import check_range, check_size
from lowres_vision._random import stream
from lowres_vision.mixing._cutmix import sample_cutmix, scale_mix
from lowres_vision.mixing._draws import check_alpha
from lowres_vision.mixing._images import mix_images
from lowres_vision.mixing._mixup import sample_mixup
from lowres_vision.mixing._samples import Fields, read_samples
from lowres_vision.mixing._targets import mix_targets, soft_targets
from lowres_vision.ops import Mix


class _Collator:
    """All of a mixing collator but the draw itself."""

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 1.0,
        p: float = 0.5,
        per_sample: bool = False,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        check_range("num_classes", num_classes, 1)
        check_alpha(alpha)
        check_range("p", p, 0.0, 1.0)
        check_range("seed", seed, 0)
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p
        self.per_sample = per_sample
        self.size = None if size is None else check_size("size", size)
        self.seed = seed

    @overload
    def __call__(self, samples: Sequence[Sample]) -> Batch: ...
    @overload
    def __call__(self, samples: Sequence[Pair]) -> PairBatch: ...
    @overload
    def __call__(self, samples: Sequence[tuple[Tensor, int | Tensor]]) -> tuple[Tensor, Tensor]: ...
    def __call__(self, samples: Sequence[Any]) -> Any:
        """Make a batch of the samples, mixed or, with ``size``, drawn and still to be mixed."""
        fields = read_samples(samples)
        if fields.rows is None and self.size is not None:
            raise TypeError(
                "`size` needs samples of type Sample or Pair: a plain (images, targets) batch "
                "has no place for the draw"
            )
        targets = soft_targets(fields.targets, self.num_classes, fields.names)  # (B, K)
        height, width = self.size or fields.images[0][0].shape[-2:]
        generator = _generator(self.seed, type(self).__name__, fields)
        mix = self._draw(len(samples), (height, width), generator)
        if mix is not None:
            targets = mix_targets(targets, mix)
        images: list[Any]
        if self.size is not None:
            images = [stack_images(column) for column in fields.images]
        else:
            images = [_stack(column) for column in fields.images]
            if mix is not None:
                images = [_apply(column, mix, (height, width)) for column in images]
            mix = None
        if fields.rows is None:
            return images[0], targets
        rows = torch.tensor(fields.rows)
        if len(images) == 2:
            return PairBatch(images[0], images[1], targets, rows, mix)
        return Batch(images[0], targets, rows, mix)

    def _draw(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Mix | None:
        chosen = torch.rand(batch if self.per_sample else 1, generator=generator) < self.p
        if not chosen.any():
            return None
        mix = self._sample(batch, size, generator)
        lam = torch.where(chosen, mix.lam, 1.0)
        box = None if mix.box is None else mix.box * chosen[:, None]
        return Mix(mix.partner, lam, box)

    def _sample(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Mix:
        raise NotImplementedError


class CutMixCollator(_Collator):
    """Collate a batch and, with probability ``p``, cut and mix it.

    For a DataLoader's ``collate_fn``. It takes what the dataset yields and returns

    - for ``(image, target)`` tuples: ``(images, targets)``;
    - for :class:`lowres_vision.data.Sample`: a ``Batch``;
    - for :class:`lowres_vision.data.Pair`: a ``PairBatch``, with one box for both resolutions:
      drawn on the low one's pixels, whose share is the label, and carried over to the high one
      by :func:`lowres_vision.mixing.scale_mix`.

    Images are ``(C, H, W)`` uint8 or float, targets class indices or ``(K,)`` float tensors. The
    targets that come out are ``(B, K)`` float32 whether a batch was mixed or not. A batch of one
    comes out unmixed. An unlabelled target, -1, is refused.

    **Draw only.** Where a crop, a flip or a resize is still to come, say into what ``size``. The
    images then stay as they are, of one size or a list; ``Batch.mix`` is the draw in pixels of
    ``size``, or None; and the targets are mixed already. Finish with
    ``lowres_vision.ops.resize(batch.images, size, mix=batch.mix)``, or the same for both images
    of a pair. The label share counts pixels of the output.

    **Randomness.** What a batch draws depends on ``seed`` and on the samples' ``row`` numbers in
    their order, so neither the number of workers nor a restart changes it; tuples have no row,
    and their labels and the first image's bytes, after any transform, stand in. A loader that
    shuffles gives other batches, and so other draws, in each epoch. One that does not shuffle
    repeats its draws.

    Args:
        num_classes: K.
        alpha: Of the Beta distribution of the shares, >= 0; see
            :func:`lowres_vision.mixing.sample_cutmix`.
        p: Probability of mixing: a batch, or each image where ``per_sample``.
        per_sample: Draw for each image by itself instead of once for the batch.
        size: Height and width that the images will be resized to, to draw only; an int stands
            for a square. None mixes the images here.
        seed: Of the draws, >= 0.

    Raises:
        TypeError: If ``size`` is not one or two ints, or samples are not as above.
        ValueError: If an argument is out of range; if images of a batch differ in size and there
            is no ``size``; if a target is out of range.

    Example:
        >>> data = [(torch.rand(3, 32, 32), label) for label in (0, 2, 1, 2)]
        >>> collator = CutMixCollator(3, p=1.0)
        >>> loader = torch.utils.data.DataLoader(data, 4, shuffle=True, collate_fn=collator)
        >>> images, targets = next(iter(loader))
        >>> images.shape, targets.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 3]))

    References:
        Yun et al., CutMix, 2019, https://arxiv.org/abs/1905.04899, who mix each CIFAR batch with
        probability 0.5 and each ImageNet batch with 1.
    """

    def _sample(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Mix:
        return sample_cutmix(
            batch, size, alpha=self.alpha, per_sample=self.per_sample, generator=generator
        )


class MixupCollator(_Collator):
    """Collate a batch and, with probability ``p``, average its images with one another.

    Samples, batches, drawing only, randomness and errors are those of
    :class:`lowres_vision.mixing.CutMixCollator`. Both images of a pair take one share. uint8
    images stay uint8, rounded.

    Args:
        num_classes: K.
        alpha: Of the Beta distribution of the shares, >= 0.
        p: Probability of mixing: a batch, or each image where ``per_sample``.
        per_sample: Draw for each image by itself instead of once for the batch.
        size: Anything but None draws only; the draw itself does not depend on it.
        seed: Of the draws, >= 0.

    Example:
        >>> collator = MixupCollator(2, p=1.0, alpha=0.2)
        >>> images, targets = collator([(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 1)])
        >>> bool(torch.allclose(images[:, 0, 0, 0], targets[:, 1]))
        True

    References:
        Zhang et al., mixup: Beyond empirical risk minimization, 2018,
        https://arxiv.org/abs/1710.09412.
    """

    def _sample(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Mix:
        return sample_mixup(
            batch, alpha=self.alpha, per_sample=self.per_sample, generator=generator
        )


class MixCollator:
    """Choose one of several mixing collators for each batch.

    The chosen one still mixes with its own ``p`` only: give it 1 to mix every batch.

    Args:
        collators: The collators to choose among; equal ``num_classes`` and ``size``, so that
            batches look alike.
        weights: How often to choose each, >= 0, in any unit. None: equally often.
        seed: Of the choice, >= 0, drawn as in :class:`lowres_vision.mixing.CutMixCollator`.

    Raises:
        TypeError: If a collator is not a CutMixCollator or MixupCollator.
        ValueError: If the collators do not fit together, or the weights do not fit them.

    Example:
        >>> cut, mix = CutMixCollator(3, p=1.0), MixupCollator(3, p=1.0, alpha=0.2)
        >>> collator = MixCollator([cut, mix], weights=[0.7, 0.3])
        >>> images, targets = collator([(torch.zeros(3, 8, 8), 0), (torch.ones(3, 8, 8), 2)])
        >>> targets.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        collators: Sequence[CutMixCollator | MixupCollator],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if not collators:
            raise ValueError("`collators` must hold at least one collator, got none")
        for collator in collators:
            if not isinstance(collator, _Collator):
                raise TypeError(
                    f"`collators` must be CutMixCollators and MixupCollators, got {collator!r}"
                )
        for name in ("num_classes", "size"):
            values = [getattr(collator, name) for collator in collators]
            if any(value != values[0] for value in values):
                raise ValueError(f"`collators` must share one `{name}`, got {values}")
        weights = [1.0] * len(collators) if weights is None else list(weights)
        if len(weights) != len(collators):
            raise ValueError(
                f"`weights` must be one for each of {len(collators)} collators, got {weights}"
            )
        for index, weight in enumerate(weights):
            check_range(f"weights[{index}]", weight, 0.0)
        if not 0 < sum(weights) < float("inf"):
            raise ValueError(f"`weights` must have a finite sum > 0, got {weights}")
        check_range("seed", seed, 0)
        self.collators = list(collators)
        self.weights = weights
        self.seed = seed

    @overload
    def __call__(self, samples: Sequence[Sample]) -> Batch: ...
    @overload
    def __call__(self, samples: Sequence[Pair]) -> PairBatch: ...
    @overload
    def __call__(self, samples: Sequence[tuple[Tensor, int | Tensor]]) -> tuple[Tensor, Tensor]: ...
    def __call__(self, samples: Sequence[Any]) -> Any:
        """Make a batch of the samples with one of the collators."""
        generator = _generator(self.seed, type(self).__name__, read_samples(samples))
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return self.collators[int(torch.multinomial(weights, 1, generator=generator))](samples)


def _stack(images: Tensor | list[Tensor]) -> Tensor:
    stacked = stack_images(images)
    if isinstance(stacked, Tensor):
        return stacked
    shapes = sorted({tuple(image.shape) for image in images})
    raise ValueError(
        f"images of a batch must have one shape to be mixed here, got {shapes[0]} and "
        f"{shapes[1]}; resize them in the dataset, or give the collator the `size` that "
        "lowres_vision.ops.resize(..., mix=batch.mix) will make of them"
    )


def _apply(images: Tensor, mix: Mix, size: tuple[int, int]) -> Tensor:
    """Mix images with a draw for ``size``, which need not be theirs."""
    height, width = images.shape[-2:]
    partner, lam, box = scale_mix(mix, size, (height, width))
    device = images.device  # draws are made on the CPU, images may lie elsewhere
    box = None if box is None else box.to(device)
    return mix_images(images, Mix(partner.to(device), lam.to(device), box))


def _generator(seed: int, name: str, fields: Fields) -> torch.Generator:
    """Return the stream of a collator and a batch.

    The name keeps the choice of a MixCollator and the draws of what it chose apart, though their
    seeds are equal.
    """
    return stream(seed, zlib.crc32(name.encode()), *fields.keys)
