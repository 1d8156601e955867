"""Weights for an ensemble, chosen on out-of-fold predictions, and what they will really score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_choice, check_range
from lowres_vision.ensemble._folds import fold_numbers
from lowres_vision.ensemble._greedy import select_greedily
from lowres_vision.ensemble._inputs import Floats, Indices, check_labels, check_members
from lowres_vision.ensemble._scores import SCORES, Metric, f1_of_classes, mean_log_loss, sign

_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class Selection:
    """Weights of an ensemble and its scores, in the metric it was selected for.

    Attributes:
        weights: ``(M,)``, sum 1, for :func:`soft_vote` or :class:`VotingEnsemble`.
        score: Of the blend on the rows it was selected on: optimistic.
        nested_score: Of blends selected without the rows they are scored on: what to expect on
            new data. None without folds.
        member_scores: ``(M,)`` scores of the members alone.
        best_member: The member with the best score alone.
        picks: The kept picks of each greedy bag, in order; empty for convex weights.
    """

    weights: npt.NDArray[np.float64]
    score: float
    nested_score: float | None
    member_scores: npt.NDArray[np.float64]
    best_member: int
    picks: tuple[tuple[int, ...], ...]


def select_ensemble(
    probabilities: npt.ArrayLike | Sequence[npt.ArrayLike],
    labels: npt.ArrayLike,
    *,
    metric: Metric = "macro_f1",
    method: Literal["greedy", "convex"] = "greedy",
    rounds: int = 50,
    bags: int = 1,
    folds: int | npt.ArrayLike = 5,
    seed: int = 0,
) -> Selection:
    """Choose ensemble weights on out-of-fold predictions.

    ``"greedy"`` starts from nothing and adds, round by round and with replacement, the model with
    which the mean of probabilities scores best, ties going to the lower log loss; it keeps the
    best prefix, and the weights are how often each model was picked. ``"convex"`` minimises the
    log loss of the weighted mean, a convex problem, whatever ``metric`` is. Neither is ever worse
    than the best single member on the rows given: if it would be, that member gets weight 1.

    The score on the rows that chose the weights flatters them. ``nested_score`` repeats the whole
    selection without each fold in turn, scores the held-out rows together, and is the number to
    report. It assumes that the rows are independent: if pictures come in groups, give folds that
    keep the groups whole.

    Args:
        probabilities: ``(M, N, K)``, or M arrays ``(N, K)``, of predictions for rows that the
            models were not trained on. float32 is used without a copy.
        labels: ``(N,)`` class indices.
        metric: ``"accuracy"``, ``"macro_f1"`` or ``"log_loss"``, on all rows at once.
        method: ``"greedy"`` or ``"convex"``.
        rounds: Greedy picks to try.
        bags: 1, or a number of greedy selections from random halves of the models, whose weights
            are averaged: a guard against overfitting where there are many models.
        folds: ``(N,)`` fold of each row, for instance that of the cross-validation; or a number
            of stratified folds; or 0 for no nested estimate, which takes most of the time.
        seed: Of folds and bags.

    Returns:
        :class:`Selection`.

    Raises:
        ValueError: If shapes, values or options do not fit.

    Example:
        >>> good, weak = [[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.4, 0.6]]
        >>> select_ensemble([good, weak], [0, 1], metric="log_loss", folds=0).weights.tolist()
        [1.0, 0.0]

    References:
        Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004; bagged selection
        as there, section 2.3. Unlike the paper we always start empty, and we keep the best prefix.
        The stopping rule of the convex weights is that of Cover, "An algorithm for maximizing
        expected log investment return", IEEE Trans. Information Theory 30, 1984.
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("method", method, ("greedy", "convex"))
    check_range("rounds", rounds, 1)
    check_range("bags", bags, 1)
    members = check_members(probabilities)
    N, K = members[0].shape
    check_range("the number of classes", K, 2)
    truth = check_labels(labels, N, K)
    no_nesting = isinstance(folds, int) and folds == 0
    fold_of = None if no_nesting else fold_numbers(folds, truth, seed)

    chooser = _Chooser(members, truth, metric, method, rounds, bags, seed)
    every = np.arange(N)
    weights, picks = chooser.choose(every)
    score = SCORES[metric]
    member_scores = np.array([score(member, truth) for member in members])
    nested = None
    if fold_of is not None:
        blend = np.empty((N, K), dtype=np.float64)
        for fold in np.unique(fold_of):
            held_out = np.flatnonzero(fold_of == fold)
            without, _ = chooser.choose(np.flatnonzero(fold_of != fold))
            blend[held_out] = _blend(members, without, held_out)
        nested = score(blend, truth)
    return Selection(
        weights=weights,
        score=score(_blend(members, weights, every), truth),
        nested_score=nested,
        member_scores=member_scores,
        best_member=int(np.argmax(sign(metric) * member_scores)),
        picks=picks,
    )


@dataclass(frozen=True)
class _Chooser:
    """The whole selection, repeatable on any rows."""

    members: list[Floats]
    truth: Indices
    metric: Metric
    method: str
    rounds: int
    bags: int
    seed: int

    def choose(self, rows: Indices) -> tuple[npt.NDArray[np.float64], tuple[tuple[int, ...], ...]]:
        """Return weights ``(M,)`` and picks, chosen on ``rows`` alone."""
        M = len(self.members)
        if self.method == "convex":
            picks: list[tuple[int, ...]] = []
            of_label = np.stack([member[rows, self.truth[rows]] for member in self.members])
            weights = convex_weights(of_label.astype(np.float64))
        else:
            picks = [self._bag(bag, rows) for bag in range(self.bags)]
            shares = [np.bincount(bag, minlength=M) / len(bag) for bag in picks]
            weights = np.mean(shares, axis=0)
        alone = [self._score(member[rows], rows) for member in self.members]
        best = int(np.argmax(alone))
        if self._score(_blend(self.members, weights, rows), rows) < alone[best]:
            weights = np.eye(M)[best]
        return weights, tuple(picks)

    def _bag(self, bag: int, rows: Indices) -> tuple[int, ...]:
        pool = np.arange(len(self.members))
        if self.bags > 1:
            random = np.random.default_rng((self.seed, bag))
            pool = np.sort(random.choice(pool, size=(len(pool) + 1) // 2, replace=False))
        picks = select_greedily(
            [self.members[model] for model in pool],
            self.truth,
            rows,
            metric=self.metric,
            rounds=self.rounds,
        )
        return tuple(int(pool[pick]) for pick in picks)

    def _score(self, probabilities: Floats, rows: Indices) -> float:
        """Return the score on ``rows``, the higher the better; inputs are checked already."""
        truth = self.truth[rows]
        if self.metric == "log_loss":
            return -mean_log_loss(probabilities[np.arange(len(rows)), truth])
        predicted = probabilities.argmax(axis=1)
        if self.metric == "accuracy":
            return float((predicted == truth).mean())
        return f1_of_classes(predicted, truth, probabilities.shape[1])


def convex_weights(of_label: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights ``(M,)`` whose mixture of ``(M, n)`` has the lowest log loss.

    Multiplying each weight by the mean of p_m / mixture never raises the loss, and the largest of
    these means, less 1, bounds how far the loss still is from the lowest.
    """
    of_label = np.maximum(of_label, np.finfo(np.float64).eps)
    weights = np.full(len(of_label), 1 / len(of_label))
    for _ in range(1000):
        growth = (of_label / (weights @ of_label)).mean(axis=1)
        weights = weights * growth
        if growth.max() - 1 < 1e-7:
            break
    return np.asarray(weights / weights.sum())


def _blend(
    members: Sequence[Floats], weights: npt.NDArray[np.float64], rows: Indices
) -> npt.NDArray[np.float64]:
    """Return the weighted mean ``(n, K)`` of some rows."""
    used = np.flatnonzero(weights).tolist()
    blend = np.empty((len(rows), members[0].shape[1]), dtype=np.float64)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        votes = np.stack([members[model].take(part, axis=0) for model in used])
        blend[start : start + _CHUNK] = np.einsum("m,mnk->nk", weights[used], votes)
    return blend
