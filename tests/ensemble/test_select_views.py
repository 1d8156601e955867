import numpy as np
import pytest
from sklearn.metrics import f1_score

from lowres_vision.ensemble import (
    accuracy,
    geometric_mean_vote,
    log_loss,
    macro_f1,
    select_views,
    soft_vote,
)

SCORES = {"accuracy": accuracy, "macro_f1": macro_f1, "log_loss": log_loss}


def simulate(
    seed: int, rows: int, *, strengths: tuple[float, ...] = (2.0, 2.0, 1.9, 0.0), noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return views ``(V, N, 6)`` of one model: what it makes of an image, and noise per view."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, rows)
    logits = random.normal(size=(rows, 6)) + noise * random.normal(size=(len(strengths), rows, 6))
    logits[:, np.arange(rows), labels] += np.array(strengths)[:, None]
    p = np.exp(logits)
    return p / p.sum(axis=2, keepdims=True), labels


def names(p: np.ndarray) -> list[str]:
    return ["plain", *(f"view {view}" for view in range(1, len(p)))]


@pytest.mark.parametrize("average", ["probability", "log"])
@pytest.mark.parametrize("metric", SCORES)
def test_the_choice_is_the_one_of_a_plain_loop(metric: str, average: str) -> None:
    vote = soft_vote if average == "probability" else geometric_mean_vote
    sign = -1 if metric == "log_loss" else 1
    for seed in range(6):
        p, y = simulate(seed, 150, strengths=(1.5, 1.6, 1.2, 0.7, 0.2))

        def key(views: list[int], p: np.ndarray = p, y: np.ndarray = y) -> tuple[float, float]:
            mean = vote(p[views])
            score = sign * SCORES[metric](mean, y)
            return round(score, 12), -round(log_loss(mean, y), 12)

        kept = list(range(5))
        while len(kept) > 1:
            best = max(([w for w in kept if w != v] for v in kept), key=key)
            if key(best) <= key(kept):
                break
            kept = best
        if key([0]) > key(kept):
            kept = [0]
        selection = select_views(
            p,
            y,
            names=names(p),
            metric=metric,
            average=average,
            folds=0,  # type: ignore[arg-type]
        )
        assert selection.kept == tuple(names(p)[view] for view in kept)
        assert selection.score == pytest.approx(sign * key(kept)[0], abs=1e-9)
        assert selection.first_score == pytest.approx(SCORES[metric](p[0], y), abs=1e-12)
        assert selection.all_score == pytest.approx(SCORES[metric](vote(p), y), abs=1e-9)
        for view, report in enumerate(selection.views):
            assert report.kept == (view in kept)
            assert report.score == pytest.approx(SCORES[metric](p[view], y), abs=1e-9)
            others = [other for other in kept if other != view]
            if others:
                gain = key([*others, view])[0] - key(others)[0]
                assert report.gain == pytest.approx(gain, abs=1e-9)
            else:
                assert report.gain is None


def test_views_are_dropped_only_where_rows_unseen_agree() -> None:
    """Dropping, all views and the first alone: each is what is kept in some of the tasks."""
    cases = set()
    for seed in range(40):
        strengths = [(1.5, 1.4, 1.0, 0.8), (1.5, 1.5, 1.5, 1.4), (2.5, 0.3, 0.2, 0.4)][seed % 3]
        p, y = simulate(seed, 240, strengths=strengths)
        fold_of = np.arange(240) % 4
        selection = select_views(p, y, names=names(p), folds=fold_of)
        blend = np.empty(p.shape[1:])
        for fold in range(4):
            held, rest = fold_of == fold, fold_of != fold
            kept = select_views(p[:, rest], y[rest], names=names(p), folds=0).kept
            blend[held] = p[:, held][[names(p).index(name) for name in kept]].mean(axis=0)
        dropped = select_views(p, y, names=names(p), folds=0)
        assert dropped.nested_score is None
        scores = {
            "dropping": f1_score(y, blend.argmax(axis=1), average="macro"),
            "first": macro_f1(p[0], y),
            "all": macro_f1(p.mean(axis=0), y),
        }
        best = max(scores, key=scores.__getitem__)
        expected = {"dropping": dropped.kept, "first": ("plain",), "all": tuple(names(p))}
        assert selection.nested_score == pytest.approx(scores[best], abs=1e-12)
        assert selection.kept == expected[best]
        assert selection.score >= scores["first"] - 1e-12
        cases.add(best)
    assert cases == {"dropping", "first", "all"}


def test_costs_are_handed_on() -> None:
    p, y = simulate(0, 60)
    cost = {"plain": 0.1, "view 1": 0.2, "view 2": 0.3, "view 3": 0.4, "unused": 9}
    selection = select_views(p, y, names=names(p), seconds=cost)
    assert [view.seconds for view in selection.views] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("tasks", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_on_fresh_images_bad_views_cost_nothing_and_good_ones_gain(tasks: int) -> None:
    """Tasks with up to five views, from as good as the plain one to one that knows nothing."""
    gaps, gains, dropped = [], [], []
    for seed in range(tasks):
        random = np.random.default_rng(seed)
        strengths = (2.0, *(2 - random.exponential(0.5, size=4)).clip(0, 2), 0.0)
        p, y = simulate(seed, 24_000, strengths=strengths, noise=random.uniform(0.2, 1.5))
        selection = select_views(p[:, :4000], y[:4000], names=names(p), metric="accuracy")
        kept = [names(p).index(name) for name in selection.kept]
        assert selection.nested_score is not None
        fresh = accuracy(p[kept, 4000:].mean(axis=0), y[4000:])
        gaps.append(selection.nested_score - fresh)
        gains.append(fresh - accuracy(p[0, 4000:], y[4000:]))
        dropped.append(5 not in kept)
    gaps, gains = 100 * np.array(gaps), 100 * np.array(gains)
    print(f"{tasks} tasks: gap {np.abs(gaps).mean():.3f} (bias {gaps.mean():.3f}), ", end="")
    print(f"gain {gains.mean():.3f}, worst {gains.min():.3f}, useless kept {tasks - sum(dropped)}")
    # 4,000 rows have a standard error of 0.7 points, whose mean size is 0.55.
    assert np.abs(gaps).mean() < 0.8
    assert abs(gaps.mean()) < 3 * 0.7 / np.sqrt(tasks)
    # Choosing by 4,000 rows is wrong by what they are off for two models of the same images.
    assert gains.min() > -1
    assert gains.mean() > 0.5
    assert all(dropped)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["a", "b"]}, "`names` must be 4 different names"),
        ({"names": ["a", "b", "c", "a"]}, "`names` must be 4 different names"),
        ({"metric": "f1"}, "`metric` must be one of"),
        ({"average": "mean"}, "`average` must be one of"),
        ({"seconds": {"plain": 1.0}}, r"`seconds` must name each view, it lacks \['view 1'"),
        ({"folds": 1}, "`folds` must be >= 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    p, y = simulate(0, 30)
    with pytest.raises(ValueError, match=words):
        select_views(p, y, **{"names": names(p), **options})  # type: ignore[arg-type]
