"""Unlabelled rows in training: each fold takes the labels that its own earlier models vote for."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowres_vision._checks import check_range
from lowres_vision.data import Manifest
from lowres_vision.ensemble._runs import read_test_votes


@dataclass(frozen=True)
class PseudoLabels:
    """The test rows as further training rows, with labels that earlier runs voted for.

    In each fold the earlier models *of that fold* vote, every run, seed and view with the same
    weight, a copy of one with none. Rows whose winner has ``confidence`` of the vote join those
    that the fold trains on. The models of all other folds have learned from the rows that this fold
    is scored on; their labels would hand that knowledge on, and the out-of-fold score would be too
    good. Runs of other folds are refused for the same reason.

    The test rows' own labels, if they have any, are not read. Models trained so have seen the test
    pictures, which a contest allows and a measurement of unseen pictures does not: the out-of-fold
    score, whose pictures they have not seen, stays one.

    Args:
        runs: Folders that :func:`cross_validate` wrote, or folders of such folders, with the folds
            and the ``test`` of the new run, which must lie outside of them.
        confidence: Least mean probability of the winning class, 0 to 1.

    Raises:
        TypeError: If ``runs`` is one folder in place of a list.
        ValueError: If ``runs`` is empty or ``confidence`` is out of range.

    Source:
        Lee, "Pseudo-Label", ICML 2013 workshop on representation learning, which labels anew in
        every step and weighs these rows up slowly; and Xie et al., "Self-training with Noisy
        Student", CVPR 2020, which labels once, keeps the probabilities and balances the classes.
        Here labels are settled once, by a vote, and count as others do.
    """

    runs: Sequence[str | os.PathLike[str]]
    confidence: float = 0.6

    def __post_init__(self) -> None:
        if isinstance(self.runs, str | os.PathLike):
            raise TypeError(f"`runs` must be a list of folders, got {self.runs!r}")
        if not self.runs:
            raise ValueError("`runs` must name at least one folder, got none")
        check_range("confidence", self.confidence, 0, 1)

    def label(self, test: Manifest, *, classes: Sequence[str], fold_hash: str) -> list[Manifest]:
        """Return, for each fold, the rows of ``test`` that join its training rows, labelled.

        Args:
            test: The rows to label.
            classes: ``(K,)`` class names by index.
            fold_hash: :meth:`~lowres_vision.ensemble.OutOfFold.hash_folds` of the new run's folds.

        Raises:
            FileNotFoundError: If a run has no ledger or predicted no test rows.
            ValueError: If a run is of other folds, classes or test rows, its test predictions are
                damaged, or no row of a fold reaches ``confidence``.
        """
        ids, votes = read_test_votes(self.runs, classes=classes, fold_hash=fold_hash)
        place_of = {name: place for place, name in enumerate(ids)}
        if unlike := sorted(set(place_of) ^ set(test.ids)):
            raise ValueError(
                f"`runs` must have predicted the rows of `test`: {len(unlike)} stand in one alone, "
                f"the first is {unlike[0]!r}"
            )
        labelled = []
        for fold, vote in enumerate(votes[:, [place_of[name] for name in test.ids]]):
            sure = np.flatnonzero(vote.max(axis=1) >= self.confidence)
            if not sure.size:
                raise ValueError(
                    f"`confidence` must be reached by some test row, got {self.confidence} and at "
                    f"most {vote.max():.3f} in fold {fold}"
                )
            labels = vote[sure].argmax(axis=1)
            labelled.append(replace(test.take(sure), labels=labels, classes=tuple(classes)))
        return labelled


def join_labelled(manifest: Manifest, test: Manifest, added: Manifest, *, high: bool) -> Manifest:
    """Return ``manifest`` and after it all of ``test``, which may lie in another folder.

    The rows are the same whatever was ``added``, so that the folds share a cache of their images.

    Args:
        manifest: Its rows keep their numbers.
        test: Its rows have the labels that they have in ``added``, and no others.
        added: Some rows of ``test``, with labels of the classes of ``manifest``.
        high: Whether the high-resolution images are asked for; both must then have them.
    """
    label_of = dict(zip(added.ids, added.labels.tolist(), strict=True))

    def moved(paths: tuple[str, ...]) -> tuple[str, ...]:
        # Absolute: a way there from `manifest.root` would be another where that is a link.
        same = test.root == manifest.root
        return paths if same else tuple(str((test.root / path).absolute()) for path in paths)

    return Manifest.join(
        [
            replace(manifest, high=manifest.high if high else None, groups=None),
            replace(
                test,
                root=manifest.root,
                low=moved(test.low),
                high=moved(test.high) if high and test.high is not None else None,
                # Both sets may count from 0.
                ids=tuple(f"{test.source}: {name}" for name in test.ids),
                labels=np.array([label_of.get(name, -1) for name in test.ids], dtype=np.int64),
                classes=manifest.classes,
                groups=None,
            ),
        ]
    )


def labels_sha256(added: Sequence[Manifest]) -> str:
    """Return a hash of which rows were added in each fold, with which labels."""
    labels = [(rows.ids, rows.labels.tolist()) for rows in added]
    return hashlib.sha256(repr(labels).encode()).hexdigest()
