from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowres_vision.ensemble import (
    OutOfFold,
    Temperature,
    accuracy,
    bootstrap_interval,
    expected_calibration_error,
    hard_vote,
    log_loss,
    macro_f1,
    select_ensemble,
    soft_vote,
    summarise,
    tied_rows,
)

Maker = Callable[..., Any]
PLAIN = {"plain": 1.5}


def test_without_views_the_table_is_that_of_its_parts(tmp_path: Path, make_run: Maker) -> None:
    for model, strength in (("a", 1.5), ("b", 1.6), ("c", 0.3)):
        labels, _ = make_run(tmp_path / model, model=model, strengths={"plain": strength})
    summary = summarise([tmp_path / model for model in "abc"])
    p = np.stack([OutOfFold(tmp_path / m / "ledger").probabilities()[0] for m in "abc"])
    fold_of = np.arange(400) % 4
    selection = select_ensemble(p, labels, folds=fold_of)
    np.testing.assert_array_equal(summary.weights, selection.weights)
    assert summary.members == ("a, seed 0", "b, seed 0", "c, seed 0")
    assert summary.views == (("plain",),) * 3

    rows = {row.name: row for row in summary.rows}
    assert list(rows) == [
        *summary.members, "soft vote", "geometric mean", "hard vote", "stacked", "selected weights",
        "selected weights, calibrated",
    ]  # fmt: skip
    for model, name in enumerate(summary.members):
        row = rows[name]
        assert row.score == pytest.approx(selection.member_scores[model], abs=1e-12)
        assert (row.low, row.high) == bootstrap_interval(p[model], labels)
        assert (row.nested, row.weight) == (None, selection.weights[model])
        assert row.log_loss == pytest.approx(log_loss(p[model], labels))
        assert row.calibration_error == expected_calibration_error(p[model], labels)
    assert rows["soft vote"].score == pytest.approx(macro_f1(soft_vote(p), labels), abs=1e-12)
    hard = np.eye(4)[hard_vote(p)]
    assert rows["hard vote"].score == pytest.approx(macro_f1(hard, labels), abs=1e-12)
    assert rows["hard vote"].log_loss is None
    chosen = rows["selected weights"]
    assert summary.blend is chosen
    assert chosen.score == pytest.approx(selection.score, abs=1e-12)
    assert chosen.nested == pytest.approx(selection.nested_score, abs=1e-12)
    assert chosen.score >= max(selection.member_scores) - 1e-12
    assert chosen.low < selection.nested_score < chosen.high
    calibrated = rows["selected weights, calibrated"]
    assert calibrated.score == pytest.approx(chosen.score, abs=0.005)  # each row's order is kept
    assert calibrated.log_loss == pytest.approx(summary.calibration.log_loss_after, rel=1e-6)
    assert chosen.log_loss == pytest.approx(summary.calibration.log_loss_before, rel=1e-6)
    nested = np.empty_like(p[0])
    for fold in range(4):
        held, rest = fold_of == fold, fold_of != fold
        weights = select_ensemble(p[:, rest], labels[rest], folds=0).weights
        nested[held] = soft_vote(p[:, held], weights=weights)
    fitted = Temperature.fit(nested, labels, reads="probabilities")
    assert summary.temperature == pytest.approx(float(fitted.temperature), rel=1e-5)
    assert summary.tied == tied_rows(p).sum() > 0
    assert f"hard vote: {summary.tied} tied rows" in summary.table()


def test_a_view_that_hurts_is_left_out_and_the_estimate_holds_on_new_rows(
    tmp_path: Path, make_run: Maker
) -> None:
    views = {"plain": 1.5, "flip": 1.5, "upside down": -1.0}
    for model in "ab":
        _, unseen = make_run(
            tmp_path / model, model=model, strengths=views, rows=1200, test_rows=6000
        )
    summary = summarise([tmp_path], metric="accuracy")
    assert summary.views == (("plain", "flip"), ("plain", "flip"))
    rows = {row.name: row for row in summary.rows}
    for name in summary.members:
        plain, averaged = rows[f"{name}, plain view"], rows[f"{name}, its views"]
        assert averaged.nested is not None
        assert averaged.nested > plain.score + 0.02
        assert plain.weight is None
    assert summary.test_probabilities is not None
    fresh = accuracy(summary.test_probabilities, unseen)
    chosen = rows["selected weights"]
    assert chosen.low < fresh < chosen.high
    assert summary.gain is not None
    assert summary.gain.difference == pytest.approx(
        chosen.nested - max(rows[f"{name}, its views"].nested for name in summary.members), abs=0.02
    )
    assert "upside down" not in summary.table()
    assert summary.bias is None


def test_the_test_rows_get_the_weights_the_views_and_the_temperature(
    tmp_path: Path, make_run: Maker
) -> None:
    for model in "ab":
        make_run(tmp_path / model, model=model, strengths={"plain": 1.5, "flip": 1.4})
    summary = summarise([tmp_path / "a", tmp_path / "b"], metric="log_loss")
    assert "hard vote" not in {row.name for row in summary.rows}
    means = []
    for model, views in zip("ab", summary.views, strict=True):
        with np.load(tmp_path / model / "test_probabilities.npz") as stored:
            places = [stored["views"].tolist().index(view) for view in views]
            means.append(stored["probabilities"][places].mean(axis=(0, 1)))
    voted = torch.from_numpy(soft_vote(means, weights=summary.weights))
    expected = Temperature(summary.temperature, reads="probabilities")(voted)
    np.testing.assert_allclose(summary.test_probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(summary.test_predictions, expected.argmax(1))
    assert summary.test_ids[:2] == ("test_0", "test_1")
    path = summary.write_submission(tmp_path / "out.csv")
    predicted = [line.split(",")[1] for line in path.read_text().splitlines()[1:]]
    assert predicted == [summary.classes[k] for k in expected.argmax(1)]
    with np.load(tmp_path / "out.probabilities.npz") as beside:
        np.testing.assert_allclose(beside["probabilities"], expected, atol=1e-6)


def test_equal_weights_are_the_soft_vote(tmp_path: Path, make_run: Maker) -> None:
    for model, strength in (("a", 1.5), ("b", 0.4)):
        labels, _ = make_run(tmp_path / model, model=model, strengths={"plain": strength})
    summary = summarise([tmp_path / "a", tmp_path / "b"], metric="log_loss", weights="equal")
    p = [OutOfFold(tmp_path / m / "ledger").probabilities()[0] for m in "ab"]
    assert summary.weights.tolist() == [0.5, 0.5]
    rows = {row.name: row for row in summary.rows}
    score = log_loss((p[0] + p[1]) / 2, labels)
    blend = rows["equal weights"]
    assert summary.blend is blend
    assert blend.score == blend.nested == pytest.approx(score)
    assert {"soft vote", "equal weights, calibrated"} < set(rows)
    assert summary.gain is not None
    assert summary.gain.difference == pytest.approx(log_loss(p[0], labels) - score)
    assert summary.test_probabilities is not None
    with pytest.raises(
        ValueError, match="`weights` must be one of 'selected', 'equal', got 'fair'"
    ):
        summarise([tmp_path / "a"], weights="fair")  # type: ignore[arg-type]


def test_all_views_and_equal_weights_choose_nothing(tmp_path: Path, make_run: Maker) -> None:
    strengths = {"plain": 1.5, "flip": 1.2, "upside down": -1.0}
    for model in "ab":
        labels, _ = make_run(tmp_path / model, model=model, strengths=strengths)
    summary = summarise([tmp_path], metric="accuracy", weights="equal", views="all")
    assert [set(names) for names in summary.views] == [set(strengths)] * 2
    stacks = [OutOfFold(tmp_path / m / "ledger").probabilities() for m in "ab"]
    rows = {row.name: row for row in summary.rows}
    blend, vote = rows["equal weights"], rows["soft vote"]
    assert blend.score == blend.nested == accuracy(soft_vote(np.concatenate(stacks)), labels)
    assert (vote.score, vote.nested) == (blend.score, None)
    every = [np.load(tmp_path / m / "test_probabilities.npz")["probabilities"] for m in "ab"]
    voted = torch.from_numpy(np.mean(every, axis=(0, 1, 2), dtype=np.float64))
    expected = Temperature(summary.temperature, reads="probabilities")(voted)
    np.testing.assert_allclose(summary.test_probabilities, expected, atol=1e-6)
    with pytest.raises(ValueError, match="`views` must be one of 'selected', 'all', got 'none'"):
        summarise([tmp_path], views="none")  # type: ignore[arg-type]


def test_a_single_hold_out_of_one_model_is_enough(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, model="a", strengths=PLAIN, folds=1, test_rows=0)
    summary = summarise([tmp_path])
    assert [row.name for row in summary.rows] == [
        "a, seed 0",
        "selected weights",
        "selected weights, calibrated",
    ]
    assert summary.gain is None
    assert summary.weights.tolist() == [1.0]
    assert summary.rows[1].nested == pytest.approx(summary.rows[0].score)
    with pytest.raises(ValueError, match="no test predictions of a, seed 0, plain view"):
        summary.write_submission(tmp_path / "out.csv")
    make_run(tmp_path / "with", model="b", strengths=PLAIN, folds=1)
    assert summarise([tmp_path]).untested == ("a, seed 0, plain view",)


def test_a_model_that_is_too_sure_is_calibrated(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, model="a", strengths=PLAIN, temperature=0.25, rows=800)
    summary = summarise([tmp_path])
    assert summary.temperature > 2
    about = summary.calibration
    assert about.error_after < about.error_before / 2
    assert f"ECE {about.error_before:.4f} -> {about.error_after:.4f}" in summary.table()


def test_the_table_says_what_the_rows_hold(tmp_path: Path, make_run: Maker) -> None:
    for model in "ab":
        make_run(tmp_path / model, model=model, strengths=PLAIN)
    summary = summarise([tmp_path])
    lines = summary.table().splitlines()
    assert lines[0].startswith("macro_f1")
    for line, row in zip(lines[2:], summary.rows, strict=False):
        assert line.startswith(row.name)
        assert f"{row.score:.4f}" in line
        assert f"{row.low:.4f} - {row.high:.4f}" in line
        assert (f"{row.nested:.4f}" if row.nested is not None else row.name) in line
    assert any(line.startswith("offsets per class: macro-F1") for line in lines)


def test_the_ledger_of_all_runs_can_be_kept(tmp_path: Path, make_run: Maker) -> None:
    for model in "ab":
        make_run(tmp_path / "runs" / model, model=model, strengths=PLAIN)
    summarise([tmp_path / "runs"], merged=tmp_path / "merged")
    assert [member.model for member in OutOfFold(tmp_path / "merged").members()] == ["a", "b"]


def test_runs_that_do_not_fit_are_refused_by_name(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    with pytest.raises(FileNotFoundError, match=r"empty holds no ledger"):
        summarise([tmp_path / "a", tmp_path / "empty"])
    with pytest.raises(ValueError, match="at least one folder"):
        summarise([])
    make_run(tmp_path / "again", model="a", strengths={"plain": 0.5})
    with pytest.raises(ValueError, match=r"again.ledger does not fit .*with other numbers"):
        summarise([tmp_path / "a", tmp_path / "again"])
    with pytest.raises(ValueError, match="`metric` must be one of"):
        summarise([tmp_path / "a"], metric="f1")  # type: ignore[arg-type]


def test_members_without_test_predictions_leave_the_test_out(
    tmp_path: Path, make_run: Maker
) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    make_run(tmp_path / "b", model="b", strengths=PLAIN, test_rows=0)
    assert summarise([tmp_path]).test_probabilities is None


def test_offsets_that_help_reach_the_test_rows(tmp_path: Path, make_run: Maker) -> None:
    _, unseen = make_run(
        tmp_path, model="a", strengths=PLAIN, rows=2000, test_rows=4000, tilt=(1.5, 0, 0, -1)
    )
    summary = summarise([tmp_path])
    assert summary.bias is not None
    assert summary.bias.helps
    assert summary.test_predictions is not None
    assert summary.test_probabilities is not None
    without = macro_f1(summary.test_probabilities, unseen)
    found = macro_f1(np.eye(4)[summary.test_predictions], unseen)
    assert found > without + 0.05
    # Both are of thousands of rows: a standard error of about a point each.
    assert found == pytest.approx(summary.bias.nested, abs=0.03)
