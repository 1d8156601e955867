import numpy as np
import pytest
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from lowres_vision.ensemble import soft_vote


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
