"""Birds with BEiT at four resolutions: from a CSV of image pairs to a checked submission.

    python examples/birds_beit.py --quick                       # generated birds, under a minute
    python examples/birds_beit.py --data FOLDER --out OUT       # your own files

Killed and started again with the same `--out`, it goes on where it stopped.

`FOLDER` is laid out as in the contest: `train.csv` (img_path, upscale_img_path, label), `test.csv`
(id, img_path) and `sample_submission.csv` (id, label), with paths relative to the CSVs.

The source (25 species, 15,834 training pairs, BEiT-base at 224, AdamW 5e-5, 5 epochs, batch 16,
cross-entropy, no validation split) compared four settings. What changes is the size that images
pass through before the model's own 224; its code trained the last three on the high-resolution
files and tested all on the low ones. Here `--train-on` sets the training source apart from
the size.

    --variant   the source's name   trained on   accuracy, public / private board
    64          64x64               low          .8415 / .8508
    256to64     256 -> 64           high         .7333 / .7200
    64to256     64 -> 256           high         .7534 / .7469
    64to224     64 -> 224           high         .8894 / .8861

The source's weights were pretrained on ImageNet-22k without labels; timm's
`beit_base_patch16_224.in22k_ft_in22k`, the default here, is their fine-tuned sibling. What this
script reached on a small real set stands in docs/experiments/birds_beit.md.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from experiment import Table, network, start

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, StratifiedFolds, collate, make_toy_pairs
from lowres_vision.ensemble import check_sample, soft_vote, write_submission
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.training import Classifier, CrossValidation, cross_validate, write_report

VARIANTS = {  # name: training source, size that images pass through, the source's accuracy
    "64": ("low", None, ".8415/.8508"),
    "256to64": ("high", 64, ".7333/.7200"),
    "64to256": ("high", 256, ".7534/.7469"),
    "64to224": ("high", 224, ".8894/.8861"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("birds_beit-%Y%m%d-%H%M%S")
    quick: bool = False  # generated birds, a small BEiT from scratch, two folds
    seed: int = 0
    variant: Literal["64", "256to64", "64to256", "64to224"] = "64"
    table: bool = False  # every variant, with the source's figures beside ours
    train_on: Literal["low", "high", "both"] | None = None  # default: as the setting says
    backbone: str = "beit_base_patch16_224.in22k_ft_in22k"  # any of timm's
    timm_args: dict[str, int | str] = dataclasses.field(default_factory=dict)  # NAME VALUE ...
    pretrained: bool = True
    checkpoint_path: Path | None = None  # weights file; default: fetched by timm
    image_size: int = 224
    mean: tuple[float, float, float] | None = None  # default: as the backbone was pretrained
    std: tuple[float, float, float] | None = None
    folds: int = 5
    epochs: int = 5
    batch_size: int = 16
    lr: float = 5e-5
    warmup: float = 0.0  # share of the steps
    crop: float = 1.0  # smallest share of the image that a training crop keeps
    flip: float = 0.0  # probability of a mirrored training image
    cutmix: float = 0.0  # probability of a mixed batch
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


QUICK = {
    "backbone": "beit_base_patch16_224",
    "timm_args": {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2},
    "pretrained": False,
    "image_size": 64,
    "folds": 2,
    "epochs": 20,
    "lr": 1e-3,
    "flip": 0.5,
}


def run(settings: Settings, train: Manifest, test: Manifest) -> CrossValidation:
    """Train and predict one variant; leave its submission, report and pictures in `out`."""
    source, via, _ = VARIANTS[settings.variant]

    def build() -> Classifier:
        weights, size = settings.checkpoint_path, settings.image_size
        model = network(settings, settings.backbone, len(train.classes), weights, image_size=size)
        transform = BatchTransform(
            size,
            mean=settings.mean or model.mean,
            std=settings.std or model.std,
            scale=(settings.crop, 1.0),
            ratio=(1.0, 1.0) if settings.crop == 1 else (3 / 4, 4 / 3),
            flip=settings.flip,
            via=via,
        )
        return Classifier(
            model,
            CrossEntropyLoss(),
            transform=transform,
            warmup=settings.warmup,
            optimizer=partial(torch.optim.AdamW, lr=settings.lr),
            seed=settings.seed,
        )

    cutmix = CutMixCollator(len(train.classes), p=settings.cutmix, size=settings.image_size)
    result = cross_validate(
        train,
        build,
        out=settings.out,
        test=test,
        seed=settings.seed,
        folds=StratifiedFolds(settings.folds, seed=settings.seed),
        resolution=settings.train_on or source,
        collate=cutmix if settings.cutmix else collate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        precision=settings.precision,
    )
    write_submission(
        settings.out / "submission.csv",
        soft_vote(result.test_probabilities),
        ids=test.ids,
        classes=train.classes,
        sample=settings.data / "sample_submission.csv",
    )
    write_report(settings.out, manifest=train, test=test, pictures=settings.out)
    return result


def main(settings: Settings) -> None:
    train = Manifest.read_csv(settings.data / "train.csv")
    train.require_labels()
    test = Manifest.read_csv(settings.data / "test.csv", classes=train.classes)
    check_sample(settings.data / "sample_submission.csv", ids=test.ids, classes=train.classes)
    print("empty cells:", dict(train.nulls))
    print("class counts:", train.class_counts())
    if not settings.table:
        result = run(settings, train, test)
        print(f"out-of-fold accuracy {result.accuracy:.4f}, macro-F1 {result.macro_f1:.4f}")
        print(f"chance {1 / len(train.classes):.4f}; {result.seconds:.0f} s; {settings.out}")
        return
    table = Table(settings.out / "table.md", "variant", "accuracy", "macro-F1", "the source")
    for name, (_, _, source) in VARIANTS.items():
        row = dataclasses.replace(settings, variant=name, out=settings.out / name)
        result = run(row, train, test)
        table.add(name, f"{result.accuracy:.4f}", f"{result.macro_f1:.4f}", source)
    print(table)


def generate(settings: Settings) -> Path:
    return make_toy_pairs(settings.out / "data", seed=settings.seed)


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
