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

import dataclasses
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from experiment import Table, spread, stand_in, start
from torch import nn
from torchvision.transforms import v2

from lowres_vision.augment import (
    BatchTransform,
    PerImage,
    StyleTransfer,
    painters_augmentation,
)
from lowres_vision.data import (
    BalancedSampler,
    Manifest,
    StratifiedFolds,
    collate,
    make_toy_folders,
    read_table,
)
from lowres_vision.ensemble import macro_f1, soft_vote, summarise, write_submission
from lowres_vision.losses import CrossEntropyLoss, FocalLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.optim import SAM, CosineWarmRestarts
from lowres_vision.plots import column_counts, ensemble_table, styled_rows, write_overview
from lowres_vision.training import Classifier, cross_validate, write_report

TINYVIT, VGG19 = "tiny_vit_21m_384.dist_in22k_ft_in1k", "vgg19.tv_in1k"


@dataclasses.dataclass(frozen=True)
class Row:
    source: str  # validation F1, public / private board
    backbone: str = TINYVIT
    size: int = 384
    head: bool = True  # LayerNorm, GELU, Dropout before the classifier
    augment: bool = True  # the source's list, which ends with a random quarter
    colour: bool = False  # its stronger form
    restarts: bool = True
    adamw: bool = True
    cutmix: bool = False
    focal: bool = False
    sampler: bool = False
    style: bool = False
    sam: bool = False
    folds: bool = False  # several in place of one hold-out


B2 = partial(Row, backbone="efficientnet_b2", size=260, adamw=False)
SINGLE = partial(Row, adamw=False)
ROWS = {
    "efficientnet": B2(".6652 .6067/.6057", head=False, augment=False, restarts=False),
    "head": B2(".6769 .6294/.6237", augment=False, restarts=False),
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
    "SFCA": Row(".8461 .8139/.8154", sampler=True, focal=True, cutmix=True, colour=True),
    "SFT": Row(".8226 .7981/.7944", sampler=True, focal=True, style=True),
    "SFA": Row(".8348 .7889/.7976", sampler=True, focal=True, colour=True),
    "folds": Row("- .8412/.8422", sampler=True, focal=True, cutmix=True, colour=True, folds=True),
    "b2": SINGLE(".7025 .7061/.6984", backbone="efficientnet_b2", size=260),
    "b3": SINGLE(".7237 .6932/.6701", backbone="efficientnet_b3", size=300),
    "b4": SINGLE(".7435 .7435/.7327", backbone="efficientnet_b4", size=380),
    "b5": SINGLE(".7536 .7221/.7083", backbone="efficientnet_b5", size=456),
    "single": SINGLE(".8126 .8007/.7840"),
}
VOTES = {"b2+b3+b4+b5": "- .7910/.7737", "b2+b3+b4+b5+single": "- .8197/.8144"}
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
    folds: int = 5  # of the row of that name
    epochs: int = 1000
    patience: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    content_layers: tuple[str, ...] = ("features.22",)  # of VGG-19: conv4_2, after its ReLU
    style_layers: tuple[str, ...] = tuple(f"features.{n}" for n in (1, 6, 11, 20, 29))  # conv?_1
    style_steps: int = 100


QUICK = {
    "stand_ins": {
        TINYVIT: "test_vit",
        "efficientnet_b2": "test_resnet",
        "efficientnet_b3": "test_efficientnet",
        "efficientnet_b4": "test_byobnet",
        "efficientnet_b5": "test_convnext",
        VGG19: "test_resnet",
    },
    "pretrained": False,
    "shrink": 0.16,
    "folds": 2,
    "epochs": 4,
    "content_layers": ("layer3",),
    "style_layers": ("layer1", "layer2"),
    "style_steps": 2,
}


def topped_up(settings: Settings, known: Manifest, rows: np.ndarray) -> Manifest:
    """Paint 5 new works of each of the rarest fifth of painters, 5 more of the rarest tenth."""
    counts = known.take(rows).class_counts()
    rarest = sorted(counts, key=counts.get)
    for painter in rarest[: round(0.22 * len(rarest))] + rarest[: round(0.12 * len(rarest))]:
        counts[painter] += 5
    torch.manual_seed(0)  # without weights, the same network in every call
    plain = dataclasses.replace(settings, timm_args={})  # which are for the rows' backbones
    judge = stand_in(plain, VGG19, len(counts)).backbone
    layers = {"content_layers": settings.content_layers, "style_layers": settings.style_layers}
    transfer = StyleTransfer(judge, **layers, steps=settings.style_steps)
    made = transfer.top_up(known, settings.out / "styled", to=counts, rows=rows)
    styled_rows(made, settings.out / "styled.png")
    return made


def train(settings: Settings, name: str, known: Manifest, folds: np.ndarray, test: Manifest) -> Any:
    """Train a row with every seed."""
    row = ROWS[name]
    size = max(32, round(row.size * settings.shrink / 32) * 32) if settings.shrink < 1 else row.size
    if row.style:
        known = topped_up(settings, known, np.flatnonzero(folds != 0))
        folds = np.pad(folds, (0, len(known) - len(folds)), constant_values=-1)
    if row.folds:
        folds = StratifiedFolds(settings.folds)
    jitter = [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)] if row.colour else []
    augment = PerImage(v2.Compose([painters_augmentation(size), *jitter])) if row.augment else None

    def restarts(optimizer: Any, steps: int) -> CosineWarmRestarts:
        cycle = {"first_cycle": 5 * steps, "warmup": min(50, steps)}  # the source's epoch: some 230
        return CosineWarmRestarts(optimizer, **cycle, max_lr=settings.lr, gamma=0.7, min_lr=5e-6)

    def build() -> Classifier:
        model = stand_in(settings, row.backbone, len(known.classes), image_size=size)
        if row.head:
            norm = nn.LayerNorm(model.head.in_features)
            model.head = nn.Sequential(norm, nn.GELU(), nn.Dropout(0.2), model.head)
        transform = BatchTransform(size, model=model, scale=None, flip=0.0, augment=augment)
        loss = FocalLoss() if row.focal else CrossEntropyLoss()
        adam = partial(torch.optim.AdamW if row.adamw else torch.optim.Adam, lr=settings.lr)
        optimizer = partial(SAM, base_optimizer=adam) if row.sam else adam
        schedule = restarts if row.restarts else "constant"
        return Classifier(model, loss, transform=transform, optimizer=optimizer, schedule=schedule)

    result = cross_validate(
        known,
        {name: build},  # so that the members of an ensemble have names
        out=settings.out / name,
        folds=folds,
        test=test,
        seeds=settings.seeds,
        collate=CutMixCollator(len(known.classes), size=size) if row.cutmix else collate,
        sampler=partial(BalancedSampler, scheme="log") if row.sampler else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        patience=settings.patience,
    )
    write_report(settings.out / name, manifest=known, test=test, pictures=settings.out / name)
    return result


def read(settings: Settings) -> tuple[Manifest, np.ndarray, Manifest]:
    """Return the known works, the fold of each (-1: trained on) and the test; leave an overview."""
    known = Manifest.read_csv(settings.data / "train.csv", label="artist")
    label = "artist" if "artist" in read_table(settings.data / "test.csv") else "label"
    test = Manifest.read_csv(settings.data / "test.csv", label=label, classes=known.classes)
    write_overview(known, settings.out / "overview")
    if (settings.data / "artists.csv").exists():
        genres = read_table(settings.data / "artists.csv").get("genre", [])
        column_counts(genres, settings.out / "overview/genres.png", name="genre", separator=",")
    if not (settings.data / "val.csv").exists():
        return known, StratifiedFolds().assign(known, share=1 / 5), test
    held_out = Manifest.read_csv(settings.data / "val.csv", label="artist", classes=known.classes)
    folds = np.repeat([-1, 0], [len(known), len(held_out)])
    return Manifest.join([known, held_out]), folds, test


def main(settings: Settings) -> None:
    known, folds, test = read(settings)
    run = cache(lambda name: train(settings, name, known, folds, test))
    table = Table(settings.out / "table.md", "row", "held-out F1", "test F1", "the source")
    for name in settings.rows if settings.table else [settings.variant]:
        parts = name.split("+")
        scores = [run(name).of(name, seed=s).macro_f1 for s in settings.seeds if name in ROWS]
        # One vote per seed, over the row's folds or the rows that it names.
        stacks = np.concatenate([run(part).test_stack for part in parts], axis=1)
        votes = [soft_vote(stack) for stack in stacks]
        tested = [macro_f1(vote, test.labels) for vote in votes if test.labelled]
        file = settings.out / f"submission_{name}.csv"
        write_submission(file, soft_vote(votes), ids=test.ids, classes=known.classes)
        table.add(name, spread(scores), spread(tested), VOTES.get(name) or ROWS[name].source)
        if name in VOTES:
            # Where one network stands in for several, rows may be the same.
            different = {run(part).stack.tobytes(): settings.out / part for part in parts}
            ensemble_table(summarise([*different.values()]), settings.out / f"ensemble_{name}.png")
    print(table)
    print(f"macro-F1, mean ± spread over seeds {settings.seeds}; {settings.out}")


def generate(settings: Settings) -> Path:
    """Write pictures of imbalanced classes, with the CSVs that a user would have."""
    numbers = {"train": (24, 19, 14, 9), "test": 8}
    return make_toy_folders(settings.out / "data", per_class=numbers, label="artist")


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
