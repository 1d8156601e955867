import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from lowres_vision.ensemble import ClassBias, assess_class_bias, macro_f1
from lowres_vision.ensemble._class_bias import _macro_f1_along, _smoothed


def simulate(
    seed: int, rows: int, *, classes: int = 8, skew: float = 0.0, knows_shares: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities, or, where the model knows no shares, biased ones."""
    random = np.random.default_rng(seed)
    shares = np.exp(-skew * np.arange(classes) / classes)
    shares /= shares.sum()
    labels = random.choice(classes, rows, p=shares)
    logits = random.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1.8
    logits = 1.8 * logits + (np.log(shares) if knows_shares else 0)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), labels


def score_at(logs: np.ndarray, truth: np.ndarray, offsets: np.ndarray) -> float:
    predicted = (logs + offsets).argmax(axis=1)
    classes = range(logs.shape[1])
    return f1_score(truth, predicted, average="macro", labels=classes, zero_division=0)


@pytest.mark.parametrize("seed", range(5))
def test_every_step_of_macro_f1_is_scikit_learns(seed: int) -> None:
    p, truth = simulate(seed, 50, classes=4)
    logs = np.log(p)
    offsets = np.random.default_rng(seed).normal(size=4) / 3
    for k in range(4):
        steps, scores = _macro_f1_along(logs, truth, offsets, k)
        between = np.concatenate([[steps[0] - 1], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 1]])
        for place, expected in zip(between, scores, strict=True):
            moved = offsets.copy()
            moved[k] = place
            assert score_at(logs, truth, moved) == pytest.approx(expected, abs=1e-12)


def test_a_class_without_labels_or_rows_steps_as_scikit_learns() -> None:
    p, truth = simulate(0, 40, classes=5)
    logs = np.log(p)
    truth[truth == 3] = 1
    logs[:, 4] = -50.0
    offsets = np.zeros(5)
    for k in range(5):
        steps, scores = _macro_f1_along(logs, truth, offsets, k)
        middle = (steps[19] + steps[20]) / 2
        assert score_at(logs, truth, np.eye(5)[k] * middle) == pytest.approx(scores[20], abs=1e-12)


def test_the_smoothed_score_is_the_mean_over_the_window() -> None:
    steps, scores = np.array([-0.3, 0.1, 0.1, 0.8]), np.array([0.2, 0.6, 0.9, 0.4, 0.1])
    for point in (-1.9, -0.2, 0.0, 0.7):
        fine = point + 0.6 * (np.arange(-20_000, 20_000) + 0.5) / 20_000
        expected = scores[np.searchsorted(steps, fine)].mean()
        got = _smoothed(steps, scores, np.array([point]))[0]
        assert got == pytest.approx(expected, abs=1e-4)  # 40,000 samples of 5 steps


def test_a_model_that_ignores_the_shares_is_mended_on_fresh_rows() -> None:
    p, labels = simulate(0, 24_000, skew=3.0, knows_shares=False)
    estimate = assess_class_bias(p[:4000], labels[:4000])
    bias = ClassBias.fit(p[:4000], labels[:4000])
    assert estimate.helps
    torch.testing.assert_close(
        bias.offsets.double().numpy(), estimate.offsets, rtol=1e-6, atol=1e-7
    )
    fresh, unseen = p[4000:], labels[4000:]
    gain = macro_f1(bias(torch.from_numpy(fresh)).numpy(), unseen) - macro_f1(fresh, unseen)
    assert gain > 0.02
    # Both gains are of samples; 4,000 rows give them a standard error of about 0.005.
    assert estimate.nested - estimate.before == pytest.approx(gain, abs=0.015)


def test_where_nothing_is_to_be_gained_fresh_rows_lose_nothing() -> None:
    """Twenty calibrated models of equal shares: on the rows seen, all would gain."""
    seen, kept, fresh = [], [], []
    for seed in range(20):
        p, labels = simulate(seed, 5000)
        estimate = assess_class_bias(p[:1000], labels[:1000])
        bias = ClassBias(estimate.offsets * estimate.helps)
        if seed < 4:
            fitted = ClassBias.fit(p[:1000], labels[:1000])
            torch.testing.assert_close(fitted.offsets, bias.offsets)
        seen.append(estimate.after - estimate.before)
        kept.append(estimate.helps)
        moved = bias(torch.from_numpy(p[1000:])).numpy()
        fresh.append(macro_f1(moved, labels[1000:]) - macro_f1(p[1000:], labels[1000:]))
    assert np.mean(seen) > 0.004
    assert sum(kept) <= 8
    assert np.mean(fresh) > -0.002


def test_the_error_is_the_spread_of_the_gain_over_samples() -> None:
    gains, errors = [], []
    for seed in range(20):
        p, labels = simulate(100 + seed, 1000, skew=3.0, knows_shares=False)
        estimate = assess_class_bias(p, labels)
        gains.append(estimate.nested - estimate.before)
        errors.append(estimate.error)
    # The deviation of 20 gains is known to 16 %; they also differ by their offsets.
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.5)


def test_the_nested_score_is_of_offsets_fitted_without_each_fold() -> None:
    p, labels = simulate(3, 900, skew=2.0, knows_shares=False)
    fold_of = np.arange(900) % 3
    estimate = assess_class_bias(p, labels, folds=fold_of)
    moved = np.empty_like(p)
    for fold in range(3):
        held, rest = fold_of == fold, fold_of != fold
        without = assess_class_bias(p[rest], labels[rest]).offsets
        moved[held] = np.log(p[held]) + without
    predicted = moved.argmax(axis=1)
    assert estimate.nested == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert estimate.before == pytest.approx(macro_f1(p, labels), abs=1e-12)
    assert estimate.after == pytest.approx(score_at(np.log(p), labels, estimate.offsets))
    assert estimate.offsets.mean() == pytest.approx(0, abs=1e-12)


def test_it_is_a_module_of_a_softmax() -> None:
    p = torch.rand(6, 3, dtype=torch.float64).softmax(1)
    bias = ClassBias([0.3, -0.1, 0.0])
    torch.testing.assert_close(
        bias(p), (p.log() + torch.tensor([0.3, -0.1, 0.0]).double()).softmax(1)
    )
    torch.testing.assert_close(ClassBias([0.0] * 3)(p), p)
    torch.testing.assert_close(bias(p), ClassBias([1.3, 0.9, 1.0])(p), rtol=1e-6, atol=1e-7)
    assert bias(p.bfloat16()).dtype == torch.float32
    assert bias(torch.eye(3)).isfinite().all()
    compiled = torch.compile(bias, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(p), bias(p))
    assert set(bias.state_dict()) == {"offsets"}


def test_arguments_that_do_not_fit_are_refused() -> None:
    for offsets in ([], [[0.0]], [np.nan, 0.0]):
        with pytest.raises(ValueError, match="`offsets` must be a vector of finite numbers"):
            ClassBias(offsets)
    with pytest.raises(ValueError, match="are these logits"):
        ClassBias.fit([[3.0, 1.0]], [0])
    with pytest.raises(ValueError, match="`folds` must be"):
        ClassBias.fit([[0.3, 0.7]] * 4, [0, 1, 0, 1], folds=[0, 0, 0, 0])
