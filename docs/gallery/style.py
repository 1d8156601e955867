"""
Style transfer
==============

``StyleTransfer`` paints a picture anew in the style of another, by the correlations of a network's
feature maps. VGG-19 is the default; here a small network with random weights serves, whose
statistics tell colours and fine texture, so these are what goes over. ``top_up`` makes such
pictures for the classes that have too few.
"""

import tempfile

import torch
from torch import nn

from lowres_vision.augment import StyleTransfer
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_folders
from lowres_vision.plots import style_panel

folder = make_toy_folders(tempfile.mkdtemp(), classes=4, per_class={"train": 2}, size=96)
birds = MultiResolutionDataset(Manifest.read_folders(folder / "train"))
images = torch.stack([sample.image for sample in birds])

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 24, 5, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(24, 48, 3, padding=1),
    nn.ReLU(),
)
transfer = StyleTransfer(
    network, content_layers=["4"], style_layers=["1", "4"], style_weight=100.0, steps=40
)
contents, styles = images[[0, 2, 4]], images[[3, 5, 7]]
results = transfer(contents, styles)

figure = style_panel(contents, styles, results)
