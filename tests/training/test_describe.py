import enum
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import collate
from lowres_vision.losses import CrossEntropyLoss, FocalLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.training import Classifier
from lowres_vision.training._describe import (
    commit,
    describe,
    describe_classifier,
    differences,
    file_sha256,
    versions,
)


def classifier(seed: int = 0, lr: float = 0.1, size: int = 8, **changes: object) -> Classifier:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    arguments = {
        "loss": CrossEntropyLoss(),
        "transform": BatchTransform(size, mean=(0.5,) * 3, std=(0.5,) * 3),
        "optimizer": partial(torch.optim.SGD, lr=lr),
        **changes,
    }
    return Classifier(model, **arguments)  # type: ignore[arg-type]


def frozen() -> Classifier:
    built = classifier()
    built.model[1].bias.requires_grad_(False)
    return built


def test_the_same_build_is_described_alike_and_in_json() -> None:
    one, two = (describe_classifier(classifier()) for _ in range(2))
    assert one == two == json.loads(json.dumps(one))
    assert one["transform"]["size"] == [8, 8]


@pytest.mark.parametrize(
    ("other", "places"),
    [
        (classifier(lr=0.2), {"make_optimizer.lr"}),
        (classifier(size=16), {"transform.size"}),
        (classifier(seed=1), {"model.weights_sha256"}),
        (classifier(warmup=0.5), {"warmup"}),
        (classifier(loss=FocalLoss(gamma=1.0)), {"loss.class", "loss.gamma"}),
        (frozen(), {"model.layers_sha256"}),
    ],
)
def test_what_differs_is_named(other: Classifier, places: set[str]) -> None:
    found = differences(describe_classifier(classifier()), describe_classifier(other))
    assert places <= {words.partition(":")[0] for words in found}


def test_values_functions_and_objects() -> None:
    assert describe([1, 0.5, None, ("a", True)]) == [1, 0.5, None, ["a", True]]
    assert describe({1: Path("a/b")}) == {"1": "a/b"}
    assert describe(collate) == "lowres_vision._batch.collate"
    mixing = describe(CutMixCollator(3, p=0.25))
    assert mixing["class"] == "lowres_vision.mixing._collators.CutMixCollator"
    assert mixing["p"] == 0.25
    assert describe(torch.ones(2)) == describe(np.ones(2, dtype=np.float32))
    assert describe(torch.ones(2)) != describe(torch.ones(2, dtype=torch.float64))
    assert "0x" not in json.dumps(describe(object()))


LARGE = 0.5


def steps(factor: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=factor * 0.1)


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width: int) -> None:
        self.width = width

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1 * self.width)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.2)),
        (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (lambda p: p * 0.5, lambda p: p * LARGE),
        (lambda p: [q * 2 for q in p], lambda p: [q * 3 for q in p]),
        (lambda p, rate=1: p * rate, lambda p, rate=2: p * rate),
        (lambda p, *, rate=1: p * rate, lambda p, *, rate=2: p * rate),
        (steps(1.0), steps(2.0)),
        (Slotted(1), Slotted(2)),
        (Slotted(1).build, Slotted(2).build),
        (Colour.RED, Colour.BLUE),
        (torch.float16, torch.float32),
        (np.float32(0.5), np.float32(0.25)),
        ({"a", "b"}, {"a", "c"}),
        (range(2), range(3)),
        (b"a", b"b"),
        (float("inf"), float("-inf")),
    ],
)
def test_no_two_values_are_described_alike(one: Any, two: Any) -> None:
    assert describe(one) != describe(two)
    assert describe(one) == json.loads(json.dumps(describe(one)))
    assert "0x" not in json.dumps(describe(one))


def test_what_is_read_by_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(rate: float) -> float:
        """Words do not count."""
        return rate * LARGE

    before = describe(half)
    assert before["globals"] == {"LARGE": 0.5}
    assert "Words" not in json.dumps(before)
    monkeypatch.setitem(globals(), "LARGE", 0.25)
    assert [*differences(before, describe(half))] == ["globals.LARGE: 0.5 there, 0.25 here"]


def test_nan_is_like_itself_and_a_set_like_any_order_of_it() -> None:
    assert describe(float("nan")) == describe(float("nan"))
    assert describe({"a", "b", "c"}) == describe({"c", "b", "a"}) == ["a", "b", "c"]


def test_wholes_that_are_their_own_parts_end() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert describe(ring) == [1, "a whole that this is a part of"]

    def again(count: int) -> int:
        return again(count - 1)

    assert describe(again)["enclosed"] == {"again": "a whole that this is a part of"}


def test_attributes_of_layers_within_count() -> None:
    def jitter(brightness: float) -> Classifier:
        augment = nn.Sequential(nn.Identity())
        augment[0].brightness = brightness  # which no layer prints
        transform = BatchTransform(8, mean=(0.5,) * 3, std=(0.5,) * 3, augment=augment)
        return classifier(transform=transform)

    one, other = describe_classifier(jitter(0.1)), describe_classifier(jitter(0.2))
    assert [words.partition(":")[0] for words in differences(one, other)] == [
        "transform.layers_sha256"
    ]
    assert describe_classifier(jitter(0.1)) == one


def test_differences_by_place() -> None:
    there, here = {"a": 1, "b": {"c": 2}, "d": 4}, {"a": 1, "b": {"c": 3}, "e": 5}
    assert list(differences(there, here)) == [
        "b.c: 2 there, 3 here",
        "d: 4 there, None here",
        "e: None there, 5 here",
    ]


def test_versions_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"torch", "lightning"} <= set(versions())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit() == head.stdout.strip()
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_a_files_hash(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf8f01cfea414140de5dae2223")
