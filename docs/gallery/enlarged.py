"""
Enlarging
=========

Images of 64 px at 256 px: by a bilinear resize, by an ``SRCNN`` that was trained for some seconds
on other pairs of the set, and the real ones. The number is the peak signal-to-noise ratio to the
real one, in dB.
"""

import tempfile

import torch
from matplotlib.figure import Figure

from lowres_vision.augment import SuperResolution
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs
from lowres_vision.ops import resize
from lowres_vision.plots import resizer_panel
from lowres_vision.resizer import MullerResizer

folder = make_toy_pairs(tempfile.mkdtemp(), classes=3, per_class=8)
pairs = [*MultiResolutionDataset(Manifest.read_csv(folder / "train.csv"), resolution="pair")]
seen, held_out = pairs[:20], pairs[20:23]
upscale = SuperResolution.fit(
    [pair.low for pair in seen], [pair.high for pair in seen], steps=60, batch_size=8, seed=0
)
low = torch.stack([pair.low for pair in held_out])
high = torch.stack([pair.high for pair in held_out]) / 255
shown = {
    "64 px": low / 255,
    "bilinear": resize(low, 256),
    "SRCNN": upscale(low) / 255,
    "256 px": high,
}
figure = Figure(figsize=(9, 7), layout="constrained")
for row, line in enumerate(figure.subplots(3, 4)):
    for axes, (name, images) in zip(line, shown.items(), strict=True):
        axes.imshow(images[row].permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
        axes.set_axis_off()
        if name in ("bilinear", "SRCNN"):
            name += f", {-10 * (images[row] - high[row]).square().mean().log10():.1f} dB"
        axes.set_title(name, fontsize=9)

# %%
# ``MullerResizer`` has four numbers to learn. With those that its authors publish for ResNet-50 it
# sharpens: above the plain resize, in the middle its own, below the difference. Its blur pads with
# zeros, so that is where the images' mean belongs.

images = low / 255
muller = MullerResizer(256, weights=((1.892, -0.014), (-11.295, 0.003)))
with torch.no_grad():
    panel = resizer_panel(resize(images, 256), muller(images - 0.5) + 0.5)
