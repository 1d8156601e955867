"""Everything between pixels and probabilities in one Module."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from lowres_vision.ensemble import VotingEnsemble


class _Trained(Protocol):
    """What a predictor needs of a trained model; a ``training.Classifier`` is one."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def loss(self) -> Any: ...
    @property
    def transform(self) -> nn.Module | None: ...


class TrainedModel(NamedTuple):
    """One trained model of a :class:`Predictor`, where no ``training.Classifier`` is at hand.

    ``loss`` is the Module it was trained with, whose ``probabilities`` reads the model's outputs;
    ``transform`` goes from images as they are stored to what the model reads.
    """

    model: nn.Module
    loss: nn.Module
    transform: nn.Module | None = None


class Predictor(nn.Module):
    """From stored images to class probabilities: resize, normalise, models, calibration, vote.

    Whatever a model was trained with before and after itself is part of this Module, so nobody
    who gets it has to repeat it: not the size, not mean and standard deviation, not the softmax
    or scale of the loss. Each member has its own; one Module can mix models of several sizes.

    It starts in eval mode and shares its parameters with the members.

    Args:
        members: At least one trained ``training.Classifier`` or :class:`TrainedModel`.
        classes: Class names by index.
        vote: As of :class:`~lowres_vision.ensemble.VotingEnsemble`.
        weights: ``(members,)`` weights of the vote, e.g. those of
            :func:`~lowres_vision.ensemble.select_ensemble`; default equal.
        calibration: Module from probabilities ``(B, K)`` to probabilities that comes last, e.g. a
            :class:`~lowres_vision.ensemble.Temperature` with ``reads="probabilities"``.

    Raises:
        ValueError: If there is no member, or weights and classes do not fit.

    Example:
        >>> import torch
        >>> from lowres_vision.losses import CrossEntropyLoss
        >>> from lowres_vision.resizer import Resize
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> read = Resize(8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> member = TrainedModel(model, CrossEntropyLoss(), read)
        >>> predictor = Predictor([member], classes=("heron", "rail"))
        >>> predictor(torch.zeros(4, 3, 16, 12, dtype=torch.uint8)).sum(1)
        tensor([1., 1., 1., 1.], grad_fn=<SumBackward1>)
    """

    def __init__(
        self,
        members: Sequence[_Trained],
        *,
        classes: Sequence[str],
        vote: str = "soft",
        weights: Sequence[float] | None = None,
        calibration: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"`classes` must be at least two different names, got {classes!r}")
        self.classes = tuple(classes)
        self.vote = VotingEnsemble(
            [_with_transform(member) for member in members],
            probabilities=[member.loss.probabilities for member in members],
            vote=vote,  # type: ignore[arg-type]
            weights=weights,
        )
        self.calibration = calibration
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities ``(B, K)`` of images ``(B, C, H, W)``, uint8 as decoded."""
        probabilities: Tensor = self.vote(images)
        if probabilities.shape[1] != len(self.classes):
            raise ValueError(
                f"the models give {probabilities.shape[1]} classes, "
                f"`classes` names {len(self.classes)}"
            )
        if self.calibration is not None:
            probabilities = self.calibration(probabilities)
        return probabilities


def _with_transform(member: _Trained) -> nn.Module:
    model = getattr(member, "scored_model", member.model)  # the moving average where one is kept
    return model if member.transform is None else nn.Sequential(member.transform, model)
