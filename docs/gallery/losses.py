"""
Losses
======

What a prediction costs. The focal loss forgets what is learned already, the cosine loss never costs
much, ArcFace goes on asking for a margin where cross-entropy is content.
"""

import math

import torch
from matplotlib.figure import Figure

from lowres_vision.losses import arcface_loss, cosine_loss, cross_entropy, focal_loss

p = torch.linspace(0.02, 0.98, 200)  # of the target, one of two classes
logits, targets = torch.stack([p, 1 - p], dim=1).log(), torch.zeros(200, dtype=torch.long)
curves = {
    "cross-entropy": cross_entropy(logits, targets, reduction="none"),
    "focal, gamma 1": focal_loss(logits, targets, gamma=1.0, reduction="none"),
    "focal, gamma 2": focal_loss(logits, targets, gamma=2.0, reduction="none"),
}
figure = Figure(figsize=(8, 3), layout="constrained")
left, right = figure.subplots(1, 2)
for name, values in curves.items():
    left.plot(p, values, label=name)
left.set(xlabel="probability of the target", ylabel="loss", ylim=(0, 3))

degrees = torch.linspace(0, 120, 200)  # between an embedding and its class; the other is at 90
cosines = torch.stack([(degrees * math.pi / 180).cos(), torch.zeros(200)], dim=1)
for margin in (0.0, 0.3, 0.5):
    values = arcface_loss(cosines, targets, scale=10.0, margin=margin, reduction="none")
    right.plot(degrees, values, label=f"ArcFace, margin {margin}")
direction = torch.stack([cosines[:, 0], (1 - cosines[:, 0] ** 2).sqrt()], dim=1)
cosine = cosine_loss(direction, targets, reduction="none")
right.plot(degrees, cosine, label="cosine loss", linestyle="--")
right.set(xlabel="angle to the target's direction, degrees")
for axes in (left, right):
    axes.legend(frameon=False, fontsize=8)

# %%
# A teacher says more than its first choice, and the more so the higher the ``temperature`` of
# ``distillation_loss`` is:

teacher = torch.tensor([6.0, 4.0, 1.0, 0.0])
softened = Figure(figsize=(8, 2), layout="constrained")
for axes, temperature in zip(softened.subplots(1, 3, sharey=True), (1.0, 2.0, 4.0), strict=True):
    axes.bar(range(4), (teacher / temperature).softmax(0).tolist())
    axes.set(xticks=range(4), xlabel="class", title=f"temperature {temperature:g}")
