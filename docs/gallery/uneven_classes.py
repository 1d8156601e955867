"""
Uneven classes
==============

The four schemes of ``class_weights`` and ``BalancedSampler``, for classes of 600 images down to 6:
what a class weighs in the loss, and how often a sampler draws it in an epoch of as many images.
``effective`` counts images up to about ``1 / (1 - beta)``, here 50, and hardly any beyond.
"""

import numpy as np
from matplotlib.figure import Figure

from lowres_vision.data import BalancedSampler, class_weights

counts = np.array([600, 240, 96, 38, 15, 6])
labels = np.repeat(np.arange(len(counts)), counts)
figure = Figure(figsize=(8, 3), layout="constrained")
weights, draws = figure.subplots(1, 2)
draws.plot(counts, counts, "k:", label="the data")
for scheme in ("inverse", "sqrt", "log", "effective"):
    weights.plot(counts, class_weights(counts, scheme=scheme, beta=0.98), ".-", label=scheme)
    sampler = BalancedSampler(labels, scheme=scheme, beta=0.98, seed=0)
    drawn = np.bincount(labels[[*sampler]])
    draws.plot(counts, drawn, ".-", label=scheme)
weights.set(xlabel="images of the class", ylabel="weight in the loss", xscale="log")
draws.set(xlabel="images of the class", ylabel="drawn", xscale="log", yscale="log")
draws.legend(frameon=False, fontsize=8)
