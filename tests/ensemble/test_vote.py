import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from lowres_vision.ensemble import (
    geometric_mean_vote,
    hard_vote,
    rank_mean_vote,
    soft_vote,
    tied_rows,
)
from lowres_vision.ensemble._vote import combine


def draw(models: int = 3, rows: int = 40, classes: int = 5) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.dirichlet(np.ones(classes), size=(models, rows))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_the_vote_is_scikit_learns(weights: list[float] | None) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(90, 4)), random.integers(0, 3, 90)
    models = [
        (str(i), model)
        for i, model in enumerate(
            [LogisticRegression(), DecisionTreeClassifier(max_depth=2), LogisticRegression(C=0.01)]
        )
    ]
    voting = VotingClassifier(models, voting="soft", weights=weights).fit(x, y)
    members = np.stack([model.predict_proba(x) for model in voting.estimators_])
    np.testing.assert_allclose(
        soft_vote(members, weights=weights), voting.predict_proba(x), rtol=1e-12
    )


def test_one_model_votes_for_itself_and_weight_zero_is_silence() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 5))
    np.testing.assert_array_equal(soft_vote(p[:1]), p[0])
    np.testing.assert_allclose(soft_vote(p, weights=[0, 3]), p[1], rtol=1e-15)


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        (np.ones((3, 2)), r"must be \(models, rows, classes\), got shape \(3, 2\)"),
        ([[[2.0, -1.0]]], "are these logits"),
        ([[[np.nan, 1.0]]], "must be finite"),
        ([[[0.5, 0.5]], [[0.5, 0.4]]], "model 1 row 0 sums to 0.9000"),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        soft_vote(probabilities)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="`weights` must be 2 non-negative numbers"):
        soft_vote([[[0.5, 0.5]], [[0.5, 0.5]]], weights=weights)


@pytest.mark.parametrize("weights", [None, [1, 2, 1, 2]])
def test_the_hard_vote_is_scikit_learns_ties_included(weights: list[int] | None) -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(300, 3)), random.integers(0, 4, 300)
    models = [
        (str(seed), DecisionTreeClassifier(splitter="random", max_depth=4, random_state=seed))
        for seed in range(4)
    ]
    voting = VotingClassifier(models, voting="hard", weights=weights).fit(x, y)
    classes = np.stack([model.predict(x) for model in voting.estimators_]).astype(np.int64)
    expected = voting.predict(x)
    np.testing.assert_array_equal(hard_vote(classes, weights=weights), expected)
    probabilities = np.stack([model.predict_proba(x) for model in voting.estimators_])
    np.testing.assert_array_equal(hard_vote(probabilities, weights=weights), expected)

    votes = np.stack([np.bincount(column, weights, minlength=4) for column in classes.T])
    tied = [(row == row.max()).sum() > 1 for row in votes]
    assert 10 < sum(tied) < 290
    np.testing.assert_array_equal(tied_rows(classes, weights=weights), tied)


def test_the_geometric_mean_is_the_softmax_of_mean_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 20, 5))
    members = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    mean = np.average(logits, axis=0, weights=[1, 2, 5])
    expected = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    actual = geometric_mean_vote(members, weights=[1, 2, 5])
    np.testing.assert_allclose(actual, expected, rtol=1e-13)  # ~50 roundings of logs and sums


def test_the_geometric_mean_survives_zeros_and_lets_a_model_veto() -> None:
    one_hot, even = [[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]]
    vote = geometric_mean_vote([one_hot, even])
    assert np.isfinite(vote).all()
    vetoed = geometric_mean_vote([one_hot, [[0.2, 0.4, 0.4]]])
    np.testing.assert_allclose(vetoed, one_hot, atol=1e-18)  # sqrt(1.2e-38) is left of them
    alone = geometric_mean_vote([one_hot, even], weights=[0, 1])
    np.testing.assert_allclose(alone, even, atol=1e-37)


def test_the_rank_mean_is_that_of_scipys_ranks() -> None:
    members = draw().round(1)
    members[..., -1] = 1 - members[..., :-1].sum(axis=2)
    members = np.clip(members, 0, 1) / np.clip(members, 0, 1).sum(axis=2, keepdims=True)
    ranks = rankdata(members, axis=2)
    assert (ranks % 1 == 0.5).any()
    expected = np.average(ranks, axis=0, weights=[3, 1, 1]) / 15
    np.testing.assert_allclose(rank_mean_vote(members, weights=[3, 1, 1]), expected, rtol=1e-14)


def test_rounding_does_not_decide_between_equal_ranks() -> None:
    random = np.random.default_rng(0)
    for K in range(3, 9):
        ranks = random.permuted(np.tile(np.arange(1.0, K + 1), (5, 200, 1)), axis=2)
        expected = ranks.sum(axis=0).argmax(axis=1)  # whole numbers; a tie to the smallest index
        members = ranks / ranks.sum(axis=2, keepdims=True)
        np.testing.assert_array_equal(rank_mean_vote(members).argmax(axis=1), expected)
        floats = [torch.from_numpy(member).float() for member in members]
        alive = combine(floats, [1.0] * 5, "rank")  # as of live models
        np.testing.assert_array_equal(alive.argmax(dim=1).numpy(), expected)


@pytest.mark.parametrize("vote", [soft_vote, geometric_mean_vote, rank_mean_vote])
def test_votes_take_lists_and_float32_and_sum_to_one(vote) -> None:  # type: ignore[no-untyped-def]
    members = draw().astype(np.float32)
    kept = members.copy()
    together, listed = vote(members), vote(list(members))
    np.testing.assert_array_equal(together, listed)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(members, kept)


def test_a_hard_vote_refuses_what_is_neither_classes_nor_probabilities() -> None:
    with pytest.raises(ValueError, match="class indices >= 0"):
        hard_vote([[0, -1]])
    with pytest.raises(ValueError, match=r"must be \(models, rows, classes\)"):
        hard_vote([[0.0, 1.0]])
    with pytest.raises(ValueError, match="members of"):
        soft_vote([[[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
