"""
Folds
=====

How ``StratifiedFolds`` deals rows: each class has the same share in every fold, and rows of one
group, here crops of one painting, stay together. Each column is a row of the manifest.
"""

import numpy as np
from matplotlib.figure import Figure

from lowres_vision.data import StratifiedFolds

random = np.random.default_rng(0)
labels = np.repeat([0, 1, 2], [60, 36, 18])
sizes = random.integers(1, 6, 60)  # crops of each painting
many = np.repeat(np.arange(60), sizes)
groups = np.concatenate([many[: (labels == k).sum()] + 100 * k for k in range(3)])

fold_of = np.empty(len(labels), dtype=int)
for fold, (_, held_out) in enumerate(StratifiedFolds(4, seed=0).split(labels, groups)):
    fold_of[held_out] = fold

strips = {"class": labels, "group": np.unique(groups, return_inverse=True)[1] % 2, "fold": fold_of}
figure = Figure(figsize=(8, 2.2), layout="constrained")
for axes, (name, values) in zip(figure.subplots(3, 1), strips.items(), strict=True):
    axes.imshow(values[None], aspect="auto", cmap="gray" if name == "group" else "viridis")
    axes.set(yticks=[], xticks=[])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")

# %%
# Rows of each class by fold:

for fold in range(4):
    print(fold, np.bincount(labels[fold_of == fold]))
