"""The page about a run: what it says, that it needs nothing else, and that words stay words."""

import base64
import csv
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from lowres_vision import plots
from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, StratifiedFolds
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.resizer import LearnableResizer
from lowres_vision.training import Classifier, cross_validate, write_report
from lowres_vision.training.__main__ import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)
EVIL = "<script>alert('x')</script> & \"tit\""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resizer = LearnableResizer(12, channels=2)
        self.head = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.resizer(images).mean(dim=(2, 3)))


def build() -> Classifier:
    transform = BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3)
    optimizer = partial(torch.optim.SGD, lr=5e-5)
    return Classifier(Net(), CrossEntropyLoss(), transform=transform, optimizer=optimizer)


class Page(HTMLParser):
    """Tags, words and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def data(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy rows with one class renamed to something that a browser must not read."""
    folder = tmp_path_factory.mktemp("evil")
    with (toy / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "label": EVIL if row["label"] == names[0] else row["label"]})
    return folder / "train.csv"


@pytest.fixture(scope="module")
def manifest(data: Path, toy: Path) -> Manifest:
    return Manifest.read_csv(data, root=toy)


@pytest.fixture(scope="module")
def run(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "birds"
    cross_validate(manifest, build, out=out, folds=StratifiedFolds(2), epochs=1, batch_size=12)
    return out


def test_the_page_holds_scores_settings_and_every_class(run: Path, manifest: Manifest) -> None:
    page = Page(write_report(run))
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['accuracy']:.4f} {summary['macro_f1']:.4f}" in page.text
    arrays = np.load(run / "out_of_fold.npz")
    predicted = arrays["probabilities"].argmax(axis=1)
    f1 = f1_score(manifest.labels, predicted, average=None)
    cells = [word for word in page.words if word.strip()]
    for number, name in enumerate(manifest.classes):
        place = cells.index(name, cells.index("By class"))
        assert cells[place - 1] == str(number)
        assert cells[place + 1] == "12"
        assert cells[place + 4] == f"{f1[number]:.4f}"
    for words in ("settings.epochs 1", "build.make_optimizer.lr 5e-05", "torch", "fold_1"):
        assert words in page.text


def test_it_needs_no_network_and_runs_nothing(run: Path, manifest: Manifest) -> None:
    path = write_report(run, manifest=manifest, build=build)
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for link in page.links:
        assert base64.b64decode(link.partition(",")[2]).startswith(b"\x89PNG")
    source = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert "<script" not in source
    assert not re.findall(r"https?://", re.sub(r"base64,[^\"]+", "", source))
    assert EVIL in page.text  # read as words, and only so


def test_pictures_of_errors_and_resizer_need_rows_and_model(
    run: Path, manifest: Manifest, tmp_path: Path
) -> None:
    few = Page(write_report(run, tmp_path / "a.html"))
    more = Page(write_report(run, tmp_path / "b.html", manifest=manifest))
    most = Page(write_report(run, tmp_path / "c.html", manifest=manifest, build=build))
    assert [len(page.links) for page in (few, more, most)] == [2, 3, 4]
    assert "Resizer" not in more.text
    assert "enlarged to 12 x 12 px" in most.text


def test_the_worst_errors_are_the_surest(run: Path, manifest: Manifest) -> None:
    arrays = np.load(run / "out_of_fold.npz")
    probabilities, labels = arrays["probabilities"], arrays["labels"]
    predicted = probabilities.argmax(axis=1)
    wrong = [row for row in range(len(labels)) if predicted[row] != labels[row]]
    wrong.sort(key=lambda row: -probabilities[row].max())
    page = Page(write_report(run, manifest=manifest, worst=5))
    cells = [word for word in page.words if word.strip()]
    start = cells.index("of the true class") + 1
    rows = [cells[start + 6 * number : start + 6 * number + 2] for number in range(5)]
    assert [row[0] for row in rows] == [str(row) for row in wrong[:5]]
    assert [row[1] for row in rows] == [manifest.ids[row] for row in wrong[:5]]


def test_of_several_members_the_best_is_shown(manifest: Manifest, tmp_path: Path) -> None:
    cross_validate(
        manifest, {"a": build}, out=tmp_path, folds=StratifiedFolds(2),
        epochs=1, batch_size=12, seeds=(0, 1),
    )  # fmt: skip
    (tmp_path / "a" / "seed_0" / "fold_0" / "errors.txt").write_text("the roof <fell> in")
    members = json.loads((tmp_path / "summary.json").read_text())["members"]
    best = max(members, key=lambda member: member["macro_f1"])
    page = Page(write_report(tmp_path))
    assert f"Below: {best['model']}, seed {best['seed']}, the best of 2" in page.text
    assert "a/seed_0/fold_0 was interrupted; its last words: the roof <fell> in" in page.text


def test_the_folds_vote_on_the_test_rows_the_hardest_first(
    manifest: Manifest, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    draw = plots.prediction_grid

    def grid(*arguments: Any, rows: list[int], **options: Any) -> Any:
        drawn.append(rows)
        return draw(*arguments, rows=rows, **options)

    monkeypatch.setattr(plots, "prediction_grid", grid)
    test, pictures = manifest.take(range(0, 36, 2)), tmp_path / "pictures"
    settings = {"folds": StratifiedFolds(2), "epochs": 1, "batch_size": 12}
    found = cross_validate(manifest, build, out=tmp_path / "a", test=test, **settings)
    vote = found.test_probabilities.mean(axis=0)
    page = Page(write_report(tmp_path / "a", test=test, pictures=pictures, worst=5))
    right = float((vote.argmax(axis=1) == test.labels).mean())
    f1 = f1_score(test.labels, vote.argmax(axis=1), average="macro")
    assert f"Accuracy {right:.4f}, macro-F1 {f1:.4f} on 18 images" in page.text
    names = ["confusion", "learning_curves", "test_confusion", "test_images"]
    assert [file.stem for file in sorted(pictures.iterdir())] == names
    assert len(page.links) == len(names)
    of_truth = vote[range(18), test.labels]
    assert drawn == [np.argsort(of_truth, kind="stable")[:5].tolist()]

    unlabelled = Manifest.read_csv(toy / "test.csv", classes=manifest.classes)
    found = cross_validate(manifest, build, out=tmp_path / "b", test=unlabelled, **settings)
    page = Page(write_report(tmp_path / "b", test=unlabelled, worst=5))
    assert f"{len(unlabelled)} images, whose classes are not known" in page.text
    sure = found.test_probabilities.mean(axis=0, dtype=np.float64).max(axis=1)
    assert drawn[1] == np.argsort(sure, kind="stable")[:5].tolist()


def test_the_command_writes_the_page(
    run: Path, data: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    main([
        "report", str(run), "--out", str(path), "--csv", str(data), "--root", str(toy),
        "--build", f"{__file__}:build", "--pictures", str(tmp_path),
    ])  # fmt: skip
    assert capsys.readouterr().out.strip() == str(path)
    assert len(Page(path).links) == len([*tmp_path.glob("*.png")]) == 4


def test_refusals(run: Path, toy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no summary\.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="has other rows than"):
        write_report(run, manifest=Manifest.read_csv(toy / "train.csv"))
    with pytest.raises(ValueError, match=r"`test` .* has other rows than .* has predicted"):
        write_report(run, test=Manifest.read_csv(toy / "test.csv"))


def test_without_metrics_there_are_no_curves(manifest: Manifest, tmp_path: Path) -> None:
    folds = np.arange(len(manifest)) % 2 - 1
    cross_validate(manifest, build, out=tmp_path, folds=folds, epochs=1, logger=())
    assert "No run has a metrics.csv" in Page(write_report(tmp_path)).text


def test_the_test_rows_are_predicted_by_the_member_shown(
    manifest: Manifest, tmp_path: Path
) -> None:
    test = manifest.take(range(0, 36, 2))
    settings = {"folds": StratifiedFolds(2, seed=0), "epochs": 1, "batch_size": 12, "test": test}
    cross_validate(manifest, build, out=tmp_path, seeds=[0], **settings)
    found = cross_validate(manifest, build, out=tmp_path, seeds=[1], **settings)
    right = float((found.test_probabilities.mean(axis=0).argmax(axis=1) == test.labels).mean())
    assert right < 1
    file = tmp_path / "test_probabilities.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    assert arrays["seeds"].tolist() == [0, 1]
    arrays["probabilities"][0] = np.eye(3)[test.labels]  # the other member is never wrong
    np.savez(file, **arrays)
    page = Page(write_report(tmp_path, test=test))
    assert f"Accuracy {right:.4f}" in page.text[page.text.index("Test") :]
