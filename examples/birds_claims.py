"""Birds at two resolutions: what each of the source's claims is worth, one row for each.

    python examples/birds_claims.py --quick                          # generated birds
    python examples/birds_claims.py --data FOLDER --variant low-ce
    python examples/birds_claims.py --data FOLDER --table --seeds 0 1 2

`FOLDER` and `--out` are as in `birds_multiresolution.py`, whose first backbone and settings these
are but for what a row changes; the source gave no figures. It claims that both resolutions together
beat one, that the cosine loss helps, that CutMix beats MixUp and RandAugment, that training at 384
or 512 converges badly, that images enlarged by super-resolution do not beat the plain ones, and
that test-time views hurt.

Each row is trained on one stratified hold-out of low images, with as many images seen in every row;
`--view-sizes` adds a column with views. What came out on a small set stands in
docs/experiments/birds_multiresolution.md.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import birds_multiresolution
import numpy as np
from birds_multiresolution import generate, train
from experiment import Table, spread, start

from lowres_vision.augment import SuperResolution
from lowres_vision.data import Manifest, MultiResolutionDataset, StratifiedFolds
from lowres_vision.ensemble import OutOfFold, accuracy, soft_vote

ROWS: dict[str, dict[str, Any]] = {  # the settings that a row changes
    f"{resolution}-{loss}": {"resolution": resolution, "loss": loss}
    for loss in ("ce", "cosine")
    for resolution in ("low", "high", "both", "pair")  # a pair's teacher is the row `high`
}
ROWS |= {name: {"augment": name} for name in ("none", "mixup", "randaugment")}
ROWS |= {f"size-{size}": {"image_size": size} for size in (96, 160, 192, 384, 512)}
ROWS |= {name: {"resolution": "enlarged"} for name in ("srcnn", "span")}  # beside low-cosine


@dataclasses.dataclass(frozen=True)
class Settings(birds_multiresolution.Settings):
    out: Path = Path("runs") / time.strftime("birds_claims-%Y%m%d-%H%M%S")
    variant: Literal[tuple(ROWS)] = "both-cosine"
    table: bool = False  # every row
    rows: tuple[Literal[tuple(ROWS)], ...] = tuple(ROWS)[:-1]  # of the table; more: span
    sr_steps: int = 1000  # in which the row `srcnn` is trained on the training rows' pairs

    def __post_init__(self) -> None:
        self.check_backbones(1)
        if self.pseudo_labels:
            raise ValueError("--pseudo-labels are for birds_multiresolution.py")
        for name in self.rows if self.table else (self.variant,):
            enlarged = ROWS[name].get("resolution", self.resolution) == "enlarged"
            if enlarged and name != "srcnn" and self.sr_weights is None:
                raise ValueError(f"the row `{name}` takes --sr-weights FILE, for spandrel to read")


QUICK = birds_multiresolution.QUICK | {"sr_steps": 20}


def fit_srcnn(settings: Settings, manifest: Manifest, rows: np.ndarray) -> Path:
    """Return the weights of an SRCNN of these rows' pairs."""
    file = settings.out / "srcnn.safetensors"
    if not file.exists():
        pairs = [*MultiResolutionDataset(manifest, rows=rows, resolution="pair")]
        low, high = [pair.low for pair in pairs], [pair.high for pair in pairs]
        SuperResolution.fit(low, high, steps=settings.sr_steps).save(file)
    return file


def claim(settings: Settings, name: str, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Train a row; return the held-out accuracy by seed, plain and with views."""
    out, scores = settings.out / name, ([], [])
    settings = dataclasses.replace(settings, variant=name, table=False, **ROWS[name])
    folds = StratifiedFolds(settings.folds).assign(manifest, share=1 / settings.folds)
    if settings.resolution == "enlarged":
        trained_on = np.flatnonzero(folds == -1)
        srcnn = name == "srcnn"
        weights = fit_srcnn(settings, manifest, trained_on) if srcnn else settings.sr_weights
        enlarge = SuperResolution.from_file(weights)
        manifest = enlarge.apply_to(manifest, settings.out / "enlarged")
    for seed in settings.seeds:
        one = dataclasses.replace(settings, seeds=(seed,))
        train(one, 0, manifest, out, settings.out / f"high-{settings.loss}", folds=folds)
        ledger = OutOfFold(out / "ledger")
        views = [member for member in ledger.members() if member.seed == seed]
        plain = [member for member in views if member.view == "plain"]
        for members, found in zip((plain, views), scores, strict=True):
            found.append(accuracy(soft_vote(ledger.probabilities(members)), ledger.labels))
    return scores


def main(settings: Settings) -> None:
    manifest = Manifest.read_csv(settings.data / "train.csv")
    table = Table(settings.out / "table.md", "variant", "accuracy by seed", "with views")
    for name in settings.rows if settings.table else (settings.variant,):
        plain, viewed = claim(settings, name, manifest)
        table.add(name, spread(plain), spread(viewed) if settings.view_sizes else "-")
    print(table)


if __name__ == "__main__":
    start(main, Settings, quick=QUICK, generate=generate, description=__doc__)
