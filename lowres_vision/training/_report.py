"""One page about a cross-validation, written from its folder."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from lowres_vision._files import write_whole
from lowres_vision.data import Manifest, MultiResolutionDataset
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._html import heading, lines, page, paragraph, picture, table
from lowres_vision.training._loggers import flat
from lowres_vision.training._teacher import Fold, call_build
from lowres_vision.training._weights import load_weights

_RESIZED = 6  # images in the resizer's panel


def write_report(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    manifest: Manifest | None = None,
    build: Callable[..., Classifier] | None = None,
    worst: int = 24,
) -> Path:
    """Write one self-contained HTML page about a cross-validation.

    It holds the scores, learning curves, the confusion matrix, precision, recall and F1 of each
    class, what the runs used of the machine and died of, settings and versions. With the data's
    rows, also the worst errors; with the function that built the classifiers, what a learned
    resizer makes of images. It needs no network and runs no scripts; needs matplotlib, the ``plot``
    extra. The command does the same::

        python -m lowres_vision.training report RUN --csv train.csv --build train.py:build

    Where there are several models or seeds, the details are those of the best by macro-F1, chosen
    on the very rows that it is then shown on.

    Args:
        run: Folder written by :func:`cross_validate`, all runs of it done.
        path: The page; default ``report.html`` in ``run``.
        manifest: The rows that were trained on, for their images.
        build: What ``cross_validate`` was given for that model, for its resizer.
        worst: Most errors shown.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If ``run`` holds no finished cross-validation.
        ValueError: If ``manifest`` has other rows than the run.

    Example:
        >>> write_report("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: `run` nowhere has no summary.json; is the cross-validation finished?
    """
    run = Path(run)
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(
            f"`run` {run} has no summary.json; is the cross-validation finished?"
        )
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if manifest is not None and manifest.digest() != summary["data_sha256"]:
        raise ValueError(
            f"`manifest` {manifest.source} has other rows than {run} was trained on; give the same "
            f"CSV, unchanged, or leave it out"
        )
    found = _Found(run, summary)
    parts = [
        *_scores(found),
        *_curves(found),
        *_confusion(found),
        *_errors(found, manifest, worst),
        *_resizer(found, manifest, build),
        *_usage(found),
        *_made_of(found),
    ]
    path = Path(path) if path is not None else run / "report.html"
    write_whole(path, page(f"Cross-validation {run.absolute().name}", parts).encode())
    return path


class _Found:
    """What the folder holds, and the member whose details are shown."""

    def __init__(self, run: Path, summary: dict[str, Any]) -> None:
        self.run, self.summary = run, summary
        self.classes: list[str] = summary["classes"]
        members = summary.get("members", [summary])
        best = max(range(len(members)), key=lambda number: members[number]["macro_f1"])
        self.members, self.member = members, members[best]
        with np.load(run / "out_of_fold.npz", allow_pickle=False) as arrays:
            self.fold_of = arrays["fold_of"]
            probabilities = arrays["probabilities"]
            self.rows = np.flatnonzero(self.fold_of >= 0)
            self.targets = arrays["labels"][self.rows]
        if probabilities.ndim == 3:
            probabilities = probabilities[best]
        self.probabilities = probabilities[self.rows]
        self.predicted = self.probabilities.argmax(axis=1)

    def folders(self) -> list[Path]:
        """Return the folders of all runs."""
        return sorted(file.parent for file in self.run.rglob("fold_*/run.json"))

    def folder(self) -> Path:
        """Return the folder of the shown member's first fold."""
        for folder in self.folders():
            made_of = json.loads((folder / "run.json").read_text(encoding="utf-8"))["made_of"]
            if (made_of["model"], made_of["seed"], made_of["fold"]) == (
                self.member["model"],
                self.member["seed"],
                0,
            ):
                return folder
        raise FileNotFoundError(f"{self.run} has no run of {self.member['model']}, fold 0")


def _scores(found: _Found) -> Iterator[str]:
    yield heading("Scores")
    yield paragraph(
        f"On {len(found.rows)} rows of {len(found.classes)} classes, each predicted by a model "
        f"that had not seen it. The epoch was chosen on the same rows, so the scores are a little "
        f"optimistic."
    )
    yield table(
        ("model", "seed", "accuracy", "macro-F1", "accuracy by fold", "best epochs, from 0"),
        [
            (
                member["model"],
                member["seed"],
                float(member["accuracy"]),
                float(member["macro_f1"]),
                ", ".join(f"{value:.3f}" for value in member["accuracy_by_fold"]),
                ", ".join(map(str, member["best_epochs"])),
            )
            for member in found.members
        ],
    )
    if len(found.members) > 1:
        yield paragraph(
            f"Below: {found.member['model']}, seed {found.member['seed']}, the best of "
            f"{len(found.members)} by macro-F1 on these rows."
        )


def _curves(found: _Found) -> Iterator[str]:
    from lowres_vision import plots

    yield heading("Learning curves")
    yield picture(plots.learning_curves(found.run), "loss, accuracy and macro-F1 by epoch")


def _confusion(found: _Found) -> Iterator[str]:
    from lowres_vision import plots

    yield heading("Confusion")
    figure = plots.confusion_matrix(found.targets, found.predicted, found.classes)
    yield picture(figure, "confusion matrix of the out-of-fold predictions")
    yield heading("By class")
    accuracy = accuracy_score(found.targets, found.predicted)
    macro = f1_score(found.targets, found.predicted, average="macro")
    yield paragraph(f"The weakest first. Accuracy {accuracy:.4f}, macro-F1 {macro:.4f}.")
    scores = precision_recall_fscore_support(
        found.targets, found.predicted, labels=range(len(found.classes)), zero_division=0.0
    )
    rows = [
        (number, name, int(count), float(precision), float(recall), float(f1))
        for number, (name, precision, recall, f1, count) in enumerate(
            zip(found.classes, *scores, strict=True)
        )
    ]
    head = ("no.", "class", "rows", "precision", "recall", "F1")
    yield table(head, sorted(rows, key=lambda row: (row[-1], row[0])), bars=True)


def _errors(found: _Found, manifest: Manifest | None, worst: int) -> Iterator[str]:
    wrong = np.flatnonzero(found.predicted != found.targets)
    surety = found.probabilities[wrong, found.predicted[wrong]]
    shown = wrong[np.argsort(-surety, kind="stable")][:worst]
    yield heading("Worst errors")
    if not len(shown):
        yield paragraph("There are none.")
        return
    yield paragraph(
        f"{len(shown)} of {len(wrong)}, the surest first. A wrong label in the data looks like "
        f"this, too."
    )
    if manifest is not None:
        from lowres_vision import plots

        resolution = found.summary["settings"]["held_out_resolution"]
        images = _images(manifest, found.rows[shown], resolution)
        figure = plots.prediction_grid(
            images,
            found.probabilities[shown],
            found.classes,
            targets=found.targets[shown],
            rows=found.rows[shown].tolist(),
        )
        yield picture(figure, "images that were predicted wrongly, with what was predicted")
    yield table(
        ("row", "id", "true", "predicted", "probability", "of the true class"),
        [
            (
                int(found.rows[index]),
                "" if manifest is None else manifest.ids[found.rows[index]],
                found.classes[found.targets[index]],
                found.classes[found.predicted[index]],
                float(found.probabilities[index].max()),
                float(found.probabilities[index, found.targets[index]]),
            )
            for index in shown
        ],
    )


def _resizer(
    found: _Found, manifest: Manifest | None, build: Callable[..., Classifier] | None
) -> Iterator[str]:
    if manifest is None or build is None:
        return
    held_out = np.flatnonzero(found.fold_of == 0)
    classifier = call_build(build, Fold(0, held_out, manifest.digest()))
    model: Any = classifier.scored_model
    if getattr(model, "resizer", None) is None:
        return
    from lowres_vision import plots

    load_weights(model, found.folder() / "best.safetensors")
    classifier.eval()
    rows = held_out[np.linspace(0, len(held_out) - 1, min(_RESIZED, len(held_out))).astype(int)]
    images: Any = _images(manifest, rows, found.summary["settings"]["held_out_resolution"])
    transform: Any = classifier.transform
    with torch.no_grad():
        read = torch.stack(images).float() if transform is None else transform(images)
        learned = model.resizer(read)
        bilinear = F.interpolate(
            read, learned.shape[-2:], mode="bilinear", align_corners=False, antialias=True
        )
    mean, std = (getattr(transform, name, None) for name in ("mean", "std"))
    yield heading("Resizer")
    yield paragraph(
        f"Held-out images at {read.shape[-2]} x {read.shape[-1]} px, enlarged to "
        f"{learned.shape[-2]} x {learned.shape[-1]} px for the backbone of fold 0."
    )
    figure = plots.resizer_panel(bilinear, learned, mean=mean, std=std)
    yield picture(figure, "images enlarged bilinearly and by the learned resizer")


def _images(manifest: Manifest, rows: Any, resolution: Any) -> list[torch.Tensor]:
    samples = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
    return [samples[index].image for index in range(len(samples))]  # type: ignore[union-attr]


def _usage(found: _Found) -> Iterator[str]:
    yield heading("Runs")
    rows, errors = [], []
    for folder in found.folders():
        name = str(folder.relative_to(found.run))
        epochs = _read(folder / "usage.csv")
        rows.append(
            (
                name,
                len(epochs),
                round(sum(_numbers(epochs, "seconds"))),
                f"{np.mean(_numbers(epochs, 'cpus') or [0]):.1f}",
                max(map(int, _numbers(epochs, "memory_mib")), default=None),
                max(map(int, _numbers(epochs, "gpu_memory_mib")), default=None),
            )
        )
        if (folder / "errors.txt").is_file():
            errors.append((name, (folder / "errors.txt").read_text(encoding="utf-8")))
    head = ("run", "epochs", "seconds", "CPUs busy", "most memory, MiB", "on the GPU, MiB")
    yield table(head, rows)
    for name, words in errors:
        yield paragraph(f"{name} was interrupted; its last words:")
        yield lines(words[-3000:])


def _made_of(found: _Found) -> Iterator[str]:
    book = json.loads((found.folder() / "run.json").read_text(encoding="utf-8"))
    made_of = {name: value for name, value in book["made_of"].items() if name != "classes"}
    yield heading("Settings")
    words = [
        (name, "none" if value is None else str(value)) for name, value in flat(made_of).items()
    ]
    yield table(("setting", "value"), words)
    yield heading("Versions")
    yield table(("of", "is"), [("commit", book.get("commit")), *book["versions"].items()])


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _numbers(rows: Sequence[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name)]
