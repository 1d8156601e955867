"""The sections of the page about a cross-validation."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support

from lowres_vision.data import Manifest, MultiResolutionDataset
from lowres_vision.ensemble import Member, accuracy, macro_f1, soft_vote
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._html import heading, lines, paragraph, picture, table
from lowres_vision.training._loggers import flat
from lowres_vision.training._outcome import read_tests
from lowres_vision.training._teacher import Fold, call_build
from lowres_vision.training._weights import load_weights

_RESIZED = 6  # images in the resizer's panel


class Found:
    """What the folder holds, and the member whose details are shown."""

    def __init__(self, run: Path, summary: dict[str, Any], pictures: Path | None) -> None:
        self.run, self.summary, self.pictures = run, summary, pictures
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

    def picture(self, figure: Any, name: str, description: str) -> str:
        """Return a figure as a part of the page, and write it to a file where that is wanted."""
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.pictures / f"{name}.png", dpi=120)
        return picture(figure, description)

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


def scores(found: Found) -> Iterator[str]:
    """Yield what the runs reached."""
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


def curves(found: Found) -> Iterator[str]:
    """Yield how they got there."""
    from lowres_vision import plots

    yield heading("Learning curves")
    if not any(found.run.rglob("fold_*/metrics.csv")):
        yield paragraph("No run has a metrics.csv, which logger='csv' writes.")
        return
    figure = plots.learning_curves(found.run)
    yield found.picture(figure, "learning_curves", "loss, accuracy and macro-F1 by epoch")


def confusion(found: Found) -> Iterator[str]:
    """Yield what was taken for what, and the scores of each class."""
    from lowres_vision import plots

    yield heading("Confusion")
    figure = plots.confusion_matrix(found.targets, found.predicted, found.classes)
    description = "confusion matrix of the out-of-fold predictions"
    yield found.picture(figure, "confusion", description)
    yield heading("By class")
    share, macro = found.member["accuracy"], found.member["macro_f1"]
    yield paragraph(f"The weakest first. Accuracy {share:.4f}, macro-F1 {macro:.4f}.")
    by_class = precision_recall_fscore_support(
        found.targets, found.predicted, labels=range(len(found.classes)), zero_division=0.0
    )
    rows = [
        (number, name, int(count), float(precision), float(recall), float(f1))
        for number, (name, precision, recall, f1, count) in enumerate(
            zip(found.classes, *by_class, strict=True)
        )
    ]
    head = ("no.", "class", "rows", "precision", "recall", "F1")
    yield table(head, sorted(rows, key=lambda row: (row[-1], row[0])), bars=True)


def errors(found: Found, manifest: Manifest | None, worst: int) -> Iterator[str]:
    """Yield what was predicted wrongly, the surest first."""
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
        description = "images that were predicted wrongly, with what was predicted"
        yield found.picture(figure, "errors", description)
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


def test_images(found: Found, test: Manifest | None, most: int) -> Iterator[str]:
    """Yield the folds' vote on the test rows, the hardest first."""
    if test is None:
        return
    from lowres_vision import plots

    member = Member(found.member["model"], found.member["seed"], "plain")
    vote = soft_vote(read_tests(found.run, test)[member])
    truth = test.labels if test.labelled else None
    yield heading("Test")
    if truth is None:
        sure = vote.max(axis=1)
        yield paragraph(f"{len(test)} images, whose classes are not known; the least sure first.")
    else:
        sure = vote[np.arange(len(vote)), truth]
        yield paragraph(
            f"Accuracy {accuracy(vote, truth):.4f}, macro-F1 {macro_f1(vote, truth):.4f} on "
            f"{len(test)} images, by the soft vote of the folds; the hardest first."
        )
        figure = plots.confusion_matrix(truth, vote, found.classes)
        yield found.picture(figure, "test_confusion", "confusion matrix of the test images")
    shown = np.argsort(sure, kind="stable")[:most]
    figure = plots.prediction_grid(
        _images(test, shown, found.summary["settings"]["held_out_resolution"]),
        vote[shown],
        found.classes,
        targets=None if truth is None else truth[shown],
        rows=shown.tolist(),
    )
    yield found.picture(figure, "test_images", "test images with what was predicted")


def resizer(
    found: Found, manifest: Manifest | None, build: Callable[..., Classifier] | None
) -> Iterator[str]:
    """Yield what the resizer of the first fold makes of images that it has not seen."""
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
    description = "images enlarged bilinearly and by the learned resizer"
    yield found.picture(figure, "resizer", description)


def _images(manifest: Manifest, rows: Any, resolution: Any) -> list[torch.Tensor]:
    samples = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
    return [samples[index].image for index in range(len(samples))]  # type: ignore[union-attr]


def usage(found: Found) -> Iterator[str]:
    """Yield what the runs used of the machine, and the last words of those interrupted."""
    yield heading("Runs")
    rows, last_words = [], []
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
            last_words.append((name, (folder / "errors.txt").read_text(encoding="utf-8")))
    head = ("run", "epochs", "seconds", "CPUs busy", "most memory, MiB", "on the GPU, MiB")
    yield table(head, rows)
    for name, words in last_words:
        yield paragraph(f"{name} was interrupted; its last words:")
        yield lines(words[-3000:])


def settings(found: Found) -> Iterator[str]:
    """Yield settings and versions."""
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
