"""Stratified folds: every class spread evenly, every group kept whole."""

import os
from collections.abc import Hashable, Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_range
from lowres_vision.data._dealing import deal_items, deal_units
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._fold_file import FoldRecord
from lowres_vision.data._links import Digests, file_digests, link
from lowres_vision.data._manifest import Manifest

Indices = npt.NDArray[np.int64]


class StratifiedFolds:
    """k folds in which every class has the same share.

    Without groups, the number of images of a class differs by at most one between any two folds,
    and so does the size of the folds. With groups, whole groups are dealt out, the most uneven
    ones first, each to the fold that keeps the class shares most even; then groups move until
    every class is in every fold; then images in a group of their own even out what is left.
    Good, not provably best.

    A row of a :class:`Manifest` is one unit, so the two resolutions of a picture are never on
    both sides of a split. :meth:`assign` also keeps rows together that :func:`linked_rows` links:
    those of a group and those with the same file.

    Folds last as long as the data they were dealt to. :meth:`save` writes them down with the
    hashes of all files, :meth:`load` reads them again, and from then on :meth:`assign` gives the
    folds as they were, after :meth:`verify` has found that rows and files are still the same.

    Args:
        n_splits: Number of folds, at least 2.
        shuffle: Deal the images of a class at random; otherwise in the order they stand.
        seed: Seed of the shuffle; the same seed gives the same folds.

    Example:
        >>> y = [0, 0, 0, 0, 1, 1]
        >>> [held_out.tolist() for _, held_out in StratifiedFolds(2, seed=1).split(y)]
        [[0, 2, 4], [1, 3, 5]]
        >>> train, held_out = StratifiedFolds(seed=1).hold_out(y, share=1 / 3)
        >>> held_out.tolist()
        [3, 5]

    References:
        The per-class counts are those of scikit-learn's ``StratifiedKFold``. Unlike it, a class
        with fewer members than folds is an error here: its score could not be measured. Groups
        start from the order and the greedy choice of its ``StratifiedGroupKFold``, which stops
        there and may leave a class out of a fold.
    """

    def __init__(self, n_splits: int = 5, *, shuffle: bool = True, seed: int = 0) -> None:
        if n_splits < 2:
            raise ValueError(f"`n_splits` must be >= 2, got {n_splits}")
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.seed = seed
        self._record: FoldRecord | None = None

    def split(
        self, y: npt.ArrayLike, groups: Sequence[object] | Indices | None = None
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield ``(train, held_out)`` index arrays, one pair per fold.

        Args:
            y: ``(N,)`` class of each item: ints or strings.
            groups: ``(N,)`` group of each item; a group is never split.

        Raises:
            ValueError: If a class has fewer members (with groups: is in fewer groups) than there
                are folds, or no dealing of the groups found puts every class in every fold.
        """
        fold_of = self._deal(y, groups)
        return (
            (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold))
            for fold in range(self.n_splits)
        )

    def hold_out(
        self,
        y: npt.ArrayLike,
        groups: Sequence[object] | Indices | None = None,
        *,
        share: float | None = None,
    ) -> tuple[Indices, Indices]:
        """Return one split, ``(train, held_out)``, with every class on both sides.

        Without groups, what is held out of a class is its share to within one image, and so is
        the whole to within two; but one image of a class stays on either side, whatever the share.

        Args:
            y: As in :meth:`split`.
            groups: As in :meth:`split`; :func:`linked_rows` gives those of a manifest.
            share: Share of the items to hold out, in (0, 1); default ``1 / n_splits``.

        Raises:
            ValueError: As :meth:`split`, with two folds.
        """
        held_out = self._hold_out(y, groups, 1 / self.n_splits if share is None else share)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def repeated(self, times: int) -> tuple[Self, ...]:
        """Return ``times`` ways to fold, each with a seed of its own; the first has this seed.

        Example:
            >>> [folds.seed for folds in StratifiedFolds(5, seed=7).repeated(3)]
            [7, 369571992, 1009178997]
        """
        check_range("times", times, 1)
        if times > 1 and not self.shuffle:
            raise ValueError("`shuffle` must be True for repeats to differ, got False")
        # Not seed + 1: the repeats of neighbouring seeds would share their folds.
        seeds = [
            int(np.random.SeedSequence((self.seed, n)).generate_state(1)[0]) for n in range(times)
        ]
        return tuple(
            type(self)(self.n_splits, shuffle=self.shuffle, seed=seed)
            for seed in [self.seed, *seeds[1:]]
        )

    def assign(
        self,
        manifest: Manifest,
        *,
        groups: Sequence[Hashable] | None = None,
        share: float | None = None,
    ) -> Indices:
        """Return the fold ``(N,)`` of each row; linked rows stay whole.

        Every file is read once, to find files that stand twice. Folds that were loaded are
        verified instead of dealt.

        Args:
            manifest: Labelled rows.
            groups: ``(N,)`` further groups to keep whole, as in :func:`linked_rows`.
            share: Deal one hold-out of this share, as :meth:`hold_out`, in place of folds: 0 for
                the rows held out, -1 for those that are always trained on.

        Raises:
            DataError: If the manifest is unlabelled, or as :meth:`split`, with the class named;
                of loaded folds, as :meth:`verify`.
            ValueError: If ``share`` is not that of the loaded folds.
        """
        _check_share(share)
        if self._record is not None:
            return self._loaded(self._record, manifest, groups, share)
        manifest.require_labels()
        return self._assign(manifest, file_digests(manifest), groups, share)

    def save(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        groups: Sequence[Hashable] | None = None,
        share: float | None = None,
    ) -> Indices:
        """Assign as :meth:`assign`, write the folds to ``path`` (JSON) and return them.

        The file holds the settings and, by row, id, label, group, the SHA-256 of its files and
        its fold: the same bytes for the same seed and data.
        """
        _check_share(share)
        manifest.require_labels()
        digests = file_digests(manifest)
        if self._record is not None:
            fold_of = self._loaded(self._record, manifest, groups, share)
            share = self._record.share
        else:
            fold_of = self._assign(manifest, digests, groups, share)
        settings = {
            "n_splits": self.n_splits,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "share": share,
        }
        FoldRecord.of(manifest, digests, fold_of, settings).write(path)
        return fold_of

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the folds of a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If ``path`` is not a file.
            DataError: If it is no file of saved folds, or is damaged or edited.
        """
        record = FoldRecord.read(path)
        folds = cls(record.n_splits, shuffle=record.shuffle, seed=record.seed)
        folds._record = record
        return folds

    def verify(self, manifest: Manifest, *, groups: Sequence[Hashable] | None = None) -> None:
        """Check that rows and files are still those that loaded folds were dealt to.

        Rows are known by their id: they may stand in another order, and files may have moved.

        Raises:
            DataError: With every row that is new or gone, every label or group that is another,
                every file whose content is, and every group of ``groups`` that crosses folds.
            ValueError: If these folds were not loaded from a file.
        """
        if self._record is None:
            raise ValueError("only folds from `StratifiedFolds.load` can be verified")
        self._record.check(manifest, groups)

    @staticmethod
    def _loaded(
        record: FoldRecord,
        manifest: Manifest,
        groups: Sequence[Hashable] | None,
        share: float | None,
    ) -> Indices:
        if share not in (None, record.share):
            raise ValueError(
                f"`share` must be that of the loaded folds, {record.share}, got {share}"
            )
        return record.check(manifest, groups)

    def _assign(
        self,
        manifest: Manifest,
        digests: Digests,
        groups: Sequence[Hashable] | None,
        share: float | None,
    ) -> Indices:
        names = np.asarray(manifest.classes)[manifest.labels]
        linked = link(manifest, digests, groups)
        try:
            if share is None:
                return self._deal(names, linked)
            return np.where(self._hold_out(names, linked, share), 0, -1)
        except ValueError as error:
            reason, _, remedy = str(error).partition("; ")
            raise DataError(manifest.source, [Fault(reason, remedy)]) from None

    def _hold_out(
        self, y: npt.ArrayLike, groups: Sequence[object] | Indices | None, share: float
    ) -> npt.NDArray[np.bool_]:
        _check_share(share)
        side = self._deal(y, groups, np.array([1 - share, share]))
        return side.astype(bool)

    def _deal(
        self,
        y: npt.ArrayLike,
        groups: Sequence[object] | Indices | None,
        shares: npt.NDArray[np.float64] | None = None,
    ) -> Indices:
        y = np.asarray(y)
        if y.ndim != 1:
            raise ValueError(f"`y` must be (N,) classes, got shape {y.shape}")
        if not len(y):
            raise ValueError("`y` is empty; there is nothing to split")
        if groups is not None and len(groups) != len(y):
            raise ValueError(f"`groups` must have one entry per item: {len(groups)} for {len(y)}")
        folds = self.n_splits if shares is None else len(shares)
        random = np.random.default_rng(self.seed) if self.shuffle else None
        names, classes = _by_first_appearance(y)
        unit_of = np.arange(len(y))
        if groups is not None:
            unit_of = _by_first_appearance(np.asarray([repr(group) for group in groups]))[1]
        alone = unit_of.max() == len(y) - 1
        _refuse_rare(names, classes, unit_of, folds, "image" if alone else "group")
        if alone and shares is None:
            return deal_items(classes, folds, random)
        if shares is None:
            shares = np.full(folds, 1 / folds)
        fold_of = deal_units(classes, unit_of, shares, random)
        for fold in range(folds):
            absent = np.bincount(classes[fold_of == fold], minlength=len(names)) == 0
            if absent.any():
                raise ValueError(
                    f"no dealing of the groups was found that puts class "
                    f"{str(names[absent.argmax()])!r} in fold {fold}; "
                    f"use fewer folds than {folds}, smaller groups or another seed"
                )
        return fold_of


def _check_share(share: float | None) -> None:
    if share is None:
        return
    check_range("share", share, 0, open_low=True)
    if share >= 1:
        raise ValueError(f"`share` must be < 1, got {share}")


def _refuse_rare(
    names: npt.NDArray[np.generic], classes: Indices, unit_of: Indices, folds: int, unit: str
) -> None:
    """Refuse classes that are in fewer units than there are folds."""
    in_unit = np.unique(np.stack([classes, unit_of]), axis=1)[0]
    rare = [
        f"{str(name)!r} ({count} {unit}{'' if count == 1 else 's'})"
        for name, count in zip(names, np.bincount(in_unit).tolist(), strict=True)
        if count < folds
    ]
    if rare:
        raise ValueError(
            f"{len(rare)} of {len(names)} classes cannot be in each of {folds} folds: "
            f"{', '.join(rare[:10])}{', ...' if len(rare) > 10 else ''}; "
            f"add images, drop or merge the class, or use fewer folds"
        )


def _by_first_appearance(
    values: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.generic], Indices]:
    """Return the distinct values in order of appearance, and each value's number in that order."""
    names, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return names[order], rank[inverse]
