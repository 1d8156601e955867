"""
Learning rates
==============

``CosineWarmRestarts`` is a function of the step alone: ``lr(step)`` tells any step's rate without
running up to it, so a run that was interrupted has the rates of one that was not.
"""

import torch
from matplotlib.figure import Figure

from lowres_vision.optim import CosineWarmRestarts

settings = {
    "falling peaks": {"first_cycle": 250, "gamma": 0.7, "warmup": 50},
    "growing cycles": {"first_cycle": 100, "cycle_mult": 2, "warmup": 20},
}
figure = Figure(figsize=(7, 2.8), layout="constrained")
axes = figure.subplots()
for name, options in settings.items():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = CosineWarmRestarts(optimizer, max_lr=1e-3, min_lr=5e-6, **options)
    axes.plot([schedule.lr(step)[0] for step in range(1000)], label=name)
axes.set(xlabel="step", ylabel="learning rate")
axes.legend(frameon=False)
