"""Painters with TinyViT: from a plain EfficientNet to style transfer, one step at a time.

    python examples/painters_tinyvit.py --quick                       # generated pictures
    python examples/painters_tinyvit.py --data FOLDER --variant adamw
    python examples/painters_tinyvit.py --data FOLDER --table

`FOLDER` holds `train.csv` (img_path, artist), `test.csv` (img_path, and artist where it is known)
and, if validation images are not to be drawn from `train.csv`, `val.csv`; `artists.csv` (name,
genre) may tell of the painters. Called again with the same `--out`, finished rows are read back and
a broken one goes on.

The source told 50 painters apart, from 629 works (van Gogh) down to 21 (Pollock), by macro-F1; it
trained on whole works, and its test images are quarter crops. Each row of its ladder adds to the
one before until `adamw`, the reference that the others change one thing of: CutMix, focal loss, a
sampler with weight 1 / log(works of the painter), new works of the rarest painters by style
transfer, SAM, colour (the augmentation's stronger form), and combinations by their first letters.
What came out on a small set stands in docs/experiments/painters_tinyvit.md.
"""

import csv
import dataclasses
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from experiment import Table, network, spread, start
from torch import nn
from torchvision.transforms import v2

from lowres_vision.augment import (
    BatchTransform,
    PerImage,
    StyleTransfer,
    draw_style_pairs,
    painters_augmentation,
)
from lowres_vision.data import (
    BalancedSampler,
    Manifest,
    MultiResolutionDataset,
    StratifiedFolds,
    collate,
    make_toy_folders,
)
from lowres_vision.ensemble import macro_f1, soft_vote, summarise, write_submission
from lowres_vision.losses import CrossEntropyLoss, FocalLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.optim import SAM, CosineWarmRestarts
from lowres_vision.plots import column_counts, ensemble_table, style_panel, write_overview
from lowres_vision.training import Classifier, CrossValidation, cross_validate, write_report

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
    style_backbone: str | None = None  # a timm network in VGG-19's place, with `checkpoint_paths`
    style_layers: tuple[str, ...] | None = None  # of that network, by name
    content_layers: tuple[str, ...] | None = None
    style_steps: int = 100


QUICK = {
    "stand_ins": {TINYVIT: "test_vit"} | {f"efficientnet_b{n}": "test_resnet" for n in range(2, 6)},
    "pretrained": False,
    "shrink": 0.16,
    "epochs": 4,
    "style_backbone": "test_resnet",
    "style_layers": ("layer1", "layer2"),
    "content_layers": ("layer3",),
    "style_steps": 2,
}


def augmentation(name: str, size: int) -> nn.Module | None:
    """Return the source's list, which ends with a random quarter, or the list and more colour."""
    if name == "none":
        return None
    colour = [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)] if name == "colour" else []
    return PerImage(v2.Compose([painters_augmentation(size), *colour]))


def topped_up(settings: Settings, known: Manifest, rows: np.ndarray) -> Manifest:
    """Paint 5 new works of each of the rarest fifth of painters, 5 more of the rarest tenth."""
    counts = np.bincount(known.labels[rows], minlength=len(known.classes))
    rarest, wanted = np.argsort(counts, kind="stable"), counts.copy()
    for share in (0.22, 0.12):
        wanted[rarest[: round(share * len(counts))]] += 5
    to = dict(zip(known.classes, wanted.tolist(), strict=True))
    judge = None  # VGG-19
    if settings.style_backbone is not None:
        torch.manual_seed(0)  # without weights, the same network in every call
        weights = settings.checkpoint_paths.get(settings.style_backbone)
        plain = dataclasses.replace(settings, timm_args={})  # which are for the rows' backbones
        judge = network(plain, settings.style_backbone, len(counts), weights).backbone
    transfer = StyleTransfer(
        judge,
        content_layers=settings.content_layers,
        style_layers=settings.style_layers,
        checkpoint_path=settings.style_network,
        steps=settings.style_steps,
    )
    made = transfer.top_up(known, settings.out / "styled", to=to, rows=rows.tolist())
    numbers = dict(enumerate(wanted.tolist()))
    pairs = draw_style_pairs(known.labels.tolist(), to=numbers, rows=rows.tolist())
    shown = [(c, s, len(known) + place) for place, (c, s, _) in enumerate(pairs)][::4][:5]
    images = MultiResolutionDataset(made)
    columns = ([images[row].image for row in column] for column in zip(*shown, strict=True))
    style_panel(*columns, settings.out / "styled.png")
    return made


def train(
    settings: Settings, name: str, known: Manifest, folds: np.ndarray, test: Manifest
) -> CrossValidation:
    """Train a row with every seed."""
    row = ROWS["SFCA" if name == "folds" else name]
    backbone = settings.stand_ins.get(row.backbone, row.backbone)
    weights = settings.checkpoint_paths.get(backbone)
    size = max(32, round(row.size * settings.shrink / 32) * 32) if settings.shrink < 1 else row.size
    if row.style:
        known = topped_up(settings, known, np.flatnonzero(folds != 0))
        folds = np.pad(folds, (0, len(known) - len(folds)), constant_values=-1)
    if name == "folds":
        folds = StratifiedFolds(2 if settings.quick else 5).assign(known)

    def restarts(optimizer: Any, steps: int) -> CosineWarmRestarts:
        warmup = min(50, steps)  # 50 in the source, whose epochs have some 230 steps
        cycle = {"first_cycle": 5 * steps, "warmup": warmup, "gamma": 0.7}
        return CosineWarmRestarts(optimizer, max_lr=settings.lr, min_lr=5e-6, **cycle)

    def build() -> Classifier:
        model = network(settings, backbone, len(known.classes), weights, image_size=size)
        if row.head:
            norm = nn.LayerNorm(model.head.in_features)
            model.head = nn.Sequential(norm, nn.GELU(), nn.Dropout(0.2), model.head)
        transform = BatchTransform(
            size,
            mean=model.mean,
            std=model.std,
            scale=None,
            flip=0.0,
            augment=augmentation(row.augment, size),
        )
        adam = partial(torch.optim.AdamW if row.adamw else torch.optim.Adam, lr=settings.lr)
        return Classifier(
            model,
            FocalLoss() if row.focal else CrossEntropyLoss(),
            transform=transform,
            optimizer=partial(SAM, base_optimizer=adam) if row.sam else adam,
            schedule=restarts if row.restarts else "constant",
        )

    out = settings.out / name
    result = cross_validate(
        known,
        {name: build},  # so that the members of an ensemble have names
        out=out,
        folds=folds,
        test=test,
        seeds=settings.seeds,
        collate=CutMixCollator(len(known.classes), size=size) if row.cutmix else collate,
        sampler=partial(BalancedSampler, scheme="log") if row.sampler else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        patience=settings.patience,
    )
    write_report(out, manifest=known, test=test, pictures=out)
    return result


def read(settings: Settings) -> tuple[Manifest, np.ndarray, Manifest]:
    """Return the known works, the fold of each (-1: trained on) and the test; leave an overview."""
    known = Manifest.read_csv(settings.data / "train.csv", label="artist")
    of_known = partial(Manifest.read_csv, classes=known.classes)
    with (settings.data / "test.csv").open("rb") as file:
        label = "artist" if b"artist" in file.readline() else "label"  # which it has not got either
    test = of_known(settings.data / "test.csv", label=label)
    write_overview(known, settings.out / "overview")
    if (settings.data / "artists.csv").exists():
        with (settings.data / "artists.csv").open(newline="", encoding="utf-8-sig") as file:
            genres = [row["genre"] for row in csv.DictReader(file) if "genre" in row]
        column_counts(genres, settings.out / "overview/genres.png", name="genre", separator=",")
    if not (settings.data / "val.csv").exists():
        return known, StratifiedFolds().assign(known, share=1 / 5), test
    held_out = of_known(settings.data / "val.csv", label="artist")
    folds = np.repeat([-1, 0], [len(known), len(held_out)])
    return Manifest.join([known, held_out]), folds, test


def main(settings: Settings) -> None:
    known, folds, test = read(settings)
    run = cache(lambda name: train(settings, name, known, folds, test))
    columns = ("row", "held-out F1 by seed", "test F1 by seed", "the source")
    table = Table(settings.out / "table.md", *columns)
    names = settings.rows if settings.table else (settings.variant,)
    for name in names:
        runs = [run(part) for part in name.split("+")]
        alone = settings.seeds if len(runs) == 1 else ()
        scores = [runs[0].of(name, seed=seed).macro_f1 for seed in alone]
        # One vote per seed, over the row's folds or the rows that it names.
        stacks = zip(*(each.test_stack for each in runs), strict=True)
        votes = [soft_vote(np.concatenate(stack)) for stack in stacks]
        tested = [macro_f1(vote, test.labels) for vote in votes] if test.labelled else []
        file = settings.out / f"submission_{name}.csv"
        write_submission(file, soft_vote(votes), ids=test.ids, classes=known.classes)
        source = VOTES[name] if name in VOTES else ROWS[name].source
        table.add(name, spread(scores), spread(tested), source)
    # Five folds score more works than the others; some rows are the same.
    alike = [part for name in names for part in name.split("+") if part != "folds"]
    held_out = np.flatnonzero(folds == 0)
    different = {run(n).stack[:, held_out].tobytes(): settings.out / n for n in alike}
    if len(different) > 1:
        ensemble_table(summarise([*different.values()]), settings.out / "ensemble.png")
    print(table)
    print(f"macro-F1, mean ± spread over seeds {settings.seeds}; {settings.out}")


def generate(settings: Settings) -> Path:
    """Write pictures of imbalanced classes, with the CSVs that a user would have."""
    numbers = {"train": (24, 19, 14, 9), "test": 8}
    folder = make_toy_folders(settings.out / "data", per_class=numbers)
    for split, works in Manifest.read_splits(folder).items():
        works.write_csv(folder / f"{split}.csv", label="artist")
    return folder


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
