"""Which test-time views to keep: what each gains out of fold, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_choice
from lowres_vision.ensemble._folds import fold_numbers
from lowres_vision.ensemble._inputs import Floats, Indices, check_labels, check_members
from lowres_vision.ensemble._scores import SCORES, Metric, f1_of_classes, mean_log_loss
from lowres_vision.ensemble._views import VOTE_OF, Average

Doubles = npt.NDArray[np.float64]

_FLOOR = float(np.finfo(np.float32).tiny)
_EQUAL = 1e-12


@dataclass(frozen=True)
class ViewReport:
    """What one view is worth.

    Attributes:
        name: Of the view.
        score: Of the view alone, out of fold.
        gain: What the mean of the kept views scores with it, less without it; positive is good,
            for the log loss too. None for a view that is kept alone.
        seconds: Per image, as given.
        kept: Whether it is one of those to keep.
    """

    name: str
    score: float
    gain: float | None
    seconds: float | None
    kept: bool


@dataclass(frozen=True)
class ViewSelection:
    """Views to keep, and their scores in the metric they were chosen for.

    Attributes:
        views: A report for each view, in the order given.
        kept: Names of the views to keep.
        first_score: Of the first view alone, the plain one.
        all_score: Of the mean of all views.
        score: Of the mean of the kept views on the rows that chose them: optimistic.
        nested_score: What to expect of the kept views on new data: of means chosen without the
            rows they are scored on where views were dropped so, else ``all_score`` or
            ``first_score``, which took no choice. None without folds.
    """

    views: tuple[ViewReport, ...]
    kept: tuple[str, ...]
    first_score: float
    all_score: float
    score: float
    nested_score: float | None


def select_views(
    probabilities: npt.ArrayLike | Sequence[npt.ArrayLike],
    labels: npt.ArrayLike,
    *,
    names: Sequence[str],
    metric: Metric = "macro_f1",
    average: Average = "probability",
    seconds: Mapping[str, float] | None = None,
    folds: int | npt.ArrayLike = 5,
    seed: int = 0,
) -> ViewSelection:
    """Drop the test-time views that hurt, by their out-of-fold predictions.

    Starting from all views, the one without which the mean of the others scores best is dropped,
    as long as that is better than with it; equal scores are decided by the log loss. On few rows
    much of that is luck, so the dropping is repeated without each fold: if the rows it has not
    seen score lower than with all views, or with the first view alone, then these are kept. The
    kept views are never worse than the first view on the rows given.

    Args:
        probabilities: ``(V, N, K)``, or V arrays ``(N, K)``, of rows that the model was not
            trained on, e.g. ``ledger.probabilities([(model, seed, name) for name in names])``.
        labels: ``(N,)`` class indices.
        names: ``(V,)`` names of the views, the plain one first.
        metric: ``"accuracy"``, ``"macro_f1"`` or ``"log_loss"``, on all rows at once.
        average: ``"probability"`` or ``"log"``, as :class:`TestTimeAugmentation` will.
        seconds: Of each view per image, handed on to the report:
            :meth:`TestTimeAugmentation.seconds_per_image`.
        folds: ``(N,)`` fold of each row, or a number of stratified folds, or 0 to drop without
            the second look.
        seed: Of the folds.

    Returns:
        :class:`ViewSelection`.

    Raises:
        ValueError: If shapes, values, names or options do not fit.

    Example:
        >>> plain, flip = [[0.6, 0.4], [0.6, 0.4]] * 2, [[0.8, 0.2], [0.3, 0.7]] * 2
        >>> upside_down = [[0.1, 0.9], [0.9, 0.1]] * 2
        >>> selection = select_views([plain, flip, upside_down], [0, 1] * 2,
        ...                          names=["plain", "flip", "upside down"], folds=2)
        >>> selection.kept, selection.first_score < selection.score == 1.0
        (('flip',), True)
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("average", average, tuple(VOTE_OF))
    members = check_members(probabilities)
    if len(names) != len(members) or len(set(names)) != len(names):
        raise ValueError(
            f"`names` must be {len(members)} different names, one per view, got {list(names)}"
        )
    if seconds is not None and (missing := [name for name in names if name not in seconds]):
        raise ValueError(f"`seconds` must name each view, it lacks {missing}")
    truth = check_labels(labels, *members[0].shape)
    no_nesting = isinstance(folds, int) and folds == 0
    fold_of = None if no_nesting else fold_numbers(folds, truth, seed)
    chooser = _Chooser(members, truth, metric, average)
    score = SCORES[metric]

    sign = -1.0 if metric == "log_loss" else 1.0
    every = np.arange(len(truth))

    def score_of(views: Sequence[int]) -> float:
        return score(chooser.mean(views, every), truth)

    kept, nested = chooser.choose(every), None
    if fold_of is not None:
        blend = np.empty(members[0].shape)
        for fold in np.unique(fold_of):
            held_out = np.flatnonzero(fold_of == fold)
            without = chooser.choose(np.flatnonzero(fold_of != fold))
            blend[held_out] = chooser.mean(without, held_out)
        nested = score(blend, truth)
        for unchosen in ([0], list(range(len(members)))):
            if sign * score_of(unchosen) > sign * nested + _EQUAL:
                kept, nested = unchosen, score_of(unchosen)

    reports = []
    for view, name in enumerate(names):
        others = [other for other in kept if other != view]
        gain = sign * (score_of([*others, view]) - score_of(others)) if others else None
        cost = None if seconds is None else float(seconds[name])
        reports.append(ViewReport(name, score_of([view]), gain, cost, view in kept))
    return ViewSelection(
        views=tuple(reports),
        kept=tuple(names[view] for view in kept),
        first_score=reports[0].score,
        all_score=score_of(range(len(members))),
        score=score_of(kept),
        nested_score=nested,
    )


@dataclass(frozen=True)
class _Chooser:
    """The whole choice of views, repeatable on any rows."""

    members: list[Floats]
    truth: Indices
    metric: Metric
    average: Average

    def choose(self, rows: Indices) -> list[int]:
        """Return the views to keep, chosen on ``rows`` alone."""
        kept = list(range(len(self.members)))
        total = np.zeros((len(rows), self.members[0].shape[1]))
        for view in kept:
            total += self._opinion(view, rows)
        best = self._key(total / len(kept), rows)
        while len(kept) > 1:
            keys = [
                self._key((total - self._opinion(view, rows)) / (len(kept) - 1), rows)
                for view in kept
            ]
            dropped = max(range(len(kept)), key=keys.__getitem__)
            if not _better(keys[dropped], best):
                break
            best = keys[dropped]
            total -= self._opinion(kept.pop(dropped), rows)
        return [0] if _better(self._key(self._opinion(0, rows), rows), best) else kept

    def mean(self, views: Sequence[int], rows: Indices) -> Doubles:
        """Return the mean ``(n, K)`` of some views as probabilities."""
        total = sum(self._opinion(view, rows) for view in views)
        return self._probabilities(np.asarray(total) / len(views))

    def _opinion(self, view: int, rows: Indices) -> Doubles:
        p = self.members[view][rows].astype(np.float64)
        return np.log(np.maximum(p, _FLOOR)) if self.average == "log" else p

    def _probabilities(self, mean: Doubles) -> Doubles:
        if self.average == "probability":
            return mean
        powers = np.exp(mean - mean.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _key(self, mean: Doubles, rows: Indices) -> tuple[float, float]:
        """Return score and minus log loss on ``rows``, each the higher the better."""
        p, truth = self._probabilities(mean), self.truth[rows]
        loss = mean_log_loss(p[np.arange(len(rows)), truth])
        if self.metric == "log_loss":
            return -loss, -loss
        predicted = p.argmax(axis=1)
        if self.metric == "accuracy":
            return float((predicted == truth).mean()), -loss
        return f1_of_classes(predicted, truth, p.shape[1]), -loss


def _better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    if abs(one[0] - other[0]) > _EQUAL:
        return one[0] > other[0]
    return one[1] > other[1] + _EQUAL
