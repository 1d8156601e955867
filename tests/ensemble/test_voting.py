from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowres_vision.ensemble import (
    VotingEnsemble,
    geometric_mean_vote,
    hard_vote,
    rank_mean_vote,
    soft_vote,
)
from lowres_vision.losses import ArcFaceLoss, CosineLoss, CrossEntropyLoss

VOTES = {"soft": soft_vote, "geometric": geometric_mean_vote, "rank": rank_mean_vote}
LOSSES = [CrossEntropyLoss(), ArcFaceLoss(scale=8.0), CosineLoss()]
MEANINGS = [loss.probabilities for loss in LOSSES]


def build(vote: str, weights: list[float] | None = None) -> VotingEnsemble:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double() for _ in LOSSES]
    return VotingEnsemble(models, probabilities=MEANINGS, vote=vote, weights=weights)  # type: ignore[arg-type]


def stored(ensemble: VotingEnsemble, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        outputs = [model(images) for model in ensemble.models]
    return np.stack([mean(out).numpy() for mean, out in zip(MEANINGS, outputs, strict=True)])


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
@pytest.mark.parametrize("vote", ["soft", "geometric", "rank", "hard"])
def test_live_models_answer_as_their_stored_predictions(
    vote: str, weights: list[float] | None
) -> None:
    images = torch.randn(50, 3, 2, 2, dtype=torch.float64)
    ensemble = build(vote, weights)
    live = ensemble(images).detach().numpy()
    members = stored(ensemble, images)
    if vote == "hard":
        np.testing.assert_array_equal(live.argmax(axis=1), hard_vote(members, weights=weights))
    else:
        np.testing.assert_array_equal(live, VOTES[vote](members, weights=weights))
    np.testing.assert_allclose(live.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("vote", ["soft", "geometric", "rank", "hard"])
def test_it_compiles_and_exports_with_any_batch(vote: str) -> None:
    ensemble = build(vote).eval()
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    expected = ensemble(images)
    compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        ensemble, (torch.randn(3, 3, 2, 2, dtype=torch.float64),), dynamic_shapes=({0: batch},)
    )
    torch.testing.assert_close(program.module()(images), expected)


def test_half_precision_members_vote_in_float32() -> None:
    softmax = partial(torch.softmax, dim=1)
    ensemble = VotingEnsemble([nn.Linear(4, 3).bfloat16()] * 2, probabilities=softmax)
    assert ensemble(torch.rand(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_arguments_that_do_not_fit_are_refused() -> None:
    softmax = partial(torch.softmax, dim=1)
    with pytest.raises(ValueError, match="`models` must hold at least one"):
        VotingEnsemble([], probabilities=softmax)
    with pytest.raises(ValueError, match="`vote` must be one of 'soft', 'hard'"):
        VotingEnsemble([nn.Identity()], probabilities=softmax, vote="loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one callable or one per model: 2 for 1"):
        VotingEnsemble([nn.Identity()], probabilities=[softmax] * 2)
    with pytest.raises(ValueError, match="`weights` must be 1 non-negative"):
        VotingEnsemble([nn.Identity()], probabilities=softmax, weights=[1.0, 1.0])
