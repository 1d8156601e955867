"""
Degraded versions
=================

``Degrade`` makes low-resolution images of high ones: blur, shrink, noise, JPEG. Each row is one
generated picture at 256 px, then shrunk to 64 px by four chains of growing damage. ``Degrade.fit``
reads kernel, blur, noise and JPEG quality off pairs of the same pictures.
"""

import tempfile

import torch
from matplotlib.figure import Figure

from lowres_vision.augment import Degrade
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs

folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=3)
pairs = MultiResolutionDataset(Manifest.read_csv(folder / "train.csv"), resolution="high")
chains = {
    "shrink": Degrade(shrink=4),
    "+ blur": Degrade(blur=4, shrink=4),
    "+ noise": Degrade(blur=4, shrink=4, noise=12),
    "+ JPEG": Degrade(blur=4, shrink=4, noise=12, jpeg=20),
}
figure = Figure(figsize=(8, 3.4), layout="constrained")
grid = figure.subplots(2, 1 + len(chains))
for line, index in enumerate((0, 3)):
    high = pairs[index].image
    shown = {"256 px": high}
    for name, chain in chains.items():
        shown[name] = chain(high, generator=torch.Generator().manual_seed(0))
    for axes, (name, image) in zip(grid[line], shown.items(), strict=True):
        axes.imshow(image.permute(1, 2, 0), interpolation="nearest")
        axes.set_axis_off()
        if line == 0:
            axes.set_title(name, fontsize=9)

# %%
# What the strongest chain did can be read off its results:

high = torch.stack([pairs[index].image for index in range(6)])
low = torch.stack([Degrade(blur=2, shrink=4, jpeg=80)(image) for image in high])
found = Degrade.fit(low, high)
print(f"kernel {found.report.kernel}, blur {found.report.blur}, quality {found.report.quality}")
