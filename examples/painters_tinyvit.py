"""Painters with TinyViT: from a plain EfficientNet to style transfer, one step at a time.

    python examples/painters_tinyvit.py --quick                       # generated pictures
    python examples/painters_tinyvit.py --data FOLDER --variant adamw
    python examples/painters_tinyvit.py --data FOLDER --table

`FOLDER` holds `train.csv` (img_path, artist), `test.csv` (img_path, and artist where it is known)
and, if validation images are not to be drawn from `train.csv`, `val.csv`. Called again with the
same `--out`, finished rows are read back and a broken one goes on.

The source told 50 painters apart, from 629 works (van Gogh) down to 21 (Pollock), by macro-F1; it
trained on whole works, and its test images are quarter crops. Each row of its ladder adds to the
one before until `adamw`, the reference that the others change one thing of: CutMix, focal loss, a
sampler with weight 1 / log(works of the painter), new works of the rarest painters by style
transfer, SAM, colour (the augmentation's stronger form), and combinations by their first letters.
What came out on a small set stands in docs/experiments/painters_tinyvit.md.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import small_backbones  # noqa: F401, two small names for timm
import torch
import tyro
from torch import Tensor, nn
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform, PerImage, StyleTransfer, painters_augmentation
from lowres_vision.data import (
    BalancedSampler,
    DataError,
    Manifest,
    StratifiedFolds,
    collate,
    make_toy_folders,
)
from lowres_vision.ensemble import macro_f1, soft_vote
from lowres_vision.losses import CrossEntropyLoss, FocalLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.models import LowResClassifier
from lowres_vision.optim import SAM, CosineWarmRestarts
from lowres_vision.training import Classifier, cross_validate

TINYVIT = "tiny_vit_21m_384.dist_in22k_ft_in1k"


@dataclasses.dataclass(frozen=True)
class Row:
    source: str  # validation F1, public / private board
    backbone: str = TINYVIT
    size: int = 384
    head: bool = True  # LayerNorm, GELU, Dropout before the classifier
    augment: Literal["none", "list", "colour"] = "list"
    restarts: bool = True
    adamw: bool = True
    cutmix: bool = False
    focal: bool = False
    sampler: bool = False
    style: bool = False
    sam: bool = False


B2 = partial(Row, backbone="efficientnet_b2", size=260, adamw=False)
SINGLE = partial(Row, adamw=False)
ROWS = {
    "efficientnet": B2(".6652 .6067/.6057", head=False, augment="none", restarts=False),
    "head": B2(".6769 .6294/.6237", augment="none", restarts=False),
    "augmentation": B2(".6903 .6585/.6482", restarts=False),
    "restarts": B2(".7737 .7435/.7327"),
    "tinyvit": Row(".8214 .7949/.7916", adamw=False),
    "adamw": Row(".8378 .8133/.7986"),
    "cutmix": Row(".8198 .8038/.7885", cutmix=True),
    "focal": Row(".8424 .8107/.8079", focal=True),
    "sampler": Row(".8332 .8171/.8122", sampler=True),
    "style": Row(".8374 .8202/.8126", style=True),
    "sam": Row(".8253 .8050/.7945", sam=True),
    "SFC": Row(".8425 .8117/.8062", sampler=True, focal=True, cutmix=True),
    "SFCT": Row(".8375 .8210/.8087", sampler=True, focal=True, cutmix=True, style=True),
    "SFCA": Row(".8461 .8139/.8154", sampler=True, focal=True, cutmix=True, augment="colour"),
    "SFT": Row(".8226 .7981/.7944", sampler=True, focal=True, style=True),
    "SFA": Row(".8348 .7889/.7976", sampler=True, focal=True, augment="colour"),
    "b2": SINGLE(".7025 .7061/.6984", backbone="efficientnet_b2", size=260),
    "b3": SINGLE(".7237 .6932/.6701", backbone="efficientnet_b3", size=300),
    "b4": SINGLE(".7435 .7435/.7327", backbone="efficientnet_b4", size=380),
    "b5": SINGLE(".7536 .7221/.7083", backbone="efficientnet_b5", size=456),
    "single": SINGLE(".8126 .8007/.7840"),
}
VOTES = {
    "b2+b3+b4+b5": "- .7910/.7737",
    "b2+b3+b4+b5+single": "- .8197/.8144",
    "folds": "- .8412/.8422",  # five folds of SFCA
}
Variant = Literal[(*ROWS, *VOTES)]


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path | None = None  # folder of the CSVs
    out: Path = Path("runs") / time.strftime("painters-%Y%m%d-%H%M%S")
    quick: bool = False  # generated pictures, a small network from scratch
    variant: Variant = "SFCA"
    table: bool = False  # every row, with the source's figures beside ours
    rows: tuple[Variant, ...] = (*ROWS, *VOTES)  # those of the table
    seeds: tuple[int, ...] = (0,)
    stand_ins: dict[str, str] = dataclasses.field(default_factory=dict)  # in a backbone's place
    checkpoint_paths: dict[str, Path] = dataclasses.field(default_factory=dict)  # by backbone
    timm_args: dict[str, int | str] = dataclasses.field(default_factory=dict)
    pretrained: bool = True
    shrink: float = 1.0  # of the rows' image sizes, for small machines
    epochs: int = 1000
    patience: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    style_network: Path | None = None  # VGG-19 weights file; default: fetched by torchvision
    style_steps: int = 100


QUICK = {
    "stand_ins": {TINYVIT: "test_vit"} | {f"efficientnet_b{n}": "test_resnet" for n in range(2, 6)},
    "pretrained": False,
    "shrink": 0.16,
    "epochs": 4,
    "style_steps": 2,
}


class Read(nn.Module):
    """Augments single images in training, a random quarter of each; then resizes and normalises."""

    def __init__(self, augment: str, size: int, **options: Any) -> None:
        super().__init__()
        steps = [painters_augmentation(size)]
        if augment == "colour":
            steps.append(v2.ColorJitter(0.4, 0.4, 0.4, 0.1))
        self.augment = None if augment == "none" else PerImage(v2.Compose(steps))
        whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
        self.read = BatchTransform(size, **whole, **options)

    def forward(self, images: Any, *, generator: Any = None, **options: Any) -> Tensor:
        if self.training and self.augment is not None:
            images = self.augment(images, generator=generator)
        return self.read(images, generator=generator, **options)


class Head(nn.Sequential):
    """LayerNorm, GELU and Dropout before the classifier."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.LayerNorm(features), nn.GELU(), nn.Dropout(0.2))
        self.out_features = features


def topped_up(settings: Settings, known: Manifest, folds: np.ndarray) -> Manifest:
    """Paint 5 new works of each of the rarest fifth of painters, 5 more of the rarest tenth."""
    counts = np.bincount(known.labels[folds != 0], minlength=len(known.classes))
    to = {}
    for place, painter in enumerate(np.argsort(counts, kind="stable")):
        if place < round(0.22 * len(counts)):
            extra = 10 if place < round(0.12 * len(counts)) else 5
            to[known.classes[painter]] = int(counts[painter]) + extra
    network = {"checkpoint_path": settings.style_network}
    if settings.quick:
        small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        network = {"network": small, "content_layers": ["3"], "style_layers": ["1", "3"]}
    transfer = StyleTransfer(**network, steps=settings.style_steps)
    rows = np.flatnonzero(folds != 0)
    return transfer.top_up(known, settings.out / "styled", to=to, rows=rows.tolist())


def train(settings: Settings, name: str, known: Manifest, folds: np.ndarray, test: Manifest) -> Any:
    """Train a row; return held-out macro-F1 by seed and the test probabilities of its runs."""
    row = ROWS["SFCA" if name == "folds" else name]
    backbone = settings.stand_ins.get(row.backbone, row.backbone)
    weights = settings.checkpoint_paths.get(backbone)
    size = (
        row.size if settings.shrink == 1 else max(32, round(row.size * settings.shrink / 32) * 32)
    )
    if row.style:
        made = topped_up(settings, known, folds)
        folds = np.pad(folds, (0, len(made) - len(known)), constant_values=-1)
        known = made
    if name == "folds":
        folds = StratifiedFolds(2 if settings.quick else 5).assign(known)

    def build() -> Classifier:
        model = LowResClassifier(
            backbone,
            len(known.classes),
            image_size=size,
            pretrained=settings.pretrained and weights is None,
            checkpoint_path=weights,
            **settings.timm_args,
        )
        if row.head:
            model.head = nn.Sequential(Head(model.head.in_features), model.head)
        kind = torch.optim.AdamW if row.adamw else torch.optim.Adam

        def restarts(optimizer: Any, steps: int) -> CosineWarmRestarts:
            warmup = min(50, steps)  # 50 in the source, whose epochs have some 230 steps
            cycle = {"first_cycle": 5 * steps, "warmup": warmup, "gamma": 0.7}
            return CosineWarmRestarts(optimizer, max_lr=settings.lr, min_lr=5e-6, **cycle)

        return Classifier(
            model,
            FocalLoss() if row.focal else CrossEntropyLoss(),
            transform=Read(row.augment, size, mean=model.mean, std=model.std),
            optimizer=partial(SAM, base_optimizer=kind, lr=settings.lr)
            if row.sam
            else partial(kind, lr=settings.lr),
            schedule=restarts if row.restarts else "constant",
        )

    result = cross_validate(
        known,
        build,
        out=settings.out / name,
        folds=folds,
        test=test,
        collate=CutMixCollator(len(known.classes), size=size) if row.cutmix else collate,
        sampler=partial(BalancedSampler, scheme="log") if row.sampler else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        patience=settings.patience,
        seeds=settings.seeds,
    )
    held_out = folds >= 0
    scores = [macro_f1(found[held_out], known.labels[held_out]) for found in result.stack]
    return scores, result.test_stack


def main(settings: Settings) -> None:
    if settings.quick:
        torch.set_num_threads(1)
        settings = dataclasses.replace(settings, data=painted(settings.out / "data"), **QUICK)
    if settings.data is None:
        raise SystemExit("give --data FOLDER, or --quick to try generated pictures")
    known = Manifest.read_csv(settings.data / "train.csv", label="artist")
    test = Manifest.read_csv(settings.data / "test.csv", label="artist", classes=known.classes)
    folds = np.full(len(known), -1)
    if (settings.data / "val.csv").exists():
        read = partial(Manifest.read_csv, label="artist", classes=known.classes)
        known = Manifest.join([known, read(settings.data / "val.csv")])
        folds = np.pad(folds, (0, len(known) - len(folds)))
    else:
        folds[StratifiedFolds().hold_out(known.labels)[1]] = 0
    found: dict[str, Any] = {}
    lines = ["| row | held-out F1 | spread | test F1 | the source |", "|---|---|---|---|---|"]
    for name in settings.rows if settings.table else [settings.variant]:
        parts = name.split("+")
        for part in parts:
            if part not in found:
                found[part] = train(settings, part, known, folds, test)
        scores = found[name][0] if name in found else [np.nan]
        # One vote per seed, over the row's folds or the rows that it names.
        votes = [
            soft_vote(np.concatenate([found[part][1][seed] for part in parts]))
            for seed in range(len(settings.seeds))
        ]
        answer = [macro_f1(vote, test.labels) if test.labelled else np.nan for vote in votes]
        source = VOTES[name] if name in VOTES else ROWS[name].source
        cells = [f"{value:.4f}" for value in (np.mean(scores), np.std(scores), np.mean(answer))]
        lines.append(f"| {name} | {' | '.join(cells).replace('nan', '-')} | {source} |")
        (settings.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"macro-F1, mean and spread over seeds {settings.seeds}; {settings.out}")


def painted(folder: Path) -> Path:
    """Generate pictures of imbalanced classes, with the CSVs that a user would have."""
    make_toy_folders(folder, per_class={"train": 24, "test": 8})
    for split in ("train", "test"):
        lines = ["img_path,artist"]
        for number, painter in enumerate(sorted((folder / split).iterdir())):
            works = sorted(painter.iterdir())[: 24 - 5 * number]
            lines += [f"{work.relative_to(folder).as_posix()},{painter.name}" for work in works]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
