"""From the runs of several models to one table and one blend."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowres_vision._checks import check_choice
from lowres_vision.ensemble._bootstrap import bootstrap_interval, paired_bootstrap
from lowres_vision.ensemble._calibrate import Temperature, assess_temperature
from lowres_vision.ensemble._class_bias import ClassBias, assess_class_bias
from lowres_vision.ensemble._cross_fit import Fit, cross_fit
from lowres_vision.ensemble._folds import fold_numbers
from lowres_vision.ensemble._inputs import Floats, Indices
from lowres_vision.ensemble._ledger_entry import Member
from lowres_vision.ensemble._runs import Floats32, Runs, read_runs
from lowres_vision.ensemble._scores import (
    SCORES,
    Metric,
    expected_calibration_error,
    log_loss,
    sign,
)
from lowres_vision.ensemble._select import select_ensemble
from lowres_vision.ensemble._select_views import select_views
from lowres_vision.ensemble._stacking import Stacking
from lowres_vision.ensemble._summary import Summary, SummaryRow
from lowres_vision.ensemble._vote import geometric_mean_vote, hard_vote, soft_vote, tied_rows

Weights = Literal["selected", "equal"]
Views = Literal["selected", "all"]


def summarise(
    runs: Sequence[str | os.PathLike[str]],
    *,
    metric: Metric = "macro_f1",
    weights: Weights = "selected",
    views: Views = "selected",
    rounds: int = 50,
    merged: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Summary:
    """Blend the runs of several models, and tell what each member and blend is worth.

    Members are models with their seeds. Of several test-time views of a member those that hurt are
    dropped (:func:`select_views`), unless all are asked for, and the rest averaged. Weights come
    from :func:`select_ensemble` or are equal, then a :class:`Temperature`, then, for macro-F1 and
    where they help, offsets per class (:class:`ClassBias`); the test predictions get the same.
    Stacking and the unweighted votes stand in the table for comparison.

    The nested estimates repeat the choice of views and of weights without each fold in turn.
    Temperature and offsets are fitted on the nested blend, which is as good as the selected one
    will be on new data, and their estimates are cross-fitted on it.

    Runs may be of different files (the same rows enlarged, or images added to the training alone)
    and of different folds; they are joined by row id. The nested estimates then leave out the
    first run's folds, and stay what they are: whatever the folds, each member predicts a row by
    weights that have not seen it, and no choice made for a row has seen its label or its
    predictions. Through other rows' predictions, by models that trained on it, the label does
    reach the choice, but so it does where all runs share the folds. What folds must keep together,
    such as pictures of one group, each run's own must.

    Args:
        runs: Folders that :func:`lowres_vision.training.cross_validate` wrote, or folders of such
            folders; all of the same rows, labels and classes.
        metric: ``"accuracy"``, ``"macro_f1"`` or ``"log_loss"``, on all rows at once.
        weights: ``"selected"``, or ``"equal"``, as of the soft vote, which few rows or members as
            good as each other often reward.
        views: ``"selected"``, or ``"all"``. With these and equal weights nothing is chosen, and the
            score is the one to expect.
        rounds: Of the greedy selection.
        merged: Folder for the merged ledger, which is of one set of files and folds; None keeps
            none.
        seed: Of the bootstrap, and of the folds where the runs have a single hold-out.

    Returns:
        :class:`Summary`.

    Raises:
        FileNotFoundError: If a folder has no ledger.
        ValueError: If the runs are not of the same rows, labels and classes, lack folds or share
            weights, or ``merged`` is given for different files or folds.
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("weights", weights, get_args(Weights))
    check_choice("views", views, get_args(Views))
    found = read_runs(runs, merged=merged)
    truth = found.labels
    several = len(np.unique(found.fold_of)) > 1
    fold_of = fold_numbers(found.fold_of if several else 5, truth, seed)
    groups = _groups(found)
    every = np.arange(len(truth))

    def choose(group: _Group, rows: Indices) -> list[int]:
        """Return the views to average, chosen on ``rows`` alone."""
        if views == "all" or len(group.views) == 1:
            return [*range(len(group.views))]
        seen = [p[rows] for p in group.out_of_fold]
        kept = select_views(seen, truth[rows], names=group.views, metric=metric).kept
        return [group.views.index(name) for name in kept]

    chosen = [choose(group, every) for group in groups]
    members = [group.mean(kept) for group, kept in zip(groups, chosen, strict=True)]

    def weigh(stack: Sequence[Floats32], labels: Indices) -> npt.NDArray[np.float64]:
        if weights == "equal":
            return np.full(len(stack), 1 / len(stack))
        return select_ensemble(stack, labels, metric=metric, rounds=rounds, folds=0).weights

    chosen_weights = weigh(members, truth)
    blend = soft_vote(members, weights=chosen_weights)

    nested = [np.empty_like(member) for member in members]
    nested_blend = np.empty_like(blend)
    for fold in np.unique(fold_of):
        seen, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        without = [group.mean(choose(group, seen)) for group in groups]
        unseen_weights = weigh([member[seen] for member in without], truth[seen])
        for values, member in zip(nested, without, strict=True):
            values[held_out] = member[held_out]
        nested_blend[held_out] = soft_vote([m[held_out] for m in without], weights=unseen_weights)

    calibrate = Temperature.fit(nested_blend, truth, reads="probabilities")
    bias = None
    if metric == "macro_f1":
        bias = assess_class_bias(nested_blend, truth, folds=fold_of)
    gain = None
    if len(groups) > 1:
        alone = [sign(metric) * SCORES[metric](member, truth) for member in members]
        best = nested[int(np.argmax(alone))]
        gain = paired_bootstrap(nested_blend, best, truth, metric=metric, seed=seed)
    test = predicted = None
    if found.test:
        means = [group.test_mean(kept) for group, kept in zip(groups, chosen, strict=True)]
        voted = torch.from_numpy(soft_vote(means, weights=chosen_weights))
        test = calibrate(voted).numpy()
        if bias is not None and bias.helps:
            voted = ClassBias(bias.offsets)(voted)
        predicted = voted.numpy().argmax(axis=1)

    views_chosen = views == "selected" and any(len(group.views) > 1 for group in groups)
    maker, name = _RowMaker(metric, truth, fold_of, seed, views_chosen), f"{weights} weights"
    rows = (
        *maker.of_members(groups, members, nested, chosen_weights),
        *maker.of_blends(members, nested, blend, nested_blend, name=name),
    )
    return Summary(
        metric=metric,
        differ=found.differ,
        rows=rows,
        blend=next(row for row in rows if row.name == name),
        members=tuple(group.name for group in groups),
        views=tuple(
            tuple(group.views[view] for view in kept)
            for group, kept in zip(groups, chosen, strict=True)
        ),
        weights=chosen_weights,
        gain=gain,
        tied=int(tied_rows(members).sum()),
        temperature=float(calibrate.temperature),
        calibration=assess_temperature(nested_blend, truth, reads="probabilities", folds=fold_of),
        bias=bias,
        classes=found.classes,
        test_ids=found.test_ids,
        test_probabilities=test,
        test_predictions=predicted,
        untested=tuple(f"{m.model}, seed {m.seed}, {m.view} view" for m in found.untested),
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """A member of the blend: one model and seed, seen through its views, the plain one first."""

    name: str
    views: tuple[str, ...]
    out_of_fold: tuple[Floats32, ...]  # (N, K) of each view
    test: tuple[Floats32, ...]  # (T, K) of each view, or none

    def mean(self, views: Sequence[int]) -> Floats32:
        """Return the mean ``(N, K)`` of some views."""
        return _mean([self.out_of_fold[view] for view in views])

    def test_mean(self, views: Sequence[int]) -> Floats32:
        """Return the mean ``(T, K)`` of some views of the test rows."""
        return _mean([self.test[view] for view in views])


def _mean(views: Sequence[Floats32]) -> Floats32:
    return np.asarray(np.mean(views, axis=0, dtype=np.float32))


def _groups(found: Runs) -> list[_Group]:
    by_model: dict[tuple[str, int], list[Member]] = {}
    for member in sorted(found.out_of_fold, key=lambda m: (m.model, m.seed, m.view != "plain")):
        by_model.setdefault((member.model, member.seed), []).append(member)
    return [
        _Group(
            name=f"{model}, seed {seed}",
            views=tuple(member.view for member in views),
            out_of_fold=tuple(found.out_of_fold[member] for member in views),
            test=tuple(found.test[member] for member in views if found.test),
        )
        for (model, seed), views in by_model.items()
    ]


@dataclass(frozen=True, eq=False)
class _RowMaker:
    """Makes rows of predictions: their score, and that of the nested ones with its interval."""

    metric: Metric
    truth: Indices
    fold_of: Indices
    seed: int
    views_chosen: bool

    def of_members(
        self,
        groups: Sequence[_Group],
        members: Sequence[Floats32],
        nested: Sequence[Floats32],
        weights: npt.NDArray[np.float64],
    ) -> Iterator[SummaryRow]:
        """Yield a row per member, and one of its first view alone where it has several."""
        for group, member, unseen, weight in zip(groups, members, nested, weights, strict=True):
            if len(group.views) == 1:
                yield self.row(group.name, member, weight=float(weight))
            else:
                yield self.row(f"{group.name}, {group.views[0]} view", group.out_of_fold[0])
                yield self.row(f"{group.name}, its views", member, unseen, weight=float(weight))

    def of_blends(
        self,
        members: Sequence[Floats32],
        nested: Sequence[Floats32],
        blend: Floats,
        nested_blend: Floats,
        *,
        name: str,
    ) -> Iterator[SummaryRow]:
        """Yield the unweighted votes, stacking, and the blend, plain and calibrated."""

        def calibrated(p: Tensor, labels: Indices) -> Temperature:
            return Temperature.fit(p, labels, reads="probabilities")

        if len(members) > 1:
            votes: dict[str, Callable[[Sequence[Floats32]], Floats]] = {
                "soft vote": soft_vote,
                "geometric mean": geometric_mean_vote,
            }
            for vote_name, vote in votes.items():
                yield self.row(
                    vote_name, vote(members), vote(nested) if self.views_chosen else None
                )
            if self.metric != "log_loss":  # a vote that is wrong would have an infinite one
                K = members[0].shape[1]
                hard, unseen = (np.eye(K)[hard_vote(p)] for p in (members, nested))
                yield self.row("hard vote", hard, unseen if self.views_chosen else None, sure=False)
            yield self.row(
                "stacked",
                self._fitted(Stacking.fit, np.stack(members)),
                self._cross_fitted(Stacking.fit, np.stack(nested), dim=1),
            )
        yield self.row(name, blend, nested_blend)
        yield self.row(
            f"{name}, calibrated",
            self._fitted(calibrated, blend),
            self._cross_fitted(calibrated, nested_blend, dim=0),
        )

    def row(
        self,
        name: str,
        p: Floats,
        nested: Floats | None = None,
        *,
        weight: float | None = None,
        sure: bool = True,
    ) -> SummaryRow:
        """Return the row of some predictions; ``sure=False`` for those without probabilities."""
        expected = p if nested is None else nested
        low, high = bootstrap_interval(expected, self.truth, metric=self.metric, seed=self.seed)
        return SummaryRow(
            name=name,
            score=SCORES[self.metric](p, self.truth),
            nested=None if nested is None else SCORES[self.metric](nested, self.truth),
            low=low,
            high=high,
            weight=weight,
            log_loss=log_loss(expected, self.truth) if sure else None,
            calibration_error=expected_calibration_error(expected, self.truth) if sure else None,
        )

    def _fitted(self, fit: Fit, p: Floats) -> Floats:
        inputs = torch.from_numpy(p)
        return np.asarray(fit(inputs, self.truth)(inputs).numpy())

    def _cross_fitted(self, fit: Fit, p: Floats, *, dim: int) -> Floats:
        outputs = cross_fit(fit, torch.from_numpy(p), self.truth, folds=self.fold_of, dim=dim)
        return np.asarray(outputs.numpy())
