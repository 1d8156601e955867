"""Time training by this package's engine against the same training as a bare PyTorch loop.

    python benchmarks/bench_training.py --output training.json

Three ways to train one model on the same 64 px images, in the same batches, crops and order, with
AdamW, a cosine schedule and a validation by pooled macro-F1 after each epoch:

``loop``     a ``for`` loop over the loader, as one would write it by hand
``trainer``  the ``Classifier`` in a Lightning trainer without logger, bar and checkpoints
``run``      as ``cross_validate`` trains a fold: with CSV log, progress bar, a look at every loss
             and gradient, a record of the machine's use, checkpoints and best weights on disk

All must end with the same weights, bit for bit, or nothing is reported. They run in one process,
in an order drawn anew in each round. Reported are the quartiles of milliseconds per step, from the
first step until all is trained, validated and on disk, and the median over rounds of the ratio to
``loop``: 1.1 is ten percent of overhead. ``run`` writes its files in a second thread, which may
take another core; ``--clock cpu`` counts the processor time of both, for a machine shared with
others, and not what waits for the disk.
"""

import argparse
import contextlib
import io
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from _results import write_result
from sklearn.metrics import f1_score
from torch import nn

from lowres_vision._random import stream
from lowres_vision.augment import BatchTransform
from lowres_vision.data import Sample
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.training import Classifier, PairsDataModule
from lowres_vision.training._fold import FoldRun

Outcome = tuple[float, dict[str, torch.Tensor]]

CLASSES, SIDE = 25, 64
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


class Clock(L.Callback):
    """Takes the time from the first step to the end of training, and the weights then.

    A run trains with copies of its callbacks, so what they find goes into ``outcomes``.
    """

    outcomes: ClassVar[list[Outcome]] = []

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start."""
        self.started = self.now()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop."""
        seconds = self.now() - self.started
        Clock.outcomes.append((seconds, state_of(module.model)))


def draw_samples(count: int, seed: int) -> list[Sample]:
    """Return images of noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return [Sample(image, row % CLASSES, row) for row, image in enumerate(images)]


def make_transform() -> BatchTransform:
    """Return random crops and flips, at 64 px."""
    return BatchTransform(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)


def train_by_loop(
    model: nn.Module, data: PairsDataModule, epochs: int, now: Callable[[], float]
) -> Outcome:
    """Train as one would by hand."""
    model.to(memory_format=torch.channels_last)
    transform, loss_function = make_transform(), nn.CrossEntropyLoss()
    epoch_of = data.trainer = type("Epoch", (), {"current_epoch": 0, "world_size": 1})()
    train, held_out = data.train_dataloader(), data.val_dataloader()
    optimizer = ADAMW(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    started = now()
    for epoch in range(epochs):
        epoch_of.current_epoch = epoch
        model.train()
        transform.train()
        total = torch.zeros(())
        for index, batch in enumerate(train):
            images = transform(batch.images, generator=stream(0, 1, epoch, index))
            optimizer.zero_grad()
            loss = loss_function(model(images), batch.targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        model.eval()
        transform.eval()
        with torch.inference_mode():
            outputs = torch.cat([model(transform(batch.images)) for batch in held_out])
        targets = torch.cat([batch.targets for batch in held_out])
        f1_score(targets, outputs.argmax(1), average="macro")
        nn.functional.cross_entropy(outputs, targets).item()
        total.item()
    seconds = now() - started
    data.trainer = None
    return seconds, state_of(model)


def classifier_of(model: nn.Module) -> Classifier:
    """Return the classifier that the engine trains."""
    return Classifier(model, CrossEntropyLoss(), transform=make_transform(), optimizer=ADAMW)


def train_by_trainer(
    model: nn.Module, data: PairsDataModule, epochs: int, now: Callable[[], float]
) -> Outcome:
    """Train with Lightning alone around the classifier."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[Clock(now)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier_of(model), datamodule=data)
    return Clock.outcomes.pop()


def train_by_run(
    model: nn.Module, data: PairsDataModule, epochs: int, now: Callable[[], float]
) -> Outcome:
    """Train as ``cross_validate`` trains a fold."""
    with tempfile.TemporaryDirectory() as directory:
        run = FoldRun(
            Path(directory),
            epochs=epochs,
            monitor="val_macro_f1",
            precision="32-true",
            classes=tuple(map(str, range(CLASSES))),
            callbacks=[Clock(now)],
        )
        run.fit(classifier_of(model), data)
    return Clock.outcomes.pop()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the weights."""
    return {name: value.clone() for name, value in model.state_dict().items()}


WAYS = {
    "loop": train_by_loop,
    "trainer": train_by_trainer,
    "run": train_by_run,
}


def measure(backbone: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all ways in turn, after they have ended with the same weights."""
    samples = draw_samples(arguments.samples, arguments.seed)
    held_out = draw_samples(arguments.samples // 4, arguments.seed + 1)
    now = time.perf_counter if arguments.clock == "wall" else time.process_time
    steps = -(-arguments.samples // arguments.batch) * arguments.epochs

    def train(way: str) -> Outcome:
        torch.manual_seed(arguments.seed)
        model = LowResClassifier(backbone, CLASSES, image_size=SIDE)
        data = PairsDataModule(samples, held_out, batch_size=arguments.batch)
        with contextlib.redirect_stdout(io.StringIO()):
            return WAYS[way](model, data, arguments.epochs, now)

    states = {way: train(way)[1] for way in WAYS}
    for way, state in states.items():
        for name, value in states["loop"].items():
            if not torch.equal(value, state[name]):
                raise AssertionError(f"{way} and loop end with another {name}")
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    order = random.Random(arguments.seed)
    for _ in range(arguments.rounds):
        for way in order.sample(list(WAYS), len(WAYS)):
            times[way].append(train(way)[0] / steps * 1e3)
    return {
        "backbone": backbone,
        "steps": steps,
        "milliseconds": {
            way: [round(q, 3) for q in statistics.quantiles(values, n=4)]
            for way, values in times.items()
        },
        "ratio": {
            way: round(
                statistics.median(a / b for a, b in zip(values, times["loop"], strict=True)), 3
            )
            for way, values in times.items()
        },
    }


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["test_resnet", "mobilenetv2_035"])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")

    results = []
    print(f"{'':20}{'loop ms':>10}{'trainer':>10}{'run':>10}{'trainer/loop':>14}{'run/loop':>10}")
    for backbone in arguments.backbones:
        results.append(result := measure(backbone, arguments))
        medians = [values[1] for values in result["milliseconds"].values()]
        print(
            f"{backbone:20}{medians[0]:10.2f}{medians[1]:10.2f}{medians[2]:10.2f}"
            f"{result['ratio']['trainer']:14.3f}{result['ratio']['run']:10.3f}"
        )
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_result(
        arguments.output,
        __file__,
        packages=("lightning", "timm"),
        columns="quartiles of milliseconds per step; medians of way / loop",
        settings=settings,
        results=results,
    )


if __name__ == "__main__":
    main()
