"""
Attention and pooling
=====================

Where ``CBAM`` looks, and what ``GeM`` counts. A small network learns for some seconds to tell the
colours of drawn birds; its spatial gate is drawn over the pictures it was computed from. ``GeM``
weighs each position by a power p of its value: the mean at p = 1, towards the maximum as p grows.
"""

import tempfile

import torch
from matplotlib.figure import Figure
from torch import nn

from lowres_vision.attention import CBAM
from lowres_vision.data import Manifest, MultiResolutionDataset, collate, make_toy_folders
from lowres_vision.ops import resize
from lowres_vision.pooling import GeM

folder = make_toy_folders(tempfile.mkdtemp(), classes=4, per_class={"train": 24}, size=32)
birds = Manifest.read_folders(folder / "train")
batch = collate([*MultiResolutionDataset(birds)])
images = resize(batch.images, 32, mean=(0.5,) * 3, std=(0.25,) * 3)

torch.manual_seed(0)
features = nn.Sequential(
    nn.Conv2d(3, 16, 5, padding=2),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
)
gate, pool, head = CBAM(16, reduction=4), GeM(), nn.Linear(16, 4)
model = nn.Sequential(features, gate, pool, head)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(60):
    rows = torch.randperm(len(images))[:32]
    loss = nn.functional.cross_entropy(model(images[rows]), batch.targets[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}, chance {torch.tensor(4.0).log().item():.2f}; p {pool.p.item():.2f}")

# %%

model.eval()
chosen = [0, 24, 48, 72]
with torch.no_grad():
    maps = gate.channel(features(images[chosen]))
    read = torch.stack([maps.amax(1), maps.mean(1)], dim=1)  # (4, 2, 32, 32)
    gates = gate.spatial.norm(gate.spatial.conv(read)).sigmoid()[:, 0]
    strongest = maps.amax(1)
    shares = {p: strongest**p / (strongest**p).sum((1, 2), keepdim=True) for p in (1, 3, 9)}
panels = {"the picture": None, "CBAM's spatial gate": gates}
panels |= {f"GeM's weights, p = {p}": share for p, share in shares.items()}
figure = Figure(figsize=(9, 7.4), layout="constrained")
for line, row in zip(figure.subplots(4, 5), range(4), strict=True):
    for axes, (name, values) in zip(line, panels.items(), strict=True):
        if values is None:
            axes.imshow(batch.images[chosen[row]].permute(1, 2, 0))
        else:
            axes.imshow(values[row], cmap="cividis")
        axes.set_axis_off()
        if row == 0:
            axes.set_title(name, fontsize=9)
