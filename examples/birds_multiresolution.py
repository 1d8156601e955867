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
MixUp and RandAugment, that training at 384 or 512 converges badly, that images enlarged by
super-resolution do not beat the plain ones, and that test-time views hurt. `--table` trains a row
for each on one stratified hold-out of low images, with as many images seen in every row;
`--view-sizes` adds a column with views. `pair` goes further than the source: a teacher that saw the
high images guides a student that sees the low ones. What came out on a small set stands in
docs/experiments/birds_multiresolution.md.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from experiment import Table, network, spread, start
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform, PerImage, SuperResolution
from lowres_vision.data import (
    Manifest,
    MultiResolutionDataset,
    StratifiedFolds,
    collate,
    make_toy_pairs,
)
from lowres_vision.ensemble import (
    OutOfFold,
    accuracy,
    check_sample,
    make_views,
    soft_vote,
    summarise,
)
from lowres_vision.losses import CosineLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator, MixupCollator
from lowres_vision.plots import ensemble_table
from lowres_vision.training import (
    Classifier,
    CrossValidation,
    Distillation,
    Fold,
    PseudoLabels,
    cross_validate,
    load_teacher,
    predict_views,
    write_report,
)

LOSSES = {"ce": CrossEntropyLoss(), "cosine": CosineLoss(cross_entropy=0.1)}


@dataclasses.dataclass(frozen=True)
class Row:
    resolution: Literal["low", "high", "both", "pair"] = "both"
    loss: Literal["ce", "cosine"] = "cosine"
    mixing: type[CutMixCollator | MixupCollator] | None = CutMixCollator
    augment: PerImage | None = None
    size: int | None = None  # default: --image-size
    enlarger: Literal["srcnn", "span"] | None = None  # of low images, in training and held out


VOTES = {"beit": (0,), "dinov2": (1,), "beit+dinov2": (0, 1)}  # backbones by position
CLAIMS = {
    f"{resolution}-{loss}": Row(resolution, loss)
    for loss in LOSSES
    for resolution in ("low", "high", "both", "pair")  # a pair's teacher is the row `high`
}
CLAIMS |= {"none": Row(mixing=None), "mixup": Row(mixing=MixupCollator)}
CLAIMS |= {"randaugment": Row(mixing=None, augment=PerImage(v2.RandAugment()))}
CLAIMS |= {f"size-{size}": Row(size=size) for size in (96, 160, 192, 384, 512)}
CLAIMS |= {name: Row("high", enlarger=name) for name in ("srcnn", "span")}  # beside low-cosine


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("birds_multiresolution-%Y%m%d-%H%M%S")
    quick: bool = False  # generated birds, small networks from scratch
    variant: Literal[(*VOTES, *CLAIMS)] = "beit+dinov2"
    row: Literal[tuple(CLAIMS)] = "both-cosine"  # what the models of a vote are trained on
    pseudo_labels: tuple[Path, ...] = ()  # earlier --out folders that label the test rows of a vote
    confidence: float = 0.6  # of their vote, from which on a test row is trained on
    table: bool = False  # a row for each claim
    rows: tuple[Literal[tuple(CLAIMS)], ...] = tuple(CLAIMS)[:-1]  # of the table; more: span
    seeds: tuple[int, ...] = (0,)
    backbones: tuple[str, ...] = (
        "beit_large_patch16_224.in22k_ft_in22k",
        "vit_large_patch14_dinov2.lvd142m",
    )
    lrs: tuple[float, ...] = (3e-5, 1e-5)
    checkpoint_paths: tuple[Path, ...] = ()  # weights files; default: fetched by timm
    timm_args: dict[str, int | str] = dataclasses.field(default_factory=dict)
    pretrained: bool = True
    mean: tuple[float, float, float] | None = None  # default: as the backbone was pretrained
    std: tuple[float, float, float] | None = None
    train_only: tuple[str, ...] = ("*",)  # names or patterns of parameters
    image_size: int = 224
    view_sizes: tuple[int, ...] = ()  # at which the image and its mirror image are predicted too
    view_crop: float | None = 0.875  # side of cropped views, of the image's; None for no crops
    folds: int = 5
    epochs: int = 10
    batch_size: int = 64
    warmup: float = 0.0  # share of the steps
    crop: float = 0.35  # smallest share of the image that a training crop keeps
    flip: float = 0.5
    cutmix: float = 0.5  # probability of a mixed batch
    sr_weights: Path | None = None  # of the row `span`, any file that spandrel reads
    sr_steps: int = 1000  # in which the row `srcnn` is trained on the training rows' pairs
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "16-mixed"

    def __post_init__(self) -> None:
        needed = 1 if self.table else 1 + max(VOTES.get(self.variant, (0,)))
        given = self.backbones, self.lrs, self.checkpoint_paths or self.lrs
        if min(map(len, given)) < needed:
            raise ValueError(
                f"--variant {self.variant} takes {needed} --backbones, --lrs and, if any, "
                f"--checkpoint-paths; got {', '.join(str(len(g)) for g in given)}"
            )
        if self.row == "srcnn":
            raise ValueError("the row srcnn learns from one fold's rows: it is for --table")
        asked = {self.row, self.variant, *(self.rows if self.table else ())}
        if "span" in asked and self.sr_weights is None:
            raise ValueError(
                "the row `span` takes --sr-weights FILE, a network that spandrel reads"
            )


QUICK = {
    "backbones": ("test_vit", "test_resnet"),
    "lrs": (1e-3, 3e-3),
    "pretrained": False,
    "image_size": 64,
    "view_sizes": (64,),
    "folds": 2,
    "epochs": 6,
    "batch_size": 16,
    "sr_steps": 20,
    "precision": "32-true",
}


def build(
    settings: Settings, row: Row, position: int, classes: int, teachers: Path, *, fold: Fold
) -> Classifier:
    """Return the classifier of a row; `teachers` holds a folder with weights for each fold."""
    weights = settings.checkpoint_paths[position] if settings.checkpoint_paths else None
    size, backbone = row.size or settings.image_size, settings.backbones[position]
    new = partial(network, settings, backbone, classes, weights, image_size=size)
    student, pairing = new(), None
    if row.resolution == "pair":
        taught = teachers / f"fold_{fold.index}" / "best.safetensors"
        pairing = Distillation(load_teacher(new(), taught, fold=fold))
    transform = BatchTransform(
        student.image_size,
        mean=settings.mean or student.mean,
        std=settings.std or student.std,
        scale=(settings.crop, 1.0),
        flip=settings.flip,
        augment=row.augment,
    )
    return Classifier(
        student,
        LOSSES[row.loss],
        transform=transform,
        optimizer=partial(torch.optim.AdamW, lr=settings.lrs[position]),
        warmup=settings.warmup,
        unfreeze={0: settings.train_only},
        pairing=pairing,
    )


def train(
    settings: Settings, name: str, manifest: Manifest, out: Path, high: Path, **runs: Any
) -> CrossValidation:
    """Cross-validate a row, a pair's teachers in `high` before it, then predict the views."""
    row, classes = CLAIMS[name], len(manifest.classes)
    size = row.size or settings.image_size
    if row.resolution == "pair":
        plain, first = dataclasses.replace(settings, view_sizes=()), runs["seeds"][:1]
        train(plain, f"high-{row.loss}", manifest, high, high, **runs | {"seeds": first})
    builds = {}
    for position in (0,) if settings.table else VOTES.get(settings.variant, (0,)):
        backbone = settings.backbones[position]
        teachers = high / f"{backbone}-high-{row.loss}-{size}" / f"seed_{runs['seeds'][0]}"
        make = partial(build, settings, row, position, classes, teachers)
        builds[f"{backbone}-{name}-{size}"] = make
    held_out = "high" if row.enlarger else "low"
    result = cross_validate(
        manifest,
        builds,
        out=out,
        resolution=row.resolution,
        held_out_resolution=held_out,
        collate=row.mixing(classes, p=settings.cutmix, size=size) if row.mixing else collate,
        samples_per_epoch=len(manifest),  # as many in every row, one resolution or two
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        precision=settings.precision,
        monitor="last",  # no epoch is chosen on the rows that are scored
        **runs,
    )
    if settings.view_sizes:
        other = [side for side in settings.view_sizes if side != size]
        views = make_views(crop=settings.view_crop, sizes=other)
        test = runs.get("test")
        predict_views(manifest, builds, views, out=out, test=test, resolution=held_out)
    return result


def enlarge(settings: Settings, row: Row, manifest: Manifest, seen: Any = ()) -> Manifest:
    """Put images enlarged by the row's network, which may learn from `seen`, in place of high."""
    if row.enlarger is None:
        return manifest
    file = settings.sr_weights
    if row.enlarger == "srcnn":
        file = settings.out / "srcnn.safetensors"
        if not file.exists():
            pairs = [*MultiResolutionDataset(manifest, rows=seen, resolution="pair")]
            low, high = [pair.low for pair in pairs], [pair.high for pair in pairs]
            SuperResolution.fit(low, high, steps=settings.sr_steps).save(file)
    return SuperResolution.from_file(file).apply_to(manifest, settings.out / "enlarged")


def claim(settings: Settings, name: str, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Train a row of the table; return the held-out accuracy by seed, plain and with views."""
    row, out, plain, viewed = CLAIMS[name], settings.out / name, [], []
    folds = StratifiedFolds(settings.folds).assign(manifest, share=1 / settings.folds)
    manifest = enlarge(settings, row, manifest, np.flatnonzero(folds == -1))
    for seed in settings.seeds:
        high = settings.out / f"high-{row.loss}"
        result = train(settings, name, manifest, out, high, folds=folds, seeds=(seed,))
        ledger = OutOfFold(out / "ledger")
        members = [member for member in ledger.members() if member.seed == seed]
        plain.append(result.accuracy)
        viewed.append(accuracy(soft_vote(ledger.probabilities(members)), ledger.labels))
    return plain, viewed


def vote(settings: Settings, manifest: Manifest, test: Manifest) -> None:
    """Train every fold of the variant's backbones; write their vote and a report."""
    sample = settings.data / "sample_submission.csv"
    check_sample(sample, ids=test.ids, classes=manifest.classes)
    out, high = settings.out, settings.out.with_name(f"{settings.out.name}-teachers")
    manifest, test = (enlarge(settings, CLAIMS[settings.row], rows) for rows in (manifest, test))
    runs: dict[str, Any] = {"folds": StratifiedFolds(settings.folds), "seeds": settings.seeds}
    if settings.pseudo_labels:
        runs["pseudo_labels"] = PseudoLabels(settings.pseudo_labels, settings.confidence)
    train(settings, settings.row, manifest, out, high, test=test, **runs)
    summary = summarise([out], metric="accuracy", weights="equal", views="all")
    print(summary.table())
    ensemble_table(summary, out / "ensemble.png")
    print(summary.write_submission(out / "submission.csv", sample=sample))
    write_report(out, manifest=manifest, test=test, pictures=out)


def main(settings: Settings) -> None:
    manifest = Manifest.read_csv(settings.data / "train.csv")
    if not settings.table and settings.variant in VOTES:
        test = Manifest.read_csv(settings.data / "test.csv", classes=manifest.classes)
        return vote(settings, manifest, test)
    table = Table(settings.out / "table.md", "variant", "accuracy by seed", "with views")
    for name in settings.rows if settings.table else [settings.variant]:
        plain, viewed = claim(settings, name, manifest)
        table.add(name, spread(plain), spread(viewed) if settings.view_sizes else "-")
    print(table)
    return None


def generate(settings: Settings) -> Path:
    return make_toy_pairs(settings.out / "data")


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
