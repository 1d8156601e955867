"""
One pass over the pixels
========================

``ops.resize`` crops, flips, resizes, normalises, casts and mixes while it writes each pixel of the
batch once. When an image shrinks, ``antialias=True``, the default, lets every pixel count; without
it most are skipped, and rings that are too fine for the small image come back as others.
"""

import tempfile

import torch
from matplotlib.figure import Figure

from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs
from lowres_vision.ops import resize

side = torch.linspace(-1, 1, 512)
rings = 0.5 + 0.5 * torch.cos(220 * (side[:, None] ** 2 + side**2))
image = rings.expand(1, 3, -1, -1)
shown = {
    "512 px": image,
    "64 px": resize(image, 64),
    "64 px, antialias=False": resize(image, 64, antialias=False),
}
figure = Figure(figsize=(8, 2.9), layout="constrained")
for axes, (name, picture) in zip(figure.subplots(1, 3), shown.items(), strict=True):
    axes.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(name, fontsize=9)
    axes.set_axis_off()

# %%
# Each image of a batch can have a crop and a flip of its own:

folder = make_toy_pairs(tempfile.mkdtemp(), classes=4, per_class=1)
high = MultiResolutionDataset(Manifest.read_csv(folder / "train.csv"), resolution="high")
batch = torch.stack([high[row].image for row in range(4)])  # (4, 3, 256, 256), uint8
boxes = [[0, 0, 256, 256], [32, 32, 160, 160], [0, 64, 128, 192], [96, 0, 128, 128]]
flips = torch.tensor([False, True, False, True])
small = resize(batch, 64, boxes=torch.tensor(boxes).float(), flip=flips)

crops = Figure(figsize=(8, 4.2), layout="constrained")
for line, images in zip(crops.subplots(2, 4), (batch / 255, small.clamp(0, 1)), strict=True):
    for axes, picture in zip(line, images, strict=True):
        axes.imshow(picture.permute(1, 2, 0), interpolation="nearest")
        axes.set_axis_off()
