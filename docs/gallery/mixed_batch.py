"""
A mixed batch
=============

What CutMix and MixUp make of a batch, as the model reads it. The collator only draws the mix;
``BatchTransform`` applies it after each image's own crop and flip. Each image carries its share of
each class: the numbers are the soft targets that the loss gets.
"""

import tempfile

import torch

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_pairs
from lowres_vision.mixing import CutMixCollator, MixupCollator
from lowres_vision.plots import mixed_batch

folder = make_toy_pairs(tempfile.mkdtemp(), classes=4, per_class=4)
birds = Manifest.read_csv(folder / "train.csv")
dataset = MultiResolutionDataset(birds)

collate = CutMixCollator(len(birds.classes), p=1.0, per_sample=True, size=128, seed=0)
batch = collate([dataset[row] for row in range(0, 16, 2)])

mean = std = (0.5, 0.5, 0.5)
transform = BatchTransform(128, mean=mean, std=std, scale=(0.5, 1.0))
images = transform(batch.images, mix=batch.mix, generator=torch.Generator().manual_seed(0))

figure = mixed_batch(images, batch.targets, birds.classes, mean=mean, std=std, columns=4)

# %%
# ``MixupCollator`` blends whole images instead:

collate = MixupCollator(len(birds.classes), p=1.0, per_sample=True, size=128, seed=0)
batch = collate([dataset[row] for row in range(0, 16, 2)])
images = transform(batch.images, mix=batch.mix, generator=torch.Generator().manual_seed(0))
blended = mixed_batch(images, batch.targets, birds.classes, mean=mean, std=std, columns=4)
