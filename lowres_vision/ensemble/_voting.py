"""Several live models that answer as one."""

from collections.abc import Callable, Sequence

import numpy.typing as npt
from torch import Tensor, nn

from lowres_vision._checks import check_choice
from lowres_vision.ensemble._inputs import check_weights
from lowres_vision.ensemble._vote import VOTES, Vote, combine

Probabilities = Callable[[Tensor], Tensor]


class VotingEnsemble(nn.Module):
    """Module of the votes: gives what they give for the stored predictions of the same models.

    Args:
        models: Modules from the same images to outputs ``(B, K)``.
        probabilities: From outputs to the probabilities that the model was trained to mean: one
            callable for all models or one per model, e.g. ``loss.probabilities`` of a Module of
            :mod:`lowres_vision.losses`.
        vote: ``"soft"`` (:func:`soft_vote`), ``"geometric"`` (:func:`geometric_mean_vote`),
            ``"rank"`` (:func:`rank_mean_vote`), or ``"hard"``, which gives each class's share of
            the votes, with the class of :func:`hard_vote` at its argmax.
        weights: ``(M,)`` non-negative weights; default equal.

    Raises:
        ValueError: If there is no model, or counts, names or weights do not fit.

    Example:
        >>> import torch
        >>> from lowres_vision.losses import CrossEntropyLoss
        >>> models = [nn.Linear(4, 3), nn.Linear(4, 3)]
        >>> ensemble = VotingEnsemble(models, probabilities=CrossEntropyLoss().probabilities)
        >>> ensemble(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        probabilities: Probabilities | Sequence[Probabilities],
        vote: Vote = "soft",
        weights: Sequence[float] | npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("`models` must hold at least one Module, got none")
        check_choice("vote", vote, VOTES)
        each = [probabilities] * len(models) if callable(probabilities) else list(probabilities)
        if len(each) != len(models):
            raise ValueError(
                f"`probabilities` must be one callable or one per model: "
                f"{len(each)} for {len(models)}"
            )
        self.models = nn.ModuleList(models)
        self.probabilities = each
        self.vote: Vote = vote
        self.weights = check_weights(weights, len(models))

    def forward(self, images: Tensor) -> Tensor:
        """Return the vote ``(B, K)`` on ``images``, float32 or better; its rows sum to 1."""
        members = [
            probabilities(model(images))
            for model, probabilities in zip(self.models, self.probabilities, strict=True)
        ]
        return combine(members, self.weights, self.vote)

    def extra_repr(self) -> str:
        """Name vote and weights."""
        return f"vote={self.vote!r}, weights={self.weights}"
