"""How rows, alone or in units that must stay whole, are dealt to folds."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MOST_REST = 7  # moves that a moved unit rests at most, so that the repair does not undo itself


def deal_items(classes: Indices, n_splits: int, random: np.random.Generator | None) -> Indices:
    """Deal class by class, round and round, so that neither classes nor folds drift apart.

    Args:
        classes: ``(N,)`` class numbers from 0, all present.
        n_splits: Number of folds.
        random: Source of the shuffle within a class; None deals in the order the rows stand.

    Returns:
        ``(N,)`` fold of each row.
    """
    by_class = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))[1:]
    turn = np.arange(len(classes)) % n_splits
    fold_of = np.empty(len(classes), dtype=np.int64)
    for members, folds in zip(np.split(by_class, starts), np.split(turn, starts), strict=True):
        fold_of[members] = np.sort(folds) if random is None else random.permutation(folds)
    return fold_of


def deal_units(
    classes: Indices, unit_of: Indices, shares: Floats, random: np.random.Generator | None
) -> Indices:
    """Deal whole units: those of several rows first, then single rows to even out.

    A class that is in as many units as there are folds gets into every fold, where the search
    finds a way; the caller checks.

    Args:
        classes: ``(N,)`` class numbers from 0, all present.
        unit_of: ``(N,)`` unit numbers from 0, all present.
        shares: ``(F,)`` share of the rows that each fold should get, summing to 1.
        random: Source of the shuffle; None deals in the order the rows stand.

    Returns:
        ``(N,)`` fold of each row.
    """
    several = np.bincount(unit_of) > 1
    joined = several[unit_of]
    number = np.cumsum(several) - 1
    total = np.bincount(classes)
    counts = np.zeros((int(several.sum()), len(total)), dtype=np.int64)  # (U, K)
    np.add.at(counts, (number[unit_of[joined]], classes[joined]), 1)
    single = np.bincount(classes[~joined], minlength=len(total))

    fold_of_unit = _deal_uneven_first(counts, total, shares, random)
    _repair(counts, single, fold_of_unit, len(shares))
    dealt = np.zeros((len(shares), len(total)), dtype=np.int64)  # (F, K)
    np.add.at(dealt, fold_of_unit, counts)
    seats = _seats(single, dealt, shares)

    fold_of = np.empty(len(classes), dtype=np.int64)
    fold_of[joined] = fold_of_unit[number[unit_of[joined]]]
    rows = np.flatnonzero(~joined)
    rows = rows[np.argsort(classes[rows], kind="stable")]
    for name, members in enumerate(np.split(rows, np.cumsum(single)[:-1])):
        folds = np.repeat(np.arange(len(shares)), seats[:, name])
        fold_of[members] = folds if random is None else random.permutation(folds)
    return fold_of


def _deal_uneven_first(
    counts: Indices, total: Indices, shares: Floats, random: np.random.Generator | None
) -> Indices:
    """Deal ``(U, K)`` class counts, the most uneven unit first, to the evenest outcome."""
    order = np.arange(len(counts))
    if random is not None:
        random.shuffle(order)
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    share = counts / total
    dealt = np.zeros((len(shares), counts.shape[1]))
    sizes = np.zeros(len(shares))
    fold_of_unit = np.empty(len(counts), dtype=np.int64)
    for unit in order:
        # sum(dealt^2) / share grows least where the unit's classes are scarcest for the fold.
        growth = (2 * dealt * share[unit] + share[unit] ** 2).sum(axis=1) / shares
        fold = int(np.lexsort(((sizes / shares).round(9), growth.round(12)))[0])
        dealt[fold] += share[unit]
        sizes[fold] += counts[unit].sum()
        fold_of_unit[unit] = fold
    return fold_of_unit


def _repair(counts: Indices, single: Indices, fold_of_unit: Indices, folds: int) -> None:
    """Move units until single rows suffice to put every class in every fold.

    A tabu search: each move brings a class to a fold that lacks it by the unit that leaves the
    fewest gaps, even if that opens one elsewhere, and a unit just moved rests for a while. Ties
    and rests are drawn from a stream of their own: a search without chance can go in circles.
    """
    has = counts > 0  # (U, K)
    present = np.zeros((folds, counts.shape[1]), dtype=np.int64)  # units of a class in a fold
    np.add.at(present, fold_of_unit, has)
    rests_until = np.zeros(len(counts), dtype=np.int64)
    random = np.random.default_rng(0)
    for step in range(min(200 + 20 * len(counts), 4000)):
        absent = (present == 0).sum(axis=0)  # (K,)
        short = np.flatnonzero(absent > single)
        if not len(short):
            return
        name = random.choice(short)
        units = np.flatnonzero(has[:, name] & (rests_until <= step))
        if not len(units):
            continue
        targets = np.flatnonzero(present[:, name] == 0)  # (f,)
        opened = has[units] & (present[fold_of_unit[units]] == 1)  # (u, K)
        closed = has[units] & (present[targets] == 0)[:, None]  # (f, u, K)
        gaps = np.maximum(absent + opened - closed - single, 0).sum(axis=2)  # (f, u)
        target, mover = random.choice(np.argwhere(gaps == gaps.min()))
        fold, unit = targets[target], units[mover]
        present[fold_of_unit[unit]] -= has[unit]
        present[fold] += has[unit]
        fold_of_unit[unit] = fold
        rests_until[unit] = step + random.integers(1, 1 + min(_MOST_REST, len(counts)))


def _seats(single: Indices, dealt: Indices, shares: Floats) -> Indices:
    """Return ``(F, K)`` how many single rows of each class each fold gets.

    A fold gets its share of a class rounded down, less what came in units, and at least one row
    of a class it lacks. What is left over goes where most is owed, over all classes so far.
    """
    seats = np.zeros_like(dealt)
    owed = np.zeros(len(shares))
    for name, free in enumerate(single):
        here = dealt[:, name]
        quota = shares * (free + here.sum())
        got = np.maximum(np.floor(quota + 1e-9).astype(np.int64) - here, here == 0)
        while got.sum() < free:
            got[np.argmax((quota + owed - here - got).round(9))] += 1
        while got.sum() > free:
            spare = np.where(got > 0, here + got - quota, -np.inf)
            keep_one = np.where(here + got > 1, spare, -np.inf)
            got[np.argmax(keep_one if np.isfinite(keep_one).any() else spare)] -= 1
        owed += quota - here - got
        seats[:, name] = got
    return seats
