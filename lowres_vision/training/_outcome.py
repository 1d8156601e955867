"""The outcome of finished runs: read from their folders, and written for all of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowres_vision._files import write_arrays, write_whole
from lowres_vision.data import Manifest
from lowres_vision.ensemble import Member
from lowres_vision.training._describe import commit, versions
from lowres_vision.training._result import CrossValidation
from lowres_vision.training._run import Arrays, Run, outcome


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
    names: Arrays = {
        "models": np.array([member.model for member in result.members]),
        "seeds": np.array([member.seed for member in result.members]),
        "views": np.array([member.view for member in result.members]),
    }
    arrays: Arrays = {"fold_of": result.fold_of, "labels": result.labels}
    arrays["probabilities"] = result.stack[0] if one else result.stack
    if test is not None and result.test_stack is not None:
        arrays["test_probabilities"] = result.test_stack[0] if one else result.test_stack
        ids, classes = np.array(test.ids), np.array(manifest.classes)
        predicted: Arrays = {"ids": ids, "classes": classes, "probabilities": result.test_stack}
        write_arrays(out / "test_probabilities.npz", {**names, **predicted})
    write_arrays(out / "out_of_fold.npz", arrays if one else {**arrays, **names})
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
