"""A script as one would start it by torchrun or srun: a small cross-validation on two processes."""

import argparse
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, StratifiedFolds
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.training import Classifier, CrossValidation, cross_validate


class Net(nn.Module):
    """Neither batch statistics nor dropout, so that two processes train the weights of one."""

    outputs = "logits"

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(images)
        return outputs


class Death(L.Callback):
    """Kills one process in the second epoch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def build() -> Classifier:
    transform = BatchTransform(8, mean=(0.5,) * 3, std=(0.25,) * 3, scale=(0.5, 1.0))
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    return Classifier(Net(), CrossEntropyLoss(), transform=transform, optimizer=optimizer)


def main(arguments: list[str] | None = None) -> CrossValidation:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--kill", type=int, help="process to kill in the second epoch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return cross_validate(
        Manifest.read_csv(options.data / "train.csv"),
        build,
        out=options.out,
        folds=StratifiedFolds(2),
        epochs=3,
        batch_size=4,
        callbacks=[] if options.kill is None else [Death(options.kill)],
        devices=options.devices,
        strategy=options.strategy,
    )


if __name__ == "__main__":
    main()
