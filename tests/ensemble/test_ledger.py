import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowres_vision.ensemble import Member, OutOfFold, select_ensemble

IDS = [f"bird_{row:02d}" for row in range(12)]
LABELS = np.arange(12) % 3
CLASSES = ["Finch", "Tit", "Wren"]
FOLD_OF = np.arange(12) // 2 % 3
DATA = "5d41402a"


def make(folder: Path, **changes: Any) -> OutOfFold:
    rows = {"ids": IDS, "labels": LABELS, "classes": CLASSES, "fold_of": FOLD_OF}
    return OutOfFold.create(folder, **{**rows, "data_hash": DATA, **changes})


def entry(ledger: OutOfFold, fold: int, **changes: Any) -> dict[str, Any]:
    """Return arguments of ``add`` that fit, but for ``changes``."""
    rows = np.flatnonzero(fold == FOLD_OF)
    random = np.random.default_rng([fold, *map(ord, str(changes.get("model", "")))])
    return {
        "probabilities": random.dirichlet(np.ones(3), size=len(rows)).astype(np.float32),
        "ids": [IDS[row] for row in rows],
        "model": "resnet18",
        "fold": fold,
        "classes": CLASSES,
        "data_hash": DATA,
        "fold_hash": ledger.fold_hash,
        "checkpoint_hash": f"{changes.get('model', 'resnet18')}-{changes.get('seed', 0)}-{fold}",
        **changes,
    }


def fill(ledger: OutOfFold, **changes: Any) -> OutOfFold:
    for fold in range(3):
        ledger.add(**entry(ledger, fold, **changes))
    return ledger


def test_what_was_added_is_read_in_the_order_of_the_rows(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    for fold in (2, 0, 1):
        ledger.add(**entry(ledger, fold))
    fill(ledger, model="vit/tiny", seed=3, view="flip")
    again = OutOfFold(tmp_path)
    assert again.members() == [Member("resnet18", 0, "plain"), Member("vit/tiny", 3, "flip")]
    stack = again.probabilities()
    assert stack.shape == (2, 12, 3)
    assert stack.dtype == np.float32
    for fold in range(3):
        expected = entry(ledger, fold)["probabilities"]
        np.testing.assert_array_equal(stack[0, fold == FOLD_OF], expected)
    np.testing.assert_array_equal(again.probabilities([("vit/tiny", 3, "flip")])[0], stack[1])  # type: ignore[list-item]
    assert again.ids == tuple(IDS)
    assert again.classes == tuple(CLASSES)
    np.testing.assert_array_equal(again.labels, LABELS)
    select_ensemble(stack, again.labels, folds=again.fold_of)


Fault = Callable[[OutOfFold], Any]


def add(**changes: Any) -> Fault:
    return lambda ledger: ledger.add(**{**entry(ledger, 0), **changes})


def add_values(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def plant(ledger: OutOfFold) -> None:
        values = entry(ledger, 0)["probabilities"].astype(np.float64)
        ledger.add(**entry(ledger, 0, probabilities=change(values)))

    return plant


def add_ids(change: Callable[[list[str]], list[str]]) -> Fault:
    return lambda ledger: ledger.add(**entry(ledger, 0, ids=change(entry(ledger, 0)["ids"])))


def first_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[0, 0] = value
        return values

    return change


def add_without_a_fold(ledger: OutOfFold) -> None:
    ledger.add(**entry(ledger, 0))
    ledger.add(**entry(ledger, 2))
    ledger.probabilities()


def add_twice(**changes: Any) -> Fault:
    def plant(ledger: OutOfFold) -> None:
        ledger.add(**entry(ledger, 0))
        ledger.add(**entry(ledger, **{"fold": 0, **changes}))

    return plant


def merge_other(**changes: Any) -> Fault:
    def plant(ledger: OutOfFold) -> None:
        other = make(ledger.folder / "other", **changes)
        ledger.merge(other.folder)

    return plant


def change_a_file(ledger: OutOfFold) -> None:
    fill(ledger)
    path = sorted((ledger.folder / "entries").glob("*.npz"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    OutOfFold(ledger.folder).probabilities()


def cut_a_file(ledger: OutOfFold) -> None:
    fill(ledger)
    path = sorted((ledger.folder / "entries").glob("*.npz"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    OutOfFold(ledger.folder).probabilities()


def copy_an_entry_from_another_ledger(ledger: OutOfFold) -> None:
    other = make(ledger.folder / "other", data_hash="another")
    other.add(**entry(other, 0, data_hash="another"))
    for path in (other.folder / "entries").iterdir():
        (ledger.folder / "entries" / path.name).write_bytes(path.read_bytes())
    ledger.probabilities()


def rename_an_entry(ledger: OutOfFold) -> None:
    fill(ledger)
    path = sorted((ledger.folder / "entries").glob("*.json"))[0]
    about = {**json.loads(path.read_text()), "fold": 1}
    path.write_text(json.dumps(about))
    ledger.probabilities()


FAULTS: dict[str, tuple[Fault, str]] = {
    "shuffled rows": (add_ids(lambda ids: ids[::-1]), "`ids` are in another order: place 0 has"),
    "duplicate id": (add_ids(lambda ids: [*ids[:-1], ids[0]]), "'bird_00'.* stand more than once"),
    "missing row": (add_ids(lambda ids: ids[1:]), "lacks 1 rows of fold 0, .* 'bird_00'"),
    "unknown row": (add_ids(lambda ids: ["bird_99", *ids[1:]]), "unknown to the ledger.*bird_99"),
    "leaked row": (
        add_ids(lambda ids: ["bird_02", *ids[1:]]),
        "leak: 'bird_02' is held out by fold 1, so the checkpoint of fold 0 was trained on it",
    ),
    "leaked fold": (add(fold=1), "leak: 'bird_00' is held out by fold 0"),
    "unknown fold": (add(fold=7), r"`fold` must be in 0..2, got 7"),
    "missing fold": (add_without_a_fold, "'resnet18', seed 0.* no predictions for fold 1"),
    "one checkpoint for two folds": (
        add_twice(fold=1, checkpoint_hash="resnet18-0-0"),
        "the same weights cannot be .* fold 1 too",
    ),
    "one checkpoint under two names": (
        add_twice(model="resnet34", checkpoint_hash="resnet18-0-0"),
        "a model counted twice",
    ),
    "view of other weights": (
        add_twice(view="flip", checkpoint_hash="another"),
        "is not that of 'resnet18'.*all views of one model, seed and fold must be of the same",
    ),
    "second prediction": (
        add_twice(probabilities=np.full((4, 3), 1 / 3)),
        "is in the ledger with other numbers",
    ),
    "no checkpoint": (add(checkpoint_hash=""), "`checkpoint_hash` must name the weights"),
    "other class order": (
        add(classes=["Tit", "Finch", "Wren"]),
        "`classes` are in another order: place 0 has 'Tit', the ledger 'Finch'",
    ),
    "other classes": (add(classes=["Finch", "Tit", "Robin"]), "other classes.*'Robin', 'Wren'"),
    "other data": (add(data_hash="another"), "`data_hash` is of another data set: 'another'"),
    "other folds": (add(fold_hash="another"), "of other folds.*has seen rows that the ledger"),
    "sums": (add_values(lambda p: p * 0.9), "row 0 sums to 0.9000"),
    "NaN": (add_values(first_to(np.nan)), "must be finite"),
    "infinity": (add_values(first_to(np.inf)), "must be finite"),
    "logits": (add_values(np.log), "are these logits"),
    "negative": (add_values(first_to(-0.1)), r"in \[0, 1\]"),
    "class indices": (add(probabilities=np.zeros(4)), r"must be \(rows, classes\)"),
    "too few columns": (add(probabilities=np.full((4, 2), 0.5)), r"must be \(4, 3\)"),
    "too few rows": (add(probabilities=np.full((3, 3), 1 / 3)), r"must be \(4, 3\), one row per"),
    "merge of other data": (merge_other(data_hash="x"), "of another data set: 'x'"),
    "merge of other folds": (merge_other(fold_of=FOLD_OF[::-1]), "of other folds"),
    "merge of other classes": (merge_other(classes=CLASSES[::-1]), "in another order"),
    "merge of other labels": (merge_other(labels=LABELS[::-1]), "for other labels"),
    "flipped bit": (change_a_file, "is damaged or was changed"),
    "cut file": (cut_a_file, "is damaged or was changed"),
    "foreign entry": (copy_an_entry_from_another_ledger, "does not belong to this ledger.*another"),
    "edited entry": (rename_an_entry, "is named as another entry"),
}


@pytest.mark.parametrize(("plant", "words"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_refused_in_the_right_words(
    plant: Fault, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        plant(make(tmp_path))


def test_a_refused_entry_leaves_no_file(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    with pytest.raises(ValueError, match="are these logits"):
        ledger.add(**entry(ledger, 0, probabilities=np.full((4, 3), 2.0)))
    assert not list((tmp_path / "entries").iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": [IDS[0], *IDS[:-1]]}, "`ids` must be unique"),
        ({"classes": ["Finch", "Finch", "Tit"]}, "`classes` must be unique"),
        ({"labels": LABELS + 1}, r"must be class indices in 0..2, got 1..3"),
        ({"labels": LABELS[:-1]}, r"`labels` must be \(12,\)"),
        ({"fold_of": FOLD_OF[:-1]}, "`fold_of` must give each of the 12 rows"),
        ({"fold_of": FOLD_OF * 2}, "none empty"),
        ({"fold_of": FOLD_OF - 1}, "a fold from 0 up"),
    ],
)
def test_a_ledger_of_rows_that_do_not_fit_is_not_made(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "ledger", **changes)
    assert not (tmp_path / "ledger").exists()


def test_a_hold_out_is_a_ledger_of_one_fold(tmp_path: Path) -> None:
    ledger = make(tmp_path, fold_of=FOLD_OF * 0)
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=12)
    ledger.add(**entry(ledger, 0, probabilities=p, ids=IDS))
    np.testing.assert_array_equal(ledger.probabilities()[0], p.astype(np.float32))


def test_creating_again_opens_and_another_is_refused(tmp_path: Path) -> None:
    fill(make(tmp_path))
    assert make(tmp_path).probabilities().shape == (1, 12, 3)
    with pytest.raises(ValueError, match="other labels"):
        make(tmp_path, labels=LABELS[::-1])
    with pytest.raises(ValueError, match="other folds"):
        make(tmp_path, fold_of=FOLD_OF[::-1])


def test_adding_the_same_again_changes_nothing(tmp_path: Path) -> None:
    ledger = fill(make(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "entries").iterdir()}
    fill(ledger)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "entries").iterdir()}
    assert len(files) == 6


def test_ledgers_of_two_machines_merge(tmp_path: Path) -> None:
    whole = fill(fill(make(tmp_path / "whole")), model="vit")
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    first.add(**entry(first, 0))
    for fold in (0, 1, 2):
        second.add(**entry(second, fold))
    fill(second, model="vit")
    assert first.merge(second.folder) == 5
    assert first.merge(second) == 0
    np.testing.assert_array_equal(first.probabilities(), whole.probabilities())


def test_ledgers_that_disagree_on_an_entry_do_not_merge(tmp_path: Path) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    first.add(**entry(first, 0))
    second.add(**entry(second, 0, probabilities=np.full((4, 3), 1 / 3)))
    with pytest.raises(ValueError, match="with other numbers"):
        first.merge(second)


def test_a_write_that_was_cut_off_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at every rename and sync in turn: the entry is there whole, or not at all."""
    whole = fill(make(tmp_path / "whole")).probabilities()
    for step in range(5):  # sync, rename and sync of the folder; the JSON counts from its rename
        ledger = make(tmp_path / str(step))
        ledger.add(**entry(ledger, 0))
        calls = 0

        def failing(real: Callable[..., Any], step: int = step) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step + 1:
                    raise OSError("no space left on device")
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(Path, "replace", failing(Path.replace))
            with pytest.raises(OSError, match="no space left"):
                ledger.add(**entry(ledger, 1))
        reopened = OutOfFold(ledger.folder)
        with pytest.raises(ValueError, match="no predictions for fold 1, 2"):
            reopened.probabilities()
        np.testing.assert_array_equal(fill(reopened).probabilities(), whole)


def test_no_code_is_run_from_a_ledger(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    ledger = fill(make(tmp_path / "ledger"))
    header = pickle.dumps(np.array([Payload()], dtype=object))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("probabilities.npy", buffer.getvalue() + header)
    path = sorted((ledger.folder / "entries").glob("*.npz"))[0]
    path.write_bytes(archive.getvalue())
    about = json.loads(path.with_suffix(".json").read_text())
    about["sha256"] = hashlib.sha256(archive.getvalue()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="no archive of plain arrays"):
        ledger.probabilities()
    assert not (tmp_path / "ran").exists()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no ledger"):
        OutOfFold(tmp_path)
    ledger = make(tmp_path)
    with pytest.raises(ValueError, match="has no entries yet"):
        ledger.probabilities()
    header = tmp_path / "ledger.json"
    text = header.read_text()
    header.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has format 2, this reads 1"):
        OutOfFold(tmp_path)
    header.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="is damaged: it is no JSON object"):
        OutOfFold(tmp_path)


def test_a_merge_reads_each_entry_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten models of ten views and five folds, reading all anew for each is 250,000 files."""
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    for model in ("a", "b", "c", "d"):
        fill(first if model < "c" else second, model=model)
    reads = 0
    read_text = Path.read_text

    def counted(path: Path, *args: Any, **options: Any) -> str:
        nonlocal reads
        reads += 1
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    assert first.merge(second) == 6
    assert reads == 12


@pytest.mark.parametrize("name", ["classes", "data_hash", "fold_hash", "rows_sha256"])
def test_a_header_that_lacks_something_is_damaged(name: str, tmp_path: Path) -> None:
    OutOfFold.create(
        tmp_path, ids=["a", "b"], labels=[0, 1], classes=["x", "y"], fold_of=[0, 1], data_hash="5d"
    )
    header = tmp_path / "ledger.json"
    about = json.loads(header.read_text(encoding="utf-8"))
    del about[name]
    header.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"ledger\.json is damaged: it lacks {name}"):
        OutOfFold(tmp_path)
