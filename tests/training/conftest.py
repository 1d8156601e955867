"""A process that forks cross-validations, a small model, a silent trainer, and samples."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import Classifier


class Machine:
    """Starts runs in `forked_runs.py` and reads what they leave."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process
        self.toy = make_toy_pairs(folder / "toy", classes=3, per_class=6, test_per_class=2)
        self.unbroken: dict[tuple[int, str], dict[str, Any]] = {}

    def run(
        self, out: Path, *, world: int, workers: int, kill: Any = None, **options: Any
    ) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {
            "toy": str(self.toy), "out": str(out), "world": world, "workers": workers,
            "kill": kill, "port": port, "log": str(self.folder / "log.txt"),
            "model": "net", "epochs": 2, "keep": 2, "patience": 3, "strategy": "ddp",
            "trick": "", "slow_disk": None, "accumulate": 1, "precision": "32-true", **options,
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def finish(self, out: Path, *, world: int, workers: int, **options: Any) -> dict[str, Any]:
        codes = self.run(out, world=world, workers=workers, **options)
        log = (self.folder / "log.txt").read_text(errors="replace")[-3000:]
        assert codes == [0] * world, log
        return self.content(out)

    def reference(self, world: int, strategy: str = "ddp") -> dict[str, Any]:
        case = (world, strategy)
        if case not in self.unbroken:
            out = self.folder / f"unbroken_{world}_{strategy}"
            self.unbroken[case] = self.finish(out, world=world, workers=0, strategy=strategy)
        return self.unbroken[case]

    @staticmethod
    def content(out: Path) -> dict[str, Any]:
        """Return every file of a cross-validation, without what time and machine leave in it."""
        found: dict[str, Any] = {}
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            if path.name in ("usage.csv", "errors.txt") or path.suffix == ".part":
                continue
            name = str(path.relative_to(out))
            found[name] = path.read_bytes()
            if path.name in ("run.json", "summary.json"):
                found[name] = json.loads(found[name])
                found[name] |= {"seconds": 0, "commit": ""}
        return found


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_runs.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Machine(tmp_path_factory.mktemp("forked"), process)
        assert process.stdin is not None
        process.stdin.close()


class PatchNet(nn.Module):
    """Reads the mean colours of a 2 x 2 grid: enough to tell toy birds apart."""

    outputs = "logits"

    def __init__(self, width: int = 16, *, norm: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, width),
            nn.BatchNorm1d(width) if norm else nn.Identity(),
            nn.Tanh(),
        )
        self.head = nn.Linear(width, 3)

    def embed(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.body(images)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.head(embedding)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.embed(images))


@pytest.fixture(scope="session")
def patch_net() -> type[PatchNet]:
    return PatchNet


@pytest.fixture(scope="session")
def patch_classifier() -> Callable[..., Classifier]:
    """Return a function that builds a small classifier."""

    def build(loss: nn.Module | None = None, *, lr: float = 0.125, **settings: Any) -> Classifier:
        usual: dict[str, Any] = {
            "transform": BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3),
            "optimizer": partial(torch.optim.SGD, lr=lr),
        }
        return Classifier(PatchNet(), loss or CrossEntropyLoss(), **{**usual, **settings})

    return build


@pytest.fixture(scope="session")
def quiet_trainer() -> Callable[..., L.Trainer]:
    """Return trainers that write and print nothing."""
    silent: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "accelerator": "cpu",
    }
    return lambda **settings: L.Trainer(**{"max_epochs": 1, **silent, **settings})


@pytest.fixture(scope="session")
def toy_manifest(toy: Path) -> Manifest:
    return Manifest.read_csv(toy / "train.csv")


@pytest.fixture(scope="session")
def toy_samples(toy_manifest: Manifest) -> dict[str, list[Any]]:
    """Return the low images and the pairs of the toy rows, decoded once for many epochs."""
    return {
        resolution: list(map(dataset.__getitem__, range(len(dataset))))
        for resolution in ("low", "pair")
        for dataset in [MultiResolutionDataset(toy_manifest, resolution=resolution)]
    }
