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
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from experiment import Table, network, start, submit
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform, PerImage, SuperResolution
from lowres_vision.data import (
    Manifest,
    MultiResolutionDataset,
    StratifiedFolds,
    collate,
    make_toy_pairs,
)
from lowres_vision.ensemble import OutOfFold, View, accuracy, make_views, soft_vote
from lowres_vision.losses import CosineLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator, MixupCollator
from lowres_vision.training import (
    Classifier,
    CrossValidation,
    Distillation,
    Fold,
    PseudoLabels,
    cross_validate,
    load_teacher,
    predict_views,
)


@dataclasses.dataclass(frozen=True)
class Row:
    resolution: Literal["low", "high", "both", "pair"] = "both"
    loss: Literal["cosine", "ce"] = "cosine"
    mixing: type[CutMixCollator | MixupCollator] | None = CutMixCollator
    randaugment: bool = False
    size: int | None = None  # default: --image-size
    enlarger: Literal["srcnn", "span"] | None = None  # of low images, in training and held out
    held_out: Literal["low", "high"] = "low"


VOTES = {"beit": (0,), "dinov2": (1,), "beit+dinov2": (0, 1)}  # backbones by position
CLAIMS = {
    f"{resolution}-{loss}": Row(resolution, loss)
    for loss in ("ce", "cosine")
    for resolution in ("low", "high", "both", "pair")  # a pair's teacher is the row `high`
}
CLAIMS |= {"none": Row(mixing=None), "mixup": Row(mixing=MixupCollator)}
CLAIMS |= {"randaugment": Row(mixing=None, randaugment=True)}
CLAIMS |= {f"size-{size}": Row(size=size) for size in (96, 160, 192, 384, 512)}
CLAIMS |= {  # to be held against low-cosine
    name: Row("high", enlarger=name, held_out="high") for name in ("srcnn", "span")
}


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("birds_multiresolution-%Y%m%d-%H%M%S")
    quick: bool = False  # generated birds, small networks from scratch
    variant: Literal[(*VOTES, *CLAIMS)] = "beit+dinov2"
    row: Literal[tuple(CLAIMS)] = "both-cosine"  # what the models of a vote are trained on
    pseudo_labels: tuple[Path, ...] = ()  # earlier --out folders that label the test rows of a vote
    confidence: float = 0.6  # of their vote, from which on a test row is trained on
    teachers: Path | None = None  # a pair vote's; default: OUT-teachers, trained first
    table: bool = False  # a row for each claim
    rows: tuple[Literal[tuple(CLAIMS)], ...] = tuple(CLAIMS)  # those of the table
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
    train_only: tuple[str, ...] = ()  # names or patterns of parameters; default: all
    image_size: int = 224
    view_sizes: tuple[int, ...] = ()  # at which flipped and cropped views are predicted
    view_crop: float | None = 0.875  # side of the crops, of the image's; None for flips alone
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
    """Return the classifier of a row; `teachers` holds the folds of the high-resolution run."""
    weights = settings.checkpoint_paths[position] if settings.checkpoint_paths else None
    size, backbone = row.size or settings.image_size, settings.backbones[position]
    new = partial(network, settings, backbone, classes, weights, image_size=size)
    student, pairing = new(), None
    if row.resolution == "pair":
        taught = teachers / f"fold_{fold.index}" / "best.safetensors"
        pairing = Distillation(load_teacher(new(), taught, fold=fold))
    return Classifier(
        student,
        CrossEntropyLoss() if row.loss == "ce" else CosineLoss(cross_entropy=0.1),
        transform=BatchTransform(
            student.image_size,
            mean=settings.mean or student.mean,
            std=settings.std or student.std,
            scale=(settings.crop, 1.0),
            flip=settings.flip,
            augment=PerImage(v2.RandAugment()) if row.randaugment else None,
        ),
        optimizer=partial(torch.optim.AdamW, lr=settings.lrs[position]),
        warmup=settings.warmup,
        unfreeze={0: settings.train_only} if settings.train_only else None,
        pairing=pairing,
    )


def train(
    settings: Settings, row: Row, manifest: Manifest, builds: Mapping | partial, **runs: Any
) -> CrossValidation:
    """Cross-validate with what is common to all rows, then predict the views asked for."""
    size, classes = row.size or settings.image_size, len(manifest.classes)
    mixes = row.mixing is not None and settings.cutmix > 0
    result = cross_validate(
        manifest,
        builds,
        resolution=row.resolution,
        held_out_resolution=row.held_out,
        collate=row.mixing(classes, p=settings.cutmix, size=size) if mixes else collate,
        samples_per_epoch=len(manifest),  # as many in every row, one resolution or two
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        precision=settings.precision,
        monitor="last",  # no epoch is chosen on the rows that are scored
        **runs,
    )
    views = [View()] + [
        dataclasses.replace(view, name=f"{view.name} at {side}", size=side)
        for side in settings.view_sizes
        for view in make_views(crop=settings.view_crop)
        if (view.name, side) != ("plain", size)
    ]
    if settings.view_sizes:
        out, test = runs["out"], runs.get("test")
        predict_views(manifest, builds, views, out=out, test=test, resolution=row.held_out)
    return result


def enlarge(settings: Settings, row: Row, manifest: Manifest, seen: Any = ()) -> Manifest:
    """Put images enlarged by the row's network, which may learn from `seen`, in place of high."""
    if row.enlarger is None:
        return manifest
    file = settings.sr_weights
    if row.enlarger == "srcnn":
        file = settings.out / "srcnn.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            pairs = [*MultiResolutionDataset(manifest, rows=seen, resolution="pair")]
            low, high = [pair.low for pair in pairs], [pair.high for pair in pairs]
            SuperResolution.fit(low, high, steps=settings.sr_steps).save(file)
    if file is None:
        raise ValueError("the row `span` takes --sr-weights FILE, a network that spandrel reads")
    return SuperResolution.from_file(file).apply_to(manifest, settings.out / "enlarged")


def claim(settings: Settings, name: str, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Train a row of the table; return the held-out accuracy by seed, plain and with views."""
    row, out, plain, viewed = CLAIMS[name], settings.out / name, [], []
    folds = StratifiedFolds(settings.folds).assign(manifest, share=1 / settings.folds)
    manifest = enlarge(settings, row, manifest, np.flatnonzero(folds == -1))
    for seed in settings.seeds:
        teacher = f"high-{row.loss}"
        if row.resolution == "pair":
            claim(dataclasses.replace(settings, seeds=(seed,), view_sizes=()), teacher, manifest)
        taught = settings.out / teacher / f"seed_{seed}"
        make = partial(build, settings, row, 0, len(manifest.classes), taught)
        result = train(settings, row, manifest, make, out=out, folds=folds, seeds=(seed,))
        ledger = OutOfFold(out / "ledger")
        members = [member for member in ledger.members() if member.seed == seed]
        plain.append(result.accuracy)
        viewed.append(accuracy(soft_vote(ledger.probabilities(members)), ledger.labels))
    return plain, viewed


def vote(settings: Settings, manifest: Manifest, test: Manifest) -> None:
    """Train every fold of the variant's backbones; write their vote and a report."""
    row, out, classes = CLAIMS[settings.row], settings.out, len(manifest.classes)
    if row.enlarger == "srcnn":
        raise ValueError("the row srcnn learns from one fold's rows: it is for --table")
    given = settings.backbones, settings.lrs, settings.checkpoint_paths or settings.lrs
    if max(VOTES[settings.variant]) >= min(map(len, given)):
        raise ValueError(
            f"--variant {settings.variant} takes {1 + max(VOTES[settings.variant])} --backbones, "
            f"--lrs and, if any, --checkpoint-paths; got {', '.join(str(len(g)) for g in given)}"
        )
    manifest, test = (enlarge(settings, row, rows) for rows in (manifest, test))
    folds = StratifiedFolds(settings.folds)
    teachers = settings.teachers or out.with_name(f"{out.name}-teachers")
    builds = {}
    for position in VOTES[settings.variant]:
        name = settings.backbones[position]
        make = partial(build, position=position, classes=classes, teachers=teachers / name)
        if row.resolution == "pair":
            high = dataclasses.replace(CLAIMS[f"high-{row.loss}"], held_out="high")
            plain = dataclasses.replace(settings, view_sizes=())
            runs = {"out": teachers / name, "folds": folds}
            taught = train(plain, high, manifest, partial(make, settings, high), **runs)
            print(f"{name}, the teacher, on high images: {taught.accuracy:.4f} out of fold")
        builds[f"{name}-{settings.row}-{settings.image_size}"] = partial(make, settings, row)
    runs = {"out": out, "folds": folds, "seeds": settings.seeds, "test": test}
    if settings.pseudo_labels:
        runs["pseudo_labels"] = PseudoLabels(settings.pseudo_labels, settings.confidence)
    result = train(settings, row, manifest, builds, **runs)
    for member in result.members:
        score = result.of(member.model, seed=member.seed).accuracy
        print(f"{member.model}, seed {member.seed}: {score:.4f} out of fold")
    print(f"vote, out of fold: {accuracy(soft_vote(result.stack), manifest.labels):.4f}")
    print(submit(settings, manifest, test, result.test_stack.reshape(-1, len(test), classes)))


def main(settings: Settings) -> None:
    manifest = Manifest.read_csv(settings.data / "train.csv")
    if not settings.table and settings.variant in VOTES:
        test = Manifest.read_csv(settings.data / "test.csv", classes=manifest.classes)
        return vote(settings, manifest, test)
    columns = ("variant", "accuracy, mean", "spread", "seeds", "with views")
    table = Table(settings.out / "table.md", *columns)
    for name in settings.rows if settings.table else [settings.variant]:
        if settings.table and name == "span" and settings.sr_weights is None:
            print("span: left out, it takes --sr-weights FILE")
            continue
        plain, viewed = claim(settings, name, manifest)
        each = " ".join(f"{score:.4f}" for score in plain)
        views = f"{np.mean(viewed):.4f}" if settings.view_sizes else ""
        table.add(name, f"{np.mean(plain):.4f}", f"{np.std(plain):.4f}", each, views)
    print(table)
    return None


def generate(settings: Settings) -> Path:
    return make_toy_pairs(settings.out / "data")


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
