"""CIFAR-10 with a learnable resizer in front of an ImageNet network.

    python examples/cifar10_resizer.py --quick                                 # generated images
    python examples/cifar10_resizer.py --data FOLDER --variant resizer-cutmix  # one row
    python examples/cifar10_resizer.py --data FOLDER --table                   # all rows

`FOLDER` holds `train/<class>/` and `test/<class>/` with 32 px images. Called again with the same
`--out`, finished rows are read back and a broken one goes on.

The source trained VGG-16 with ImageNet weights on CIFAR-10 for 300 epochs: batches of 128, SGD
0.01, divided by 10 after epochs 100 and 150, random crop with a padding of 4, flip, CutMix on half
of the batches; `resizer` puts a network in front that enlarges 32 to 224 and is trained with it.
It quotes the best of 300 epochs *by test accuracy*. Here a tenth of the training images chooses
the epoch, and the source's rule stands beside it under its own name. `bilinear`, which the source
has not got, enlarges to 224 without learning: what is left between it and `resizer` is the
resizer's own. What came out on a small set stands in docs/experiments/cifar10_resizer.md.
"""

import csv
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from experiment import Table, network, spread, start
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform, PerImage
from lowres_vision.data import (
    Manifest,
    MultiResolutionDataset,
    StratifiedFolds,
    collate,
    make_toy_folders,
)
from lowres_vision.ensemble import accuracy
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.resizer import LearnableResizer
from lowres_vision.training import Classifier, cross_validate, write_report

VARIANTS = {  # name: what enlarges, probability of CutMix, the source's accuracy
    "baseline": (None, 0.0, 93.13),
    "cutmix": (None, 0.5, 94.84),
    "resizer": ("resizer", 0.0, 95.68),
    "resizer-cutmix": ("resizer", 0.5, 96.61),
    "cbam": ("cbam", 0.0, 96.09),
    "cbam-cutmix": ("cbam", 0.5, 96.63),
    "bilinear": ("bilinear", 0.0, None),
    "bilinear-cutmix": ("bilinear", 0.5, None),
}
Variant = Literal[tuple(VARIANTS)]


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder with train/<class>/ and test/<class>/
    out: Path = Path("runs") / time.strftime("cifar10_resizer-%Y%m%d-%H%M%S")
    quick: bool = False  # generated images, a small network from scratch, eight epochs
    variant: Variant = "cbam-cutmix"
    table: bool = False  # every variant, with the source's figures beside ours
    seeds: tuple[int, ...] = (0,)
    backbone: str = "vgg16.tv_in1k"
    timm_args: dict[str, int | str] = dataclasses.field(default_factory=dict)
    pretrained: bool = True
    checkpoint_path: Path | None = None  # weights file; default: fetched by timm
    size: int = 224  # what images are enlarged to
    zero_init: bool = False  # start the resizer at the bilinear image; the source's at random
    epochs: int = 300
    milestones: tuple[int, ...] = (100, 150)  # epochs after which the learning rate falls tenfold
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9  # the source names none
    validation: float = 0.1  # share of the training images that chooses the epoch


QUICK = {
    "backbone": "test_resnet",
    "pretrained": False,
    "size": 64,
    "epochs": 8,
    "milestones": (6,),
    "batch_size": 32,
    "validation": 0.25,
}


class TestEachEpoch(L.Callback):
    """Logs the test accuracy of every epoch, which nothing here is chosen by."""

    def __init__(self, test: Manifest) -> None:
        self.test = test

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loader = DataLoader(MultiResolutionDataset(self.test), batch_size=256, collate_fn=collate)
        votes = np.concatenate([module.predict_step(batch, 0)[1] for batch in loader])
        module.log("test_accuracy", accuracy(votes, self.test.labels))


def run(settings: Settings, variant: str, train: Manifest, test: Manifest) -> np.ndarray:
    """Train one row; return each seed's test accuracy and, as the source, its best over epochs."""
    enlarge, cutmix, _ = VARIANTS[variant]
    side = MultiResolutionDataset(train)[0].image.shape[-1]
    size = settings.size if enlarge == "bilinear" else side  # what leaves the transform

    def build() -> Classifier:
        resizer = None
        if enlarge in ("resizer", "cbam"):
            attention, start = "cbam" if enlarge == "cbam" else None, settings.zero_init
            resizer = LearnableResizer(settings.size, attention=attention, zero_init=start)
        model = network(
            settings,
            settings.backbone,
            len(train.classes),
            settings.checkpoint_path,
            resizer=resizer,
            image_size=side if enlarge is None else settings.size,
        )
        crop = PerImage(v2.RandomCrop(side, padding=4))
        return Classifier(
            model,
            CrossEntropyLoss(),
            transform=BatchTransform(size, model=model, scale=None, augment=crop),
            optimizer=partial(torch.optim.SGD, lr=settings.lr, momentum=settings.momentum),
            schedule=lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(
                optimizer, [epoch * steps for epoch in settings.milestones]
            ),
        )

    out = settings.out / variant
    result = cross_validate(
        train,
        build,
        out=out,
        test=test,
        folds=StratifiedFolds().assign(train, share=settings.validation),
        collate=CutMixCollator(len(train.classes), p=cutmix, size=size) if cutmix else collate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seeds=settings.seeds,
        monitor="val_accuracy",
        callbacks=[TestEachEpoch(test)],
    )
    write_report(out, manifest=train, test=test, build=build, pictures=out)
    scores = []
    for seed, votes in zip(settings.seeds, result.test_stack, strict=True):
        with (out / f"seed_{seed}" / "fold_0" / "metrics.csv").open() as file:
            by_epoch = [row["test_accuracy"] for row in csv.DictReader(file)]
        scores.append((accuracy(votes[0], test.labels), max(map(float, filter(None, by_epoch)))))
    return 100 * np.array(scores)


def main(settings: Settings) -> None:
    train = Manifest.read_folders(settings.data / "train")
    test = Manifest.read_folders(settings.data / "test", classes=train.classes)
    columns = ("variant", "test accuracy by seed", "best epoch by test", "the source")
    table = Table(settings.out / "table.md", *columns)
    for variant in VARIANTS if settings.table else [settings.variant]:
        chosen, best = run(settings, variant, train, test).T
        source = VARIANTS[variant][2] or "-"
        table.add(variant, spread(chosen, 2), f"{best.mean():.2f}", f"{source}")
    print(table)
    print(f"test accuracy in %, mean ± spread over seeds {settings.seeds}; {settings.out}")


def generate(settings: Settings) -> Path:
    return make_toy_folders(settings.out / "data", per_class={"train": 40, "test": 10}, size=32)


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
