"""
Two resolutions of a picture
============================

``RandomPairTransform`` draws a crop once and cuts it from both files of a row, each at its own
resolution, so that the two stay one picture. Above the low images, below the high ones.
"""

import tempfile

import torch
from matplotlib.figure import Figure

from lowres_vision.data import (
    Manifest,
    MultiResolutionDataset,
    RandomPairTransform,
    make_toy_pairs,
)

folder = make_toy_pairs(tempfile.mkdtemp(), classes=4, per_class=1)
birds = Manifest.read_csv(folder / "train.csv")
transform = RandomPairTransform(crop=(0.3, 0.6), ratio=(1, 1), quarter_turns=True, erase=0.5)
plain = MultiResolutionDataset(birds, resolution="pair")
moved = MultiResolutionDataset(birds, resolution="pair", transform=transform)

torch.manual_seed(1)
pairs = [pair for row in range(3) for pair in (plain[row], moved[row])]
figure = Figure(figsize=(9, 3.3), layout="constrained")
grid = figure.subplots(2, len(pairs))
for column, pair in enumerate(pairs):
    for line, image in enumerate((pair.low, pair.high)):
        axes = grid[line, column]
        axes.imshow(image.permute(1, 2, 0), interpolation="nearest")
        axes.set_title(f"{image.shape[1]} x {image.shape[2]}", fontsize=8)
        axes.set_axis_off()
