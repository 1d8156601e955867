"""
A run and its vote
==================

Two small networks, three folds, a few epochs on generated birds: the curves of every fold, and what
each member and each vote of them is worth. ``python -m lowres_vision ensemble`` prints the same
table, and ``write_report`` makes a page of the run.
"""

import contextlib
import io
import tempfile
from functools import partial

import torch

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, StratifiedFolds, make_toy_pairs
from lowres_vision.ensemble import summarise
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.plots import ensemble_table, learning_curves
from lowres_vision.training import Classifier, cross_validate

folder = make_toy_pairs(tempfile.mkdtemp(), classes=4, per_class=18, test_per_class=1)
birds = Manifest.read_csv(folder / "train.csv")


def build(backbone: str) -> Classifier:
    model = LowResClassifier(backbone, len(birds.classes), image_size=32)
    transform = BatchTransform(32, model=model, scale=(0.6, 1.0))
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    return Classifier(model, CrossEntropyLoss(), transform=transform, optimizer=optimizer)


with contextlib.redirect_stdout(io.StringIO()):  # progress bars
    result = cross_validate(
        birds,
        {name: partial(build, f"test_{name}") for name in ("resnet", "efficientnet")},
        out=folder / "run",
        folds=StratifiedFolds(3, seed=0),
        epochs=6,
        batch_size=16,
    )
curves = learning_curves(folder / "run")

# %%
# A bar is the 95 % interval. Where something was chosen, the filled dot is the nested score.

table = ensemble_table(summarise([folder / "run"]))
