"""Cross-validations in processes of their own, alone or in ranks, killed on command.

Reads jobs from standard input, a JSON object a line, and forks a process for each: this one has
imported everything, and a fork costs milliseconds where a new interpreter costs seconds. Prints
the exit codes of the job's processes, one per rank.
"""

import contextlib
import json
import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from lowres_vision import _files
from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, StratifiedFolds
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.optim import SAM
from lowres_vision.training import Classifier, cross_validate
from lowres_vision.training import _run as run_module


class Net(nn.Module):
    """All that could remember something: batch statistics, dropout, channels_last weights."""

    outputs = "logits"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def build(model: str, trick: str) -> Classifier:
    transform = BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3, scale=(0.5, 1.0))
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    if trick == "sam":
        optimizer = partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1, momentum=0.9)
    losses = {"nan": NotFinite, "steep": Steep}
    return Classifier(
        Net() if model == "net" else Plain(),
        losses.get(trick, CrossEntropyLoss)(),
        transform=transform,
        optimizer=optimizer,
        warmup=0.2,
        ema=partial(ModelEmaV3, decay=0.8) if trick == "ema" else None,
    )


def not_finite() -> Classifier:
    return build("plain", "nan")


def steep() -> Classifier:
    return build("plain", "steep")


class NotFinite(CrossEntropyLoss):
    """NaN where a sample of class 2 is in the share of this process."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = super().forward(logits, targets)
        found = targets[:, 2] > 0 if targets.ndim == 2 else targets == 2
        return self.spoilt(loss, logits) if found.any() else loss

    def spoilt(self, loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return loss * torch.nan


class Steep(NotFinite):
    """Finite, but with a gradient that is not."""

    def spoilt(self, loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return loss + (0 * logits.sum()).sqrt()


class Plain(nn.Module):
    """Neither batch statistics nor dropout: what a batch is split into makes no difference."""

    outputs = "logits"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Sequential(nn.Tanh(), nn.Conv2d(8, 5, 3)),
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Killer:
    """Kills this process at the ``count``-th time that the run comes to ``place``."""

    def __init__(self, place: str, count: int) -> None:
        self.left = count
        at = partial(self.at, place)
        forward = Net.forward

        def watched(net: Net, images: torch.Tensor) -> torch.Tensor:
            at("step" if net.training else "validation")
            return forward(net, images)

        Net.forward = watched  # type: ignore[method-assign]
        fsync = os.fsync

        def synced(handle: int) -> None:
            at("saving")
            fsync(handle)

        _files.os.fsync = synced  # between the bytes and the name, or the name and its folder
        execute = run_module._train_and_predict

        def executed(*arguments: object) -> None:
            at("between")
            execute(*arguments)  # type: ignore[arg-type]

        run_module._train_and_predict = executed

    def at(self, wanted: str, place: str) -> None:
        if place == wanted:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def work(job: dict, rank: int) -> None:
    torch.set_num_threads(1)
    world = job["world"]
    if world > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]), WORLD_SIZE=str(world),
            RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0",
            TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
        rank_zero_only.rank = rank  # which Lightning reads from there when it is imported
    if job["kill"] and rank == job["kill"]["rank"]:
        Killer(job["kill"]["place"], job["kill"]["count"])
    if rank == job["slow_disk"]:
        fsync = os.fsync

        def slow(handle: int) -> None:
            time.sleep(0.3)
            fsync(handle)

        _files.os.fsync = slow
    if job["trick"] == "deadly":
        image = MultiResolutionDataset._image

        def deadly(samples: MultiResolutionDataset, row: int, *, high: bool) -> torch.Tensor:
            if row == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return image(samples, row, high=high)

        MultiResolutionDataset._image = deadly  # type: ignore[method-assign]
    toy = Path(job["toy"])
    manifest = Manifest.read_csv(toy / "train.csv")
    cross_validate(
        manifest,
        partial(build, job["model"], job["trick"]),
        out=job["out"],
        folds=StratifiedFolds(2),
        test=Manifest.read_csv(toy / "test.csv", classes=manifest.classes),
        collate=CutMixCollator(3, p=0.5, size=8),
        epochs=job["epochs"],
        batch_size=4,
        workers=job["workers"],
        checkpoint_every=1,
        accumulate=job["accumulate"],
        precision=job["precision"],
        clip_norm=0.1 if job["trick"] == "clip" else None,
        keep=job["keep"],
        patience=job["patience"],
        devices=world,
        strategy=job["strategy"] if world > 1 else "auto",
    )
    assert (Path(job["out"]) / "summary.json").is_file()  # whichever process this is


def run(job: dict) -> list[int]:
    pids = []
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                work(job, rank)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes = dict.fromkeys(pids, 0)
    for _ in pids:
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in pids:  # what torchrun does: one rank's death ends the others
                if other != pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
    return list(codes.values())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
