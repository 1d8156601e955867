"""The table of an ensemble: members, votes and blends, each with what to expect of it."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowres_vision.ensemble._bootstrap import PairedDifference
from lowres_vision.ensemble._calibrate import Calibration
from lowres_vision.ensemble._class_bias import BiasEstimate
from lowres_vision.ensemble._inputs import Indices
from lowres_vision.ensemble._scores import Metric
from lowres_vision.ensemble._submission import write_submission

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table.

    Attributes:
        name: Of the member or blend.
        score: On the out-of-fold predictions; optimistic where these rows also made a choice.
        nested: With each choice made without the row's fold; None where nothing was chosen.
        low: Lower end of the 95 % interval of ``nested``, or of ``score`` where that is None.
        high: Upper end.
        weight: In the blend; None for what is no member of it.
        log_loss: Of what ``low`` and ``high`` are of; None for a hard vote.
        calibration_error: Likewise.
    """

    name: str
    score: float
    nested: float | None
    low: float
    high: float
    weight: float | None
    log_loss: float | None
    calibration_error: float | None


@dataclass(frozen=True, eq=False)
class Summary:
    """What :func:`summarise` found.

    Attributes:
        metric: Of the scores.
        differ: What the runs, joined by row id, do not share: ``"files"``, ``"folds"``, both or
            nothing.
        rows: Of the table.
        blend: The row of the blend, before its calibration.
        members: ``(G,)`` names: models with their seeds.
        views: Names of the test-time views that each member is the mean of.
        weights: ``(G,)`` of the blend.
        gain: Of the blend over its best member, both nested; None for a single member.
        tied: Rows of the hard vote that the smallest class index decided.
        temperature: Of the calibrated blend.
        calibration: What the temperature does.
        bias: What offsets per class do to the blend; None unless the metric is macro-F1.
        classes: ``(K,)`` class names.
        test_ids: ``(T,)`` ids of the test rows; empty without.
        test_probabilities: ``(T, K)`` of the calibrated blend, or None.
        test_predictions: ``(T,)`` class indices, after the offsets per class where they help, or
            None.
        untested: Names of members without test predictions, or of views of them; the test fields
            are empty unless this is.
    """

    metric: Metric
    differ: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    blend: SummaryRow
    members: tuple[str, ...]
    views: tuple[tuple[str, ...], ...]
    weights: Doubles
    gain: PairedDifference | None
    tied: int
    temperature: float
    calibration: Calibration
    bias: BiasEstimate | None
    classes: tuple[str, ...]
    test_ids: tuple[str, ...]
    test_probabilities: Doubles | None
    test_predictions: Indices | None
    untested: tuple[str, ...]

    def table(self) -> str:
        """Return the table and what there is to say below it, as text."""
        width = max(len(row.name) for row in self.rows)
        head = f"{self.metric:{width}}  weight   score  nested  95 % interval     log loss    ECE"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            weight = "      " if row.weight is None else f"{row.weight:6.3f}"
            nested = "      " if row.nested is None else f"{row.nested:6.4f}"
            line = f"{row.name:{width}}  {weight}  {row.score:6.4f}  {nested}  "
            line += f"{row.low:6.4f} - {row.high:6.4f}"
            if row.log_loss is not None:
                line += f"    {row.log_loss:7.4f}  {row.calibration_error:6.4f}"
            lines.append(line)
        return "\n".join([*lines, "", *self._notes()]) + "\n"

    def write_submission(
        self, path: str | os.PathLike[str], *, sample: str | os.PathLike[str] | None = None
    ) -> Path:
        """Write the test predictions and probabilities, see :func:`write_submission`.

        Raises:
            ValueError: If a run has no test predictions, or they do not fit the sample.
        """
        if self.test_predictions is None or self.test_probabilities is None:
            raise ValueError(
                f"the runs have no test predictions of {', '.join(self.untested)}; give `test` to "
                f"the cross_validate of each run, and to predict_views"
            )
        return write_submission(
            path,
            self.test_predictions,
            ids=self.test_ids,
            classes=self.classes,
            sample=sample,
            probabilities=self.test_probabilities,
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.differ:
            nested = "; nested by the folds of the first" if "folds" in self.differ else ""
            notes.append(f"runs of different {' and '.join(self.differ)}, joined by row id{nested}")
        for name, views in zip(self.members, self.views, strict=True):
            if len(views) > 1 or views[0] != "plain":
                notes.append(f"{name}: mean of the views {', '.join(views)}")
        if self.tied:
            notes.append(f"hard vote: {self.tied} tied rows went to the smallest class index")
        if self.gain is not None:
            notes.append(
                f"blend less best member: {self.gain.difference:+.4f} "
                f"({self.gain.low:+.4f} to {self.gain.high:+.4f}), p = {self.gain.p_value:.3g}"
            )
        about = self.calibration
        notes.append(
            f"temperature {self.temperature:.3f}: log loss {about.log_loss_before:.4f} -> "
            f"{about.log_loss_after:.4f}, ECE {about.error_before:.4f} -> {about.error_after:.4f}"
        )
        if self.bias is not None:
            verdict = "kept" if self.bias.helps else "not kept"
            notes.append(
                f"offsets per class: macro-F1 {self.bias.before:.4f} -> {self.bias.nested:.4f} "
                f"(standard error {self.bias.error:.4f}): {verdict}"
            )
        return notes
