"""The outcome of finished runs: read from their folders, and written for all of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_arrays, write_whole
from lowres_vision.data import Manifest
from lowres_vision.ensemble import Member, OutOfFold
from lowres_vision.ensemble._runs import TEST_FILE, read_test
from lowres_vision.training._describe import commit, versions
from lowres_vision.training._result import CrossValidation, Floats
from lowres_vision.training._run import Arrays, Run, outcome

_MEMBER = ("models", "seeds", "views")


def collect(
    runs: Sequence[Run], manifest: Manifest, fold_of: npt.NDArray[np.int64]
) -> CrossValidation:
    """Put the runs' predictions together, read from their folders."""
    folds = int(fold_of.max()) + 1
    members = tuple(Member(run.model, run.seed, "plain") for run in runs[::folds])
    shape = (len(members), len(manifest), len(manifest.classes))
    stack = np.full(shape, np.nan, dtype=np.float32)
    tests, epochs, seconds = [], [], 0.0
    for number, run in enumerate(runs):
        book, arrays = outcome(run)
        stack[number // folds, arrays["rows"]] = arrays["probabilities"]
        epochs.append(int(book["best_epoch"]))
        seconds += book["seconds"]
        if run.test is not None:
            tests.append(arrays["test"])
    return CrossValidation(
        members=members,
        labels=manifest.labels,
        fold_of=fold_of,
        stack=stack,
        test_stack=np.stack(tests).reshape(len(members), folds, *tests[0].shape) if tests else None,
        epochs=tuple(tuple(epochs[i : i + folds]) for i in range(0, len(epochs), folds)),
        seconds=seconds,
    )


def save(
    result: CrossValidation,
    manifest: Manifest,
    test: Manifest | None,
    data: Mapping[str, Any],
    out: Path,
) -> None:
    """Write what all runs learned into ``out``, with the settings ``data`` they share."""
    one = len(result.members) == 1
    arrays: Arrays = {"fold_of": result.fold_of, "labels": result.labels}
    arrays["probabilities"] = result.stack[0] if one else result.stack
    if test is not None and result.test_stack is not None:
        arrays["test_probabilities"] = result.test_stack[0] if one else result.test_stack
        predicted = dict(zip(result.members, result.test_stack, strict=True))
        write_tests(out, predicted, ids=test.ids, classes=manifest.classes)
    named = {} if one else _by_column(result.members)
    write_arrays(out / "out_of_fold.npz", {**arrays, **named})
    scores = [
        {
            "model": member.model,
            "seed": member.seed,
            "accuracy": alone.accuracy,
            "macro_f1": alone.macro_f1,
            "accuracy_by_fold": alone.accuracy_by_fold,
            "best_epochs": alone.best_epochs,
        }
        for member in result.members
        for alone in [result.of(member.model, seed=member.seed)]
    ]
    summary = {
        **(scores[0] if one else {"members": scores}),
        "seconds": round(result.seconds, 1),
        **data,
        "versions": versions(),
        "commit": commit(),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "summary.json", text.encode())


def write_tests(
    out: Path, tests: Mapping[Member, Floats], *, ids: Sequence[str], classes: Sequence[str]
) -> None:
    """Write ``(folds, M, K)`` predictions of the test rows beside those of the other members.

    Views are predicted after their runs, and a call may be of some seeds alone. What is no member
    of the ledger in ``out``, or of other rows, goes.
    """
    every: dict[Member, Floats] = {}
    if (out / TEST_FILE).is_file():
        *rows, there = read_test(out / TEST_FILE)
        if rows == [tuple(ids), tuple(classes)]:
            known = set(OutOfFold(out / "ledger").members())
            every = {member: there[member] for member in there if member in known}
    every |= tests
    arrays = {**_by_column(every), "ids": np.array(ids), "classes": np.array(classes)}
    write_arrays(out / TEST_FILE, {**arrays, "probabilities": np.stack([*every.values()])})


def read_tests(out: Path, test: Manifest) -> dict[Member, Floats]:
    """Return each member's ``(folds, M, K)`` predictions of the rows of ``test``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are of other rows, or in another order.
    """
    file = out / TEST_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; give `test` to cross_validate first")
    ids, _, found = read_test(file)
    if ids != test.ids:
        raise ValueError(
            f"`test` must have the rows that {file} is of, in their order, got {len(test)} rows of "
            f"{test.source}, and there are {len(ids)}"
        )
    return found


def _by_column(members: Iterable[Member]) -> Arrays:
    columns = zip(*members, strict=True)
    return {name: np.array(values) for name, values in zip(_MEMBER, columns, strict=True)}
