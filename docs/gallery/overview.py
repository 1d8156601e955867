"""
What a data set holds
=====================

Before anything is trained: how many images there are of each class, of which sizes, and of which
values of any other column. ``write_overview`` writes these pictures, and the counts as tables, into
a folder; each can also be drawn by itself.
"""

import tempfile

import numpy as np

from lowres_vision.data import Manifest, image_sizes, make_toy_folders
from lowres_vision.plots import class_counts, size_scatter, write_overview

numbers = {"train": (24, 12, 8, 6, 5, 4)}
folder = make_toy_folders(tempfile.mkdtemp(), classes=6, per_class=numbers)
birds = Manifest.read_folders(folder / "train")
print(write_overview(birds, folder / "overview").read_text())

# %%

counts = class_counts(birds.labels, birds.classes)

# %%
# The sizes are read off the files' headers. These are all alike, as 64 px sets are; a few hundred
# photographs look rather so:

random = np.random.default_rng(0)
assert (image_sizes(birds) == 64).all()
long, short = random.choice([640, 800, 1024, 1600], 300), random.uniform(0.55, 1.0, 300)
sides = np.stack([long * short, long], axis=1).round().astype(int)
upright = random.random(300) < 0.3
sizes = size_scatter(np.where(upright[:, None], sides[:, ::-1], sides))
