from pathlib import Path

import numpy as np

from lowres_vision.ensemble import Calibration, Summary, SummaryRow
from lowres_vision.plots import ensemble_table

ROWS = (
    SummaryRow("resnet18, seed 0", 0.81, None, 0.80, 0.82, 0.75, 0.6, 0.05),
    SummaryRow("vit, seed 0", 0.79, None, 0.78, 0.80, 0.25, 0.7, 0.06),
    SummaryRow("selected weights", 0.84, 0.83, 0.82, 0.845, None, 0.5, 0.04),
)


def summary() -> Summary:
    return Summary(
        metric="macro_f1", differ=(), rows=ROWS, blend=ROWS[-1],
        members=("resnet18, seed 0", "vit, seed 0"), views=(("plain",), ("plain",)),
        weights=np.array([0.75, 0.25]), gain=None, tied=0, temperature=1.0,
        calibration=Calibration(0.5, 0.5, 0.04, 0.04), bias=None, classes=("Finch", "Tit"),
        test_ids=(), test_probabilities=None, test_predictions=None, untested=(),
    )  # fmt: skip


def test_each_row_has_its_name_score_and_interval() -> None:
    scores, weights = ensemble_table(summary()).axes
    assert [label.get_text() for label in scores.get_yticklabels()] == [row.name for row in ROWS]
    dots = [line for line in scores.lines if line.get_marker() == "o"]
    intervals = [line for line in scores.lines if line.get_marker() != "o"]
    assert [list(line.get_xdata()) for line in intervals] == [[r.low, r.high] for r in ROWS]
    assert [line.get_xdata()[0] for line in dots] == [0.81, 0.79, 0.83, 0.84]
    assert [line.get_fillstyle() for line in dots] == ["full", "full", "full", "none"]
    assert [text.get_text() for text in scores.texts] == ["0.8100", "0.7900", "0.8300"]
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in weights.patches] == [
        (0, 0.75),
        (1, 0.25),
    ]
    assert "macro-F1" in scores.get_xlabel()


def test_the_picture_is_written_where_asked(tmp_path: Path) -> None:
    ensemble_table(summary(), tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
