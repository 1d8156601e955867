"""Birds at two resolutions with two backbones: what each claim is worth, and the final vote.

    python examples/birds_multiresolution.py --quick                          # generated birds
    python examples/birds_multiresolution.py --data FOLDER                    # the source's vote
    python examples/birds_multiresolution.py --data FOLDER --table --seeds 0 1 2

`FOLDER` is laid out as in `birds_beit.py`. Called again with the same `--out`, finished runs are
read back and a broken one goes on.

The source fine-tuned BEiT-large (lr 3e-5) and DINOv2-large (lr 1e-5) at 224 px on low and high
resolution together: AdamW, cosine annealing, batches of 64, 10 epochs, 16-bit mixed precision,
CutMix, cosine loss, five stratified folds, soft vote over folds and models. Scored on low images:

    --variant        public / private board
    beit             .97961 / .98208
    dinov2           .98122 / .98303
    beit+dinov2      .98313 / .98274

It claims that both resolutions together beat one, that the cosine loss helps, that CutMix beats
MixUp, and that training at 384 or 512 converges badly. `--table` trains a row for each on one
stratified hold-out of low images, with as many images seen in every row. `pair` goes further than
the source: a teacher that saw the high images guides a student that sees the low ones. What came
out on a small set stands in docs/experiments/birds_multiresolution.md.
"""

import csv
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import small_backbones  # noqa: F401, two small names for timm
import torch
import tyro

from lowres_vision.augment import BatchTransform
from lowres_vision.data import DataError, Manifest, StratifiedFolds, collate, make_toy_pairs
from lowres_vision.ensemble import soft_vote, write_submission
from lowres_vision.losses import CosineLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator, MixupCollator
from lowres_vision.models import LowResClassifier
from lowres_vision.training import Classifier, Distillation, Fold, cross_validate, load_teacher


@dataclasses.dataclass(frozen=True)
class Row:
    resolution: Literal["low", "high", "both", "pair"] = "both"
    loss: Literal["cosine", "ce"] = "cosine"
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"
    size: int | None = None  # default: --image-size


VOTES = {"beit": (0,), "dinov2": (1,), "beit+dinov2": (0, 1)}  # backbones by position
CLAIMS = {
    f"{resolution}-{loss}": Row(resolution, loss)
    for loss in ("ce", "cosine")
    for resolution in ("low", "high", "both", "pair")  # a pair's teacher is the row `high`
}
CLAIMS |= {"none": Row(mixing="none"), "mixup": Row(mixing="mixup")}
CLAIMS |= {f"size-{size}": Row(size=size) for size in (384, 512)}
Variant = Literal[(*VOTES, *CLAIMS)]


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("birds_multiresolution-%Y%m%d-%H%M%S")
    quick: bool = False  # generated birds, small networks from scratch
    variant: Variant = "beit+dinov2"
    table: bool = False  # a row for each claim
    rows: tuple[Variant, ...] = tuple(CLAIMS)  # those of the table
    seeds: tuple[int, ...] = (0,)
    backbones: tuple[str, ...] = (
        "beit_large_patch16_224.in22k_ft_in22k",
        "vit_large_patch14_dinov2.lvd142m",
    )
    lrs: tuple[float, ...] = (3e-5, 1e-5)
    checkpoint_paths: tuple[Path, ...] = ()  # weights files; default: fetched by timm
    timm_args: dict[str, int | str] = dataclasses.field(default_factory=dict)
    pretrained: bool = True
    image_size: int = 224
    folds: int = 5
    epochs: int = 10
    batch_size: int = 64
    crop: float = 0.35  # smallest share of the image that a training crop keeps
    flip: float = 0.5
    cutmix: float = 0.5  # probability of a mixed batch
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "16-mixed"


QUICK = {
    "backbones": ("test_vit", "test_resnet"),
    "lrs": (1e-3, 3e-3),
    "pretrained": False,
    "image_size": 64,
    "folds": 2,
    "epochs": 6,
    "batch_size": 16,
    "precision": "32-true",
}


def build(
    settings: Settings, row: Row, position: int, classes: int, teachers: Path, *, fold: Fold
) -> Classifier:
    """Return the classifier of a row; `teachers` holds the folds of the high-resolution run."""

    def model() -> LowResClassifier:
        weights = settings.checkpoint_paths
        return LowResClassifier(
            settings.backbones[position],
            classes,
            image_size=row.size or settings.image_size,
            pretrained=settings.pretrained and not weights,
            checkpoint_path=weights[position] if weights else None,
            **settings.timm_args,
        )

    student = model()
    pairing = None
    if row.resolution == "pair":
        weights = teachers / f"fold_{fold.index}" / "best.safetensors"
        pairing = Distillation(load_teacher(model(), weights, fold=fold))
    return Classifier(
        student,
        CrossEntropyLoss() if row.loss == "ce" else CosineLoss(cross_entropy=0.1),
        transform=BatchTransform(
            student.image_size,
            mean=student.mean,
            std=student.std,
            scale=(settings.crop, 1.0),
            flip=settings.flip,
        ),
        optimizer=partial(torch.optim.AdamW, lr=settings.lrs[position]),
        pairing=pairing,
    )


def train(settings: Settings, row: Row, manifest: Manifest, **options: Any) -> Any:
    """Cross-validate with what is common to all rows."""
    size, classes = row.size or settings.image_size, len(manifest.classes)
    collators = {"cutmix": CutMixCollator, "mixup": MixupCollator}
    mix = collate
    if row.mixing in collators and settings.cutmix:
        mix = collators[row.mixing](classes, p=settings.cutmix, size=size)
    return cross_validate(
        manifest,
        resolution=row.resolution,
        collate=mix,
        samples_per_epoch=len(manifest),  # as many in every row, one resolution or two
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        monitor="val_accuracy",
        precision=settings.precision,
        **options,
    )


def claim(settings: Settings, name: str, manifest: Manifest) -> list[float]:
    """Train a row of the table; return the held-out accuracy after the last epoch, by seed."""
    row, scores = CLAIMS[name], []
    held_out = StratifiedFolds(settings.folds).hold_out(manifest.labels)[1]
    folds = np.full(len(manifest), -1)
    folds[held_out] = 0
    for seed in settings.seeds:
        teachers = settings.out / f"high-{row.loss}" / f"seed_{seed}"
        if row.resolution == "pair" and not teachers.exists():
            claim(dataclasses.replace(settings, seeds=(seed,)), f"high-{row.loss}", manifest)
        make = partial(build, settings, row, 0, len(manifest.classes), teachers)
        train(
            settings, row, manifest, build=make, out=settings.out / name, folds=folds, seeds=(seed,)
        )
        with (settings.out / name / f"seed_{seed}/fold_0/metrics.csv").open() as file:
            logged = [line["val_accuracy"] for line in csv.DictReader(file)]
        scores.append(float([score for score in logged if score][-1]))
    return scores


def vote(settings: Settings, manifest: Manifest, test: Manifest) -> None:
    """Train every fold of the variant's backbones; write the submission of their vote."""
    row, classes = Row(), len(manifest.classes)
    result = train(
        settings,
        row,
        manifest,
        build={
            settings.backbones[position]: partial(build, settings, row, position, classes, Path())
            for position in VOTES[settings.variant]
        },
        out=settings.out,
        folds=StratifiedFolds(settings.folds),
        test=test,
        seeds=settings.seeds,
    )
    blend = soft_vote(result.stack)
    for member, found in zip(result.members, result.stack, strict=True):
        score = (found.argmax(1) == manifest.labels).mean()
        print(f"{member.model}, seed {member.seed}: {score:.4f} out of fold")
    print(f"vote, out of fold: {(blend.argmax(1) == manifest.labels).mean():.4f}")
    print(
        write_submission(
            settings.out / "submission.csv",
            soft_vote(result.test_stack.reshape(-1, len(test), classes)),
            ids=test.ids,
            classes=manifest.classes,
            sample=settings.data / "sample_submission.csv",
        )
    )


def main(settings: Settings) -> None:
    if settings.quick:
        torch.set_num_threads(1)
        made = make_toy_pairs(settings.out / "data")
        settings = dataclasses.replace(settings, data=made, **QUICK)
    if settings.data is None:
        raise SystemExit("give --data FOLDER, or --quick to try generated birds")
    manifest = Manifest.read_csv(settings.data / "train.csv")
    if not settings.table and settings.variant in VOTES:
        test = Manifest.read_csv(settings.data / "test.csv", classes=manifest.classes)
        return vote(settings, manifest, test)
    lines = ["| variant | accuracy, mean | spread | seeds |", "|---|---|---|---|"]
    for name in settings.rows if settings.table else [settings.variant]:
        scores = claim(settings, name, manifest)
        each = " ".join(f"{score:.4f}" for score in scores)
        lines.append(f"| {name} | {np.mean(scores):.4f} | {np.std(scores):.4f} | {each} |")
        (settings.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return None


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
