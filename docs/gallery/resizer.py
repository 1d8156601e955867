"""
A learned resizer
=================

``LearnableResizer`` adds to the bilinear enlargement what the classifier behind it finds useful.
Here it is trained with a small network from scratch for a few steps, from 32 to 64 px. It starts
at exactly the bilinear image, and after so few steps its additions are small: a few hundredths of
the range. They are not meant to look good.
"""

import tempfile

import torch

from lowres_vision.data import Manifest, MultiResolutionDataset, collate, make_toy_folders
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.ops import resize
from lowres_vision.plots import resizer_panel
from lowres_vision.resizer import LearnableResizer

folder = make_toy_folders(tempfile.mkdtemp(), classes=4, per_class={"train": 16}, size=32)
shapes = Manifest.read_folders(folder / "train")
dataset = MultiResolutionDataset(shapes)
batch = collate([dataset[row] for row in range(len(dataset))])
images = batch.images.float() / 255

torch.manual_seed(0)
resizer = LearnableResizer(64, zero_init=True, attention="cbam")
model = LowResClassifier("test_resnet", 4, resizer=resizer, image_size=64)
rest = [value for name, value in model.named_parameters() if not name.startswith("resizer.")]
optimizer = torch.optim.AdamW(
    [{"params": rest, "lr": 3e-3}, {"params": resizer.parameters(), "lr": 1e-4}]
)
for _ in range(30):
    rows = torch.randperm(len(images))[:16]
    loss = CrossEntropyLoss()(model(images[rows]), batch.targets[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}, chance {torch.tensor(4.0).log().item():.2f}")

# %%
# Above bilinear, in the middle learned, below the difference.

shown = images[::16]
learned = resizer.eval()(shown).detach()
figure = resizer_panel(resize(shown, 64), learned)
