"""Soft targets: made of labels, and mixed."""

import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lowres_vision.ops import Mix


def mix_targets(targets: Tensor, mix: Mix, *, num_classes: int | None = None) -> Tensor:
    """Mix targets as a draw mixes images.

    ``lam * targets + (1 - lam) * targets[partner]``, where class indices count as one-hot rows.
    For use beside ``lowres_vision.ops.resize(..., mix=mix)``, which mixes the images.

    Args:
        targets: ``(B,)`` class indices, or ``(B, K)`` float, for instance probabilities.
        mix: The draw, on the targets' device.
        num_classes: K; needed with class indices.

    Returns:
        ``(B, K)`` float32, or float64 where ``targets`` is; never ``targets`` itself.

    Raises:
        TypeError: If ``targets`` is neither of ints nor of floats.
        ValueError: If shapes, devices or ``num_classes`` do not fit.

    Example:
        >>> mix = Mix(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), None)
        >>> mix_targets(torch.tensor([2, 0]), mix, num_classes=3)
        tensor([[0.2500, 0.0000, 0.7500],
                [0.7500, 0.0000, 0.2500]])
    """
    targets = _as_soft(targets, num_classes)  # (B, K)
    batch = (len(targets),)
    for name, value in (("mix.partner", mix.partner), ("mix.lam", mix.lam)):
        if value.shape != batch:
            raise ValueError(f"`{name}` must have shape {batch}, got {tuple(value.shape)}")
        if value.device != targets.device:
            raise ValueError(
                f"`{name}` must be on the targets' device, {targets.device}, got {value.device}"
            )
    # lerp is exact at lam 0 and 1 and between equal targets, which the weighted sum is not.
    return torch.lerp(targets[mix.partner], targets, mix.lam.to(targets.dtype)[:, None])


def soft_targets(targets: Sequence[int | Tensor], num_classes: int, names: Sequence[str]) -> Tensor:
    """Turn the labels of single samples into ``(B, K)`` float32, naming the one that is wrong."""
    rows = torch.zeros(len(targets), num_classes)
    for row, target, name in zip(rows, targets, names, strict=True):
        if isinstance(target, Tensor) and target.is_floating_point():
            if target.shape != (num_classes,):
                raise ValueError(
                    f"the target of {name} must be a class index or have shape "
                    f"({num_classes},) for `num_classes`={num_classes}, "
                    f"got shape {tuple(target.shape)}"
                )
            row.copy_(target)
            continue
        try:
            index = operator.index(target)
        except TypeError:
            raise TypeError(
                f"the target of {name} must be a class index or a ({num_classes},) float "
                f"tensor, got {target!r}"
            ) from None
        if index == -1:
            raise ValueError(f"the target of {name} is -1, unlabelled: mixing needs every label")
        if not 0 <= index < num_classes:
            raise ValueError(
                f"the target of {name} must be in 0..{num_classes - 1} for "
                f"`num_classes`={num_classes}, got {index}"
            )
        row[index] = 1
    return rows


def _as_soft(targets: Tensor, num_classes: int | None) -> Tensor:
    if targets.is_floating_point():
        if targets.ndim != 2 or (num_classes is not None and targets.shape[1] != num_classes):
            raise ValueError(
                f"`targets` of floats must have shape (B, {num_classes or 'K'}), "
                f"got {tuple(targets.shape)}"
            )
        return targets.to(torch.promote_types(targets.dtype, torch.float32))
    if targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"`targets` must be class indices or floats, got {targets.dtype}")
    if targets.ndim != 1:
        raise ValueError(
            f"`targets` of class indices must have shape (B,), got {tuple(targets.shape)}"
        )
    if num_classes is None:
        raise ValueError("`num_classes` must be given with class indices, got None")
    return F.one_hot(targets.long(), num_classes).float()
