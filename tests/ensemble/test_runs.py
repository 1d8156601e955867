"""Runs of the same files and folds are merged, others joined by row id, or refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowres_vision.ensemble import OutOfFold, accuracy, select_ensemble, soft_vote, summarise

Maker = Callable[..., Any]
PLAIN = {"plain": 1.5}
ROWS = np.arange(400)
TEN = np.random.default_rng(3).permutation(400) % 10
OTHERWISE = {
    "files": {"data_hash": "9999", "shuffle": 1},
    "folds": {"fold_of": TEN, "shuffle": 2},
    "files and folds": {"data_hash": "9999", "fold_of": TEN},
}


def by_id(run: Path) -> np.ndarray:
    """Return the predictions in the order of the ids' numbers."""
    ledger = OutOfFold(run / "ledger")
    rows = dict(zip(ledger.ids, ledger.probabilities()[0], strict=True))
    return np.array([rows[f"row_{row:04d}"] for row in ROWS])


def unseen_by_id(run: Path) -> np.ndarray:
    with np.load(run / "test_probabilities.npz") as stored:
        rows = dict(zip(stored["ids"].tolist(), stored["probabilities"].mean((0, 1)), strict=True))
    return np.array([rows[f"test_{row}"] for row in range(60)])


@pytest.mark.parametrize("differ", OTHERWISE)
def test_runs_of_other_files_and_folds_are_joined_by_row_id(
    differ: str, tmp_path: Path, make_run: Maker
) -> None:
    runs = [tmp_path / model for model in "abc"]
    labels, unseen = make_run(runs[0], model="a", strengths=PLAIN)
    make_run(runs[1], model="b", strengths={"plain": 1.6}, **OTHERWISE[differ])
    make_run(runs[2], model="c", strengths={"plain": 1.4})  # merged with the first
    summary = summarise(runs, metric="accuracy")
    p, test = np.stack([*map(by_id, runs)]), np.stack([*map(unseen_by_id, runs)])
    rows = {row.name: row for row in summary.rows}
    for member, name in enumerate(("a, seed 0", "b, seed 0", "c, seed 0")):
        assert rows[name].score == pytest.approx((p[member].argmax(1) == labels).mean())
    expected = (p.astype(np.float64).mean(0).argmax(1) == labels).mean()
    assert rows["soft vote"].score == pytest.approx(expected)
    assert expected > rows["b, seed 0"].score  # in another order of rows it would be near chance

    nested = np.empty_like(p[0])
    fold_of = ROWS % 4  # those of the first run
    for fold in range(4):
        held = fold_of == fold
        chosen = select_ensemble(p[:, ~held], labels[~held], metric="accuracy", folds=0)
        nested[held] = soft_vote(p[:, held], weights=chosen.weights)
    assert rows["selected weights"].nested == pytest.approx(accuracy(nested, labels))

    voted = soft_vote(test, weights=summary.weights)
    assert summary.test_ids == tuple(f"test_{row}" for row in range(60))
    assert summary.test_predictions is not None
    np.testing.assert_array_equal(summary.test_predictions, voted.argmax(1))
    assert (summary.test_predictions == unseen).mean() > 0.5
    note = f"runs of different {differ}, joined by row id"
    assert [line for line in summary.table().splitlines() if line.startswith(note)]


def test_runs_that_are_alike_say_nothing_of_it(tmp_path: Path, make_run: Maker) -> None:
    for model in "ab":
        make_run(tmp_path / model, model=model, strengths=PLAIN)
    summary = summarise([tmp_path])
    assert summary.differ == ()
    assert "joined" not in summary.table()


def test_a_model_of_two_kinds_of_files_is_told_apart_by_its_folder(
    tmp_path: Path, make_run: Maker
) -> None:
    views = {"plain": 1.5, "flip": 1.5}
    make_run(tmp_path / "low", model="model", strengths=views)
    make_run(tmp_path / "span", model="model", strengths=PLAIN, data_hash="9999", noise=0.5)
    make_run(tmp_path / "low", model="vit", strengths=PLAIN)
    summary = summarise([tmp_path], metric="accuracy")
    low, span = tmp_path / "low", tmp_path / "span"
    assert summary.members == (f"model of {low}, seed 0", f"model of {span}, seed 0", "vit, seed 0")
    assert summary.views[1:] == (("plain",), ("plain",))
    rows = {row.name: row.score for row in summary.rows}
    labels = OutOfFold(span / "ledger").labels
    assert rows[summary.members[1]] == pytest.approx(accuracy(by_id(span), labels))


def test_nothing_is_gained_from_chance_whatever_the_folds(tmp_path: Path) -> None:
    """Models that learn labels without a meaning by heart, each with folds of its own."""
    random = np.random.default_rng(0)
    N, K = 600, 3
    labels = random.integers(0, K, N)
    ids = [f"row_{row}" for row in range(N)]
    for run in range(8):
        fold_of = random.permutation(N) % (3 + run)
        features = random.normal(size=(N, 4))
        distance = np.linalg.norm(features[:, None] - features, axis=2)
        ledger = OutOfFold.create(
            tmp_path / str(run) / "ledger", ids=ids, labels=labels, classes=["a", "b", "c"],
            fold_of=fold_of, data_hash="5d41",
        )  # fmt: skip
        for fold in range(3 + run):
            held = np.flatnonzero(fold_of == fold)
            known = np.flatnonzero(fold_of != fold)
            nearest = labels[known[distance[np.ix_(held, known)].argsort(axis=1)[:, :5]]]
            p = np.stack([(nearest == k).mean(axis=1) for k in range(K)], axis=1)
            ledger.add(
                p, ids=[ids[row] for row in held], model=f"model{run}", fold=fold,
                classes=["a", "b", "c"], data_hash="5d41", fold_hash=ledger.fold_hash,
                checkpoint_hash=f"{run} {fold}",
            )  # fmt: skip
    summary = summarise([tmp_path], metric="accuracy")
    chosen = next(row for row in summary.rows if row.name == "selected weights")
    assert chosen.nested is not None
    error = np.sqrt(1 / K * (1 - 1 / K) / N)
    assert abs(chosen.nested - 1 / K) < 3 * error
    assert chosen.score > chosen.nested + error


def change_rows(run: Path, **columns: Any) -> None:
    """Write the ledger of ``run`` anew with other columns and the same numbers."""
    old = OutOfFold(run / "ledger")
    given = {"ids": old.ids, "labels": old.labels, "classes": old.classes, "fold_of": old.fold_of}
    new = OutOfFold.create(run / "new", data_hash="9999", **{**given, **columns})
    for fold in range(int(new.fold_of.max()) + 1):
        held = new.fold_of == fold
        new.add(
            np.full((held.sum(), len(new.classes)), 1 / len(new.classes)),
            ids=np.array(new.ids)[held].tolist(), model="b", fold=fold, classes=new.classes,
            data_hash="9999", fold_hash=new.fold_hash, checkpoint_hash=f"new {fold}",
        )  # fmt: skip
    (run / "ledger").rename(run.with_name("gone"))
    (run / "new").rename(run / "ledger")


NAMES = np.array([f"row_{row:04d}" for row in ROWS])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"ids": np.append(NAMES[:-1], "row_x").tolist()},
            "it lacks 1 rows, the first is 'row_0399'",
        ),
        (
            {"ids": [*NAMES, "row_x"], "labels": np.arange(401) % 4, "fold_of": np.arange(401) % 4},
            "it has 1 rows more, the first is 'row_x'",
        ),
        ({"classes": ("Finch", "Kite", "Wren", "Tit")}, "`classes` are in another order: place 2"),
        ({"classes": ("Finch", "Kite", "Tit", "Owl")}, r"`classes` are other .*\['Owl', 'Wren'\]"),
        ({"labels": np.zeros(400, dtype=int)}, r"it labels 'row_000.' 'Finch', not '\w+' \("),
    ],
)
def test_runs_of_other_rows_labels_or_classes_are_refused(
    columns: dict[str, Any], words: str, tmp_path: Path, make_run: Maker
) -> None:
    for model in "ab":
        make_run(tmp_path / model, model=model, strengths=PLAIN)
    change_rows(tmp_path / "b", **columns)
    with pytest.raises(ValueError, match=rf"b.ledger does not fit .*a.ledger: {words}"):
        summarise([tmp_path / "a", tmp_path / "b"])


def test_what_is_of_other_files_must_be_complete(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    make_run(tmp_path / "b", model="b", strengths=PLAIN, data_hash="9999")
    for file in (tmp_path / "b/ledger/entries").glob("*fold2*"):
        file.unlink()
    with pytest.raises(ValueError, match="'b', seed 0, view 'plain' has no predictions for fold 2"):
        summarise([tmp_path])


def test_weights_that_stand_under_two_foldings_are_refused(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    make_run(tmp_path / "b", model="b", strengths=PLAIN)
    old = OutOfFold(tmp_path / "a/ledger")
    new = OutOfFold.create(
        tmp_path / "c/ledger", ids=old.ids, labels=old.labels, classes=old.classes,
        fold_of=1 - old.fold_of % 2, data_hash="5d41",
    )  # fmt: skip
    entry = next((tmp_path / "a/ledger/entries").glob("*fold1*.json")).read_text()
    for fold in range(2):
        held = new.fold_of == fold
        new.add(
            np.full((held.sum(), 4), 0.25), ids=np.array(new.ids)[held].tolist(), model="c",
            fold=fold, classes=new.classes, data_hash="5d41", fold_hash=new.fold_hash,
            checkpoint_hash="new" if fold else entry.split('"checkpoint_hash": "')[1].split('"')[0],
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"c.ledger does not fit .*a.ledger: 1 checkpoints are in"):
        summarise([tmp_path])


def test_runs_that_differ_have_no_ledger_in_common(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    make_run(tmp_path / "b", model="b", strengths=PLAIN, **OTHERWISE["files and folds"])
    with pytest.raises(ValueError, match=r"`merged` is one ledger.* of different files and folds;"):
        summarise([tmp_path], merged=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"ids": np.array([f"other_{row}" for row in range(60)])},
            "other test rows than those before: 120 stand in one alone, the first is 'other_0'",
        ),
        ({"ids": np.array([f"test_{row % 59}" for row in range(60)])}, "has an id more than once"),
        ({"classes": np.array(["Tit", "Kite", "Finch", "Wren"])}, "other classes"),
    ],
)
def test_test_predictions_that_do_not_fit_are_refused(
    change: dict[str, np.ndarray], words: str, tmp_path: Path, make_run: Maker
) -> None:
    for model in "ab":
        make_run(tmp_path / model, model=model, strengths=PLAIN)
    file = tmp_path / "b" / "test_probabilities.npz"
    with np.load(file) as arrays:
        changed = {**arrays, **change}
    np.savez(file, **changed)
    with pytest.raises(ValueError, match=words):
        summarise([tmp_path])


@pytest.mark.parametrize("data_hash", ["5d41", "9999"])
def test_a_run_that_has_nothing_yet_is_named(
    data_hash: str, tmp_path: Path, make_run: Maker
) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    old = OutOfFold(tmp_path / "a/ledger")
    OutOfFold.create(
        tmp_path / "b/ledger", ids=old.ids, labels=old.labels, classes=old.classes,
        fold_of=old.fold_of, data_hash=data_hash,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"b.ledger has no entries yet; finish the run"):
        summarise([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "lacking"])
def test_damaged_test_predictions_are_named(damage: str, tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    file = tmp_path / "a" / "test_probabilities.npz"
    if damage == "lacking":
        with np.load(file) as arrays:
            np.savez(file, **{name: arrays[name] for name in arrays if name != "views"})
    else:
        whole = file.read_bytes()
        file.write_bytes({"cut off": whole[:-100], "empty": b"", "text": b"none"}[damage])
    with pytest.raises(ValueError, match=r"a.test_probabilities\.npz is damaged .*; delete it"):
        summarise([tmp_path])


def test_test_predictions_that_are_no_probabilities_are_named(
    tmp_path: Path, make_run: Maker
) -> None:
    make_run(tmp_path / "a", model="a", strengths=PLAIN)
    file = tmp_path / "a" / "test_probabilities.npz"
    with np.load(file) as arrays:
        changed = {**arrays}
    changed["probabilities"][0, 1, 3] = np.nan
    np.savez(file, **changed)
    with pytest.raises(ValueError, match=r"test_probabilities\.npz` must be finite"):
        summarise([tmp_path])
