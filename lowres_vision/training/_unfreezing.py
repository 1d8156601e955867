"""Unfreezing a model part by part, as a function of the epoch alone."""

from collections.abc import Collection, Mapping

from torch import nn

from lowres_vision.models import freeze_except

Stages = dict[int, tuple[str, ...]]


def check_stages(model: nn.Module, stages: Mapping[int, str | Collection[str]]) -> Stages:
    """Return the stages in order, after freezing all that none of them trains.

    Raises:
        ValueError: If no stage is for epoch 0, an epoch is no int >= 0, or a name matches nothing.
    """
    for epoch in stages:
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"`unfreeze` must be by epoch, an int >= 0, got {epoch!r}")
    if 0 not in stages:
        raise ValueError(
            f"`unfreeze` must say what trains from epoch 0, got epochs {sorted(stages)}"
        )
    ordered = {
        epoch: (names,) if isinstance(names, str) else tuple(names)
        for epoch, names in sorted(stages.items())
    }
    thaw(model, ordered, epoch=max(ordered))
    return ordered


def thaw(model: nn.Module, stages: Stages, *, epoch: int) -> None:
    """Make trainable what the stages up to ``epoch`` name, and freeze the rest."""
    freeze_except(model, [name for start in stages if start <= epoch for name in stages[start]])
