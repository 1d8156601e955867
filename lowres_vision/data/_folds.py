"""Stratified folds: every class spread evenly, every group kept whole."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._manifest import Manifest

Indices = npt.NDArray[np.int64]


class StratifiedFolds:
    """k folds in which every class has the same share.

    Without groups, the number of images of a class differs by at most one between any two folds,
    and so does the size of the folds. With groups, whole groups are dealt out, the most uneven
    ones first, each to the fold that keeps the class shares most even: good, not provably best.

    A row of a :class:`Manifest` is one unit, so the two resolutions of a picture are never on
    both sides of a split.

    Args:
        n_splits: Number of folds, at least 2.
        shuffle: Deal the images of a class at random; otherwise in the order they stand.
        seed: Seed of the shuffle; the same seed gives the same folds.

    Example:
        >>> y = [0, 0, 0, 0, 1, 1]
        >>> [held_out.tolist() for _, held_out in StratifiedFolds(2, seed=1).split(y)]
        [[0, 2, 4], [1, 3, 5]]

    References:
        The per-class counts are those of scikit-learn's ``StratifiedKFold``. Unlike it, a class
        with fewer members than folds is an error here: its score could not be measured.
    """

    def __init__(self, n_splits: int = 5, *, shuffle: bool = True, seed: int = 0) -> None:
        if n_splits < 2:
            raise ValueError(f"`n_splits` must be >= 2, got {n_splits}")
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.seed = seed

    def split(
        self, y: npt.ArrayLike, groups: Sequence[object] | None = None
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield ``(train, held_out)`` index arrays, one pair per fold.

        Args:
            y: ``(N,)`` class of each item: ints or strings.
            groups: ``(N,)`` group of each item; a group is never split.

        Raises:
            ValueError: If a class has fewer members (with groups: is in fewer groups) than there
                are folds, or no dealing of the groups found puts every class in every fold.
        """
        fold_of = self._deal(np.asarray(y), groups)
        return (
            (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold))
            for fold in range(self.n_splits)
        )

    def assign(self, manifest: Manifest) -> Indices:
        """Return the fold ``(N,)`` of each row; the manifest's groups stay whole.

        Raises:
            DataError: If the manifest is unlabelled, or as :meth:`split`, with the class named.
        """
        manifest.require_labels()
        names = np.asarray(manifest.classes)[manifest.labels]
        try:
            return self._deal(names, manifest.groups)
        except ValueError as error:
            reason, _, remedy = str(error).partition("; ")
            raise DataError(manifest.source, [Fault(reason, remedy)]) from None

    def _deal(self, y: npt.NDArray[np.generic], groups: Sequence[object] | None) -> Indices:
        if y.ndim != 1:
            raise ValueError(f"`y` must be (N,) classes, got shape {y.shape}")
        if groups is not None and len(groups) != len(y):
            raise ValueError(f"`groups` must have one entry per item: {len(groups)} for {len(y)}")
        names, classes = _by_first_appearance(y)
        if groups is None:
            members = np.bincount(classes, minlength=len(names))
            self._refuse_rare(names, members, "image" if len(y) else "")
            return self._deal_items(classes)
        _, group_of = _by_first_appearance(np.asarray([repr(group) for group in groups]))
        counts = np.zeros((group_of.max(initial=-1) + 1, len(names)), dtype=np.int64)
        np.add.at(counts, (group_of, classes), 1)
        self._refuse_rare(names, (counts > 0).sum(axis=0), "group")
        fold_of_group = self._deal_groups(counts)
        for fold in range(self.n_splits):
            absent = counts[fold_of_group == fold].sum(axis=0) == 0
            if absent.any():
                raise ValueError(
                    f"no dealing of the groups was found that puts class "
                    f"{str(names[absent.argmax()])!r} in fold {fold}; "
                    f"use fewer folds than {self.n_splits}, smaller groups or another seed"
                )
        return fold_of_group[group_of]

    def _refuse_rare(self, names: npt.NDArray[np.generic], members: Indices, unit: str) -> None:
        if not len(names):
            raise ValueError("`y` is empty; there is nothing to split")
        rare = [
            f"{str(name)!r} ({count} {unit}{'' if count == 1 else 's'})"
            for name, count in zip(names, members.tolist(), strict=True)
            if count < self.n_splits
        ]
        if rare:
            raise ValueError(
                f"{len(rare)} of {len(names)} classes cannot be in each of {self.n_splits} folds: "
                f"{', '.join(rare[:10])}{', ...' if len(rare) > 10 else ''}; "
                f"add images, drop or merge the class, or use fewer folds"
            )

    def _deal_items(self, classes: Indices) -> Indices:
        """Deal class by class, round and round, so that neither classes nor folds drift apart."""
        by_class = np.argsort(classes, kind="stable")
        starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))
        random = np.random.default_rng(self.seed)
        fold_of = np.empty(len(classes), dtype=np.int64)
        turn = np.arange(len(classes)) % self.n_splits
        for members, folds in zip(
            np.split(by_class, starts[1:]), np.split(turn, starts[1:]), strict=True
        ):
            fold_of[members] = random.permutation(folds) if self.shuffle else np.sort(folds)
        return fold_of

    def _deal_groups(self, counts: Indices) -> Indices:
        """Deal ``(G, K)`` class counts, the most uneven group first, to the evenest outcome."""
        order = np.arange(len(counts))
        if self.shuffle:
            np.random.default_rng(self.seed).shuffle(order)
        order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
        share = counts / counts.sum(axis=0)
        dealt = np.zeros((self.n_splits, counts.shape[1]))
        sizes = np.zeros(self.n_splits, dtype=np.int64)
        fold_of_group = np.empty(len(counts), dtype=np.int64)
        for group in order:
            # The sum of squares grows least where the group's classes are scarcest.
            growth = (2 * dealt * share[group] + share[group] ** 2).sum(axis=1)
            fold = int(np.lexsort((sizes, growth.round(12)))[0])
            dealt[fold] += share[group]
            sizes[fold] += counts[group].sum()
            fold_of_group[group] = fold
        return fold_of_group


def _by_first_appearance(
    values: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.generic], Indices]:
    """Return the distinct values in order of appearance, and each value's number in that order."""
    names, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return names[order], rank[inverse]
