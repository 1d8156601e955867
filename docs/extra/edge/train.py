"""Train and export the model of the page, and draw its sample pictures.

    python docs/extra/edge/train.py

57,000 parameters learn ten kinds of drawn bird at 32 px, from 2,000 generated pictures of 64 px.
Of 200 more, drawn from another seed, it knows 187. It takes 50 seconds of one core of a CPU.
Seeded: the same versions on the same processor write the same bytes; `model.onnx.json` holds the
versions and the digest of those that are shipped.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation as Conv

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, ResidentLoader, make_toy_folders
from lowres_vision.export import Predictor, TrainedModel, export_onnx
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.resizer import Resize

SIZE = 32
CLASSES = 10
EPOCHS = 30


def main(out: Path) -> None:
    """Write ``model.onnx``, its certificate and ``samples`` to ``out``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_toy_folders(folder, classes=CLASSES, per_class={"train": 200}, seed=0)
        make_toy_folders(folder, classes=CLASSES, per_class={"test": 20}, seed=1)
        manifests = Manifest.read_splits(drawn)
        names = manifests["train"].classes
        loader = ResidentLoader(
            MultiResolutionDataset(manifests["train"]), batch_size=64, shuffle=True
        )
        (test,) = ResidentLoader(MultiResolutionDataset(manifests["test"]), batch_size=20 * CLASSES)
        (out / "samples").mkdir(exist_ok=True)
        for name in names[::2]:
            shutil.copyfile(f"{folder}/test/{name}/0.png", out / f"samples/{name}.png")

    loss = CrossEntropyLoss(label_smoothing=0.05)
    # Mirrored stripes are those of another bird: no flip.
    transform = BatchTransform(SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, scale=(0.4, 1), flip=0)
    model = train(loader, transform, loss)
    predictor = Predictor([TrainedModel(model, loss, transform)], classes=names)
    with torch.no_grad():
        right = int((predictor(test.images).argmax(1) == test.targets).sum())
    certificate = export_onnx(
        predictor,
        out / "model.onnx",
        test.images,
        dynamic_size=True,
        view=Resize(SIZE),
        notes={"held out": f"{right} of {len(test.images)}", "licence": "MIT"},
    )
    print(f"{right} of {len(test.images)} held-out pictures; {certificate.sha256}")


def train(loader: ResidentLoader, transform: BatchTransform, loss: CrossEntropyLoss) -> nn.Module:
    """Return a small convolutional network, trained."""
    model = nn.Sequential(
        Conv(3, 16),
        Conv(16, 32, stride=2),
        Conv(32, 32),
        Conv(32, 48, stride=2),
        Conv(48, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=EPOCHS * len(loader)
    )
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            step: Tensor = loss(model(transform(batch.images)), batch.targets)
            optimizer.zero_grad()
            step.backward()
            optimizer.step()
            schedule.step()
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    main(parser.parse_args().out)
