import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from lowres_vision.ensemble import (
    Stacking,
    accuracy,
    cross_fit,
    select_ensemble,
    soft_vote,
)


def specialists(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(2, N, 4)`` of one model that knows classes 0 and 1, and one that knows 2 and 3."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    logits = random.normal(size=(2, rows, 4))
    for model, known in enumerate(((0, 1), (2, 3))):
        rows_known = np.isin(labels, known)
        logits[model, rows_known, labels[rows_known]] += 3
        logits[model, ~rows_known, random.integers(0, 4, (~rows_known).sum())] += 3
    p = np.exp(logits)
    return p / p.sum(axis=2, keepdims=True), labels


def test_a_large_penalty_is_the_weighted_vote_but_for_the_class_shares() -> None:
    p, labels = specialists(0, 400)
    stack = Stacking.fit(p, labels, l2=1e9)
    assert stack.weight.abs().max() < 1e-6
    stack.bias.zero_()
    weights = select_ensemble(p, labels, metric="log_loss", method="convex", folds=0).weights
    vote = soft_vote(p, weights=weights)
    np.testing.assert_allclose(stack(torch.from_numpy(p)).numpy(), vote, atol=1e-6)


def test_the_fit_is_the_minimum_that_scipy_finds() -> None:
    p, labels = specialists(1, 120)
    features = np.log(p).transpose(1, 0, 2).reshape(120, 8)
    stack = Stacking.fit(p, labels, l2=0.01)
    vote = np.log(np.einsum("m,mnk->nk", stack.vote.double().numpy(), p))

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:32].reshape(4, 8), flat[32:]
        z = vote + features @ weight.T + bias
        z -= z.max(axis=1, keepdims=True)
        of_label = z[np.arange(120), labels] - np.log(np.exp(z).sum(axis=1))
        return -of_label.mean() + 0.01 / 2 * (weight**2).sum()

    ours = loss(np.concatenate([stack.weight.double().numpy().ravel(), stack.bias.double()]))
    found = minimize(loss, np.zeros(36), method="L-BFGS-B", options={"maxiter": 5000})
    # The minimum is flat: float32 weights move the loss by the square of 1e-7.
    assert ours <= found.fun + 1e-9


def test_a_single_member_without_a_penalty_is_scikit_learns_regression() -> None:
    """The vote is then the member, linear in its logarithms, so an unpenalised fit absorbs it."""
    p, labels = specialists(2, 300)
    peer = LogisticRegression(C=1e9, tol=1e-10, max_iter=20_000).fit(np.log(p[0]), labels)
    ours = Stacking.fit(p[:1], labels, l2=1e-9)(torch.from_numpy(p[:1])).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba(np.log(p[0])), atol=1e-3)


def equals(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(4, N, 10)`` of models from strong to weak that know all classes alike."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, rows)
    logits = random.normal(size=(rows, 10)) + random.normal(size=(4, rows, 10))
    logits[:, np.arange(rows), labels] += np.array([2.5, 2.2, 2.0, 0.5])[:, None]
    p = np.exp(1.5 * logits)
    return p / p.sum(axis=2, keepdims=True), labels


def test_where_there_is_nothing_to_learn_it_costs_little() -> None:
    p, labels = equals(0, 10_800)
    seen, fresh, y, unseen = p[:, :800], p[:, 800:], labels[:800], labels[800:]
    weights = select_ensemble(seen, y, metric="accuracy", folds=0).weights
    stacked = accuracy(Stacking.fit(seen, y)(torch.from_numpy(fresh)).numpy(), unseen)
    assert stacked > accuracy(soft_vote(fresh, weights=weights), unseen) - 0.02


def test_it_learns_who_knows_what_where_no_weights_can() -> None:
    p, labels = specialists(3, 4000)
    seen, fresh, y, unseen = p[:, :2000], p[:, 2000:], labels[:2000], labels[2000:]
    fold_of = np.arange(2000) % 5
    out_of_fold = cross_fit(Stacking.fit, torch.from_numpy(seen), y, folds=fold_of, dim=1).numpy()
    stack = Stacking.fit(seen, y)
    found = stack(torch.from_numpy(fresh)).numpy()
    weights = select_ensemble(seen, y, metric="accuracy", folds=0).weights
    assert accuracy(found, unseen) > accuracy(soft_vote(fresh, weights=weights), unseen) + 0.05
    # Both are of 2,000 rows: a standard error of 1 point each.
    assert accuracy(out_of_fold, y) == pytest.approx(accuracy(found, unseen), abs=0.03)
    for fold in (0, 3):
        held = fold_of == fold
        alone = Stacking.fit(seen[:, ~held], y[~held])(torch.from_numpy(seen[:, held]))
        np.testing.assert_allclose(out_of_fold[held], alone.numpy(), atol=1e-6)


def test_it_is_a_module() -> None:
    p, labels = specialists(0, 100)
    stack = Stacking.fit(p, labels)
    inputs = torch.from_numpy(p)
    assert stack(inputs).dtype == torch.float64
    assert stack(inputs.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(stack(inputs).sum(1), torch.ones(100).double())
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), stack(inputs))
    zeros = torch.zeros(2, 1, 4)
    zeros[:, :, 0] = 1
    assert stack(zeros).isfinite().all()


def test_arguments_that_do_not_fit_are_refused() -> None:
    p, labels = specialists(0, 100)
    with pytest.raises(ValueError, match="`l2` must be > 0"):
        Stacking.fit(p, labels, l2=0)
    with pytest.raises(ValueError, match="are these logits"):
        Stacking.fit(np.log(p), labels)
    with pytest.raises(ValueError, match=r"`vote` must be \(M,\), `weight` \(K, M K\)"):
        Stacking(torch.ones(2), torch.ones(3, 5), torch.ones(3))
