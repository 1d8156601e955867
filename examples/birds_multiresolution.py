"""Birds at two resolutions with two backbones: folds, test-time views and the final vote.

    python examples/birds_multiresolution.py --quick                          # generated birds
    python examples/birds_multiresolution.py --data FOLDER                    # the source's vote
    python examples/birds_multiresolution.py --data FOLDER --table            # alone and together

`FOLDER` is laid out as in `birds_beit.py`. Called again with the same `--out`, finished runs are
read back and a broken one goes on.

The source fine-tuned BEiT-large (lr 3e-5) and DINOv2-large (lr 1e-5) at 224 px on low and high
resolution together: AdamW, cosine annealing, batches of 64, 10 epochs, 16-bit mixed precision,
CutMix, cosine loss, five stratified folds, soft vote over folds and models. Scored on low images.
`birds_claims.py` asks what each of these choices is worth.

`--resolution pair` goes further than the source: a teacher that saw the high images guides a
student that sees the low ones. `--resolution enlarged` trains and predicts on low images that a
super-resolution network enlarged. What came out on a small set stands in
docs/experiments/birds_multiresolution.md.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from experiment import Table, network, start
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform, PerImage, SuperResolution
from lowres_vision.data import Manifest, StratifiedFolds, collate, make_toy_pairs
from lowres_vision.ensemble import check_sample, make_views, summarise
from lowres_vision.losses import CosineLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator, MixupCollator
from lowres_vision.plots import ensemble_table
from lowres_vision.training import (
    Classifier,
    Distillation,
    Fold,
    PseudoLabels,
    cross_validate,
    load_teacher,
    predict_views,
    write_report,
)

BACKBONES = ("beit", "dinov2")
VOTES = {  # name: the source's accuracy, public / private board
    "beit": ".97961 / .98208",
    "dinov2": ".98122 / .98303",
    "beit+dinov2": ".98313 / .98274",
}
LOSSES = {"ce": CrossEntropyLoss(), "cosine": CosineLoss(cross_entropy=0.1)}
MIXING = {"cutmix": CutMixCollator, "mixup": MixupCollator}


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("birds_multiresolution-%Y%m%d-%H%M%S")
    quick: bool = False  # generated birds, small networks from scratch
    variant: Literal[tuple(VOTES)] = "beit+dinov2"
    table: bool = False  # every variant, with the source's figures beside ours
    seeds: tuple[int, ...] = (0,)
    resolution: Literal["low", "high", "both", "pair", "enlarged"] = "both"  # to train on
    sr_weights: Path | None = None  # what enlarges, any file that spandrel reads
    loss: Literal["ce", "cosine"] = "cosine"
    augment: Literal["none", "cutmix", "mixup", "randaugment"] = "cutmix"
    mixed: float = 0.5  # probability of a mixed batch
    crop: float = 0.35  # smallest share of the image that a training crop keeps
    flip: float = 0.5
    pseudo_labels: tuple[Path, ...] = ()  # earlier --out folders that label the test rows
    confidence: float = 0.6  # of their vote, from which on a test row is trained on
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
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "16-mixed"

    def __post_init__(self) -> None:
        self.check_backbones(1 + max(map(BACKBONES.index, self.asked())))
        if self.resolution == "enlarged" and self.sr_weights is None:
            raise ValueError("--resolution enlarged takes --sr-weights FILE, for spandrel to read")

    def asked(self) -> Sequence[str]:
        return BACKBONES if self.table else self.variant.split("+")

    def check_backbones(self, needed: int) -> None:
        given = self.backbones, self.lrs, self.checkpoint_paths or self.lrs
        if min(map(len, given)) < needed:
            raise ValueError(
                f"--variant {self.variant} takes {needed} --backbones, --lrs and, if any, "
                f"--checkpoint-paths; got {', '.join(str(len(g)) for g in given)}"
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
    "precision": "32-true",
}


def build(
    settings: Settings, position: int, classes: int, teacher: Path | None, *, fold: Fold
) -> Classifier:
    """Return the classifier of a fold; `teacher` holds a folder with weights for each."""
    size, backbone = settings.image_size, settings.backbones[position]
    weights = settings.checkpoint_paths[position] if settings.checkpoint_paths else None
    new = partial(network, settings, backbone, classes, weights, image_size=size)
    student, pairing = new(), None
    if teacher is not None:
        taught = teacher / f"fold_{fold.index}" / "best.safetensors"
        pairing = Distillation(load_teacher(new(), taught, fold=fold))
    transform = BatchTransform(
        size,
        mean=settings.mean or student.mean,
        std=settings.std or student.std,
        scale=(settings.crop, 1.0),
        flip=settings.flip,
        augment=PerImage(v2.RandAugment()) if settings.augment == "randaugment" else None,
    )
    return Classifier(
        student,
        LOSSES[settings.loss],
        transform=transform,
        optimizer=partial(torch.optim.AdamW, lr=settings.lrs[position]),
        warmup=settings.warmup,
        unfreeze={0: settings.train_only},
        pairing=pairing,
    )


def train(
    settings: Settings, position: int, manifest: Manifest, out: Path, teachers: Path, **runs: Any
) -> Path:
    """Train and predict a backbone, a pair's teachers before it; return the first seed's folder."""
    classes, size, teacher = len(manifest.classes), settings.image_size, None
    if settings.resolution == "pair":
        one = {"seeds": settings.seeds[:1], "view_sizes": ()}
        high = dataclasses.replace(settings, resolution="high", **one)
        teacher = train(high, position, manifest, teachers, teachers, **runs)
    trained_on = f"{settings.resolution}-{settings.loss}-{settings.augment}"
    name = f"{settings.backbones[position]}-{trained_on}-{size}"
    builds = {name: partial(build, settings, position, classes, teacher)}
    held_out = "high" if settings.resolution == "enlarged" else "low"
    mixing = MIXING.get(settings.augment)
    cross_validate(
        manifest,
        builds,
        out=out,
        seeds=settings.seeds,
        resolution=settings.resolution.replace("enlarged", "high"),
        held_out_resolution=held_out,
        collate=mixing(classes, p=settings.mixed, size=size) if mixing else collate,
        samples_per_epoch=len(manifest),  # as many, one resolution or two
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
    return out / name / f"seed_{settings.seeds[0]}"


def main(settings: Settings) -> None:
    sample = settings.data / "sample_submission.csv"
    manifest = Manifest.read_csv(settings.data / "train.csv")
    test = Manifest.read_csv(settings.data / "test.csv", classes=manifest.classes)
    check_sample(sample, ids=test.ids, classes=manifest.classes)
    if settings.resolution == "enlarged":
        enlarge = SuperResolution.from_file(settings.sr_weights)
        folder = settings.out / "enlarged"
        manifest, test = enlarge.apply_to(manifest, folder), enlarge.apply_to(test, folder)
    earlier = settings.pseudo_labels
    labels = PseudoLabels(earlier, settings.confidence) if earlier else None
    runs = {"folds": StratifiedFolds(settings.folds), "test": test, "pseudo_labels": labels}

    for backbone in settings.asked():
        out, teachers = settings.out / backbone, Path(f"{settings.out}-teachers") / backbone
        train(settings, BACKBONES.index(backbone), manifest, out, teachers, **runs)
        write_report(out, manifest=manifest, test=test, pictures=out)
    table = Table(settings.out / "table.md", "variant", "out-of-fold accuracy", "the source")
    for name in VOTES if settings.table else (settings.variant,):
        outs = [settings.out / backbone for backbone in name.split("+")]
        vote = summarise(outs, metric="accuracy", weights="equal", views="all")
        print(vote.table())
        ensemble_table(vote, settings.out / f"ensemble_{name}.png")
        print(vote.write_submission(settings.out / f"submission_{name}.csv", sample=sample))
        table.add(name, f"{vote.blend.score:.4f}", VOTES[name])
    print(table)


def generate(settings: Settings) -> Path:
    return make_toy_pairs(settings.out / "data")


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
