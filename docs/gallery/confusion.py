"""
Mistakes and resolution
=======================

A small network is trained at 32 px for some seconds, on grey images, so that only the direction of
the stripes tells the classes apart. Its confusion matrix on images that it has not seen, those of
them that it finds hardest, and its accuracy when they were stored at other sizes: the number in the
legend is ``resolution_robustness``.
"""

import tempfile

import torch

from lowres_vision.data import Manifest, MultiResolutionDataset, collate, make_toy_folders
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.ops import resize
from lowres_vision.plots import confusion_matrix, prediction_grid, resolution_curve

counts = {"train": 60, "test": 20}
folder = make_toy_folders(tempfile.mkdtemp(), classes=4, per_class=counts, size=64)
splits = Manifest.read_splits(folder)
whole = {name: collate([*MultiResolutionDataset(split)]) for name, split in splits.items()}
train, test = (
    batch._replace(images=batch.images.float().mean(1, keepdim=True).byte().expand(-1, 3, -1, -1))
    for batch in (whole["train"], whole["test"])
)

torch.manual_seed(0)
model = LowResClassifier("test_resnet", 4, image_size=32)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
images = resize(train.images, 32, mean=model.mean, std=model.std)
for _ in range(100):
    rows = torch.randperm(len(images))[:32]
    loss = CrossEntropyLoss()(model(images[rows]), train.targets[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def predict(side: int) -> torch.Tensor:
    """Return probabilities for test images that were stored at ``side`` pixels."""
    seen = resize(test.images, side, rounding="uint8", dtype=torch.uint8)
    return model.eval()(resize(seen, 32, mean=model.mean, std=model.std)).softmax(1)


found, classes = predict(32), splits["train"].classes
figure = confusion_matrix(test.targets, found, classes)

# %%
# The probability of the true class is lowest for these. A dashed frame is a wrong prediction.

hardest = found.gather(1, test.targets[:, None])[:, 0].argsort()[:12]
grid = prediction_grid(test.images[hardest], found[hardest], classes, targets=test.targets[hardest])

# %%

sides = (8, 12, 16, 24, 32, 48, 64)
scores = [(predict(side).argmax(1) == test.targets).float().mean().item() for side in sides]
curve = resolution_curve(sides, {"trained at 32 px": scores}, chance=1 / 4)
