"""A run with a bomb in it stops in the step of the bomb, and the step can be run again."""

import json
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import Dataset

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Pair, Sample
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.optim import SAM
from lowres_vision.training import (
    Classifier,
    Consistency,
    NonFiniteGuard,
    PairsDataModule,
    replay,
)
from lowres_vision.training.__main__ import main
from lowres_vision.training._failed_step import FailedStep

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:Detected call of `lr_scheduler.step",  # where a scaler leaves out the first step
)
SGD = partial(torch.optim.SGD, lr=0.1)
AGAIN = "images and outputs are those of the step that failed, bit for bit"
BOMB = 13  # the row of the only black image


class Pictures(Dataset[Any]):
    """24 noisy images; number 13 is black, which has no finite logarithm."""

    def __init__(self, *, pairs: bool = False, bomb: int | None = BOMB) -> None:
        self.pairs, self.bomb = pairs, bomb

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Sample | Pair:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(40, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
        if index == self.bomb:
            image.zero_()
        if self.pairs:
            return Pair(image, image.repeat_interleave(2, 1).repeat_interleave(2, 2), 1, index)
        return Sample(image, index % 3, index)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amin(dim=(2, 3)).log()


class Net(nn.Module):
    """Logarithm of the darkest pixel, then layers that draw (dropout) and count (BatchNorm)."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.log(images))))


def build(optimizer: Any = SGD, **arguments: Any) -> Classifier:
    torch.manual_seed(3)
    transform = BatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3, scale=(0.5, 1.0))
    return Classifier(
        Net(), CrossEntropyLoss(), transform=transform, optimizer=optimizer, **arguments
    )


def build_pairs() -> Classifier:
    return build(pairing=Consistency())


def fit(
    classifier: Classifier,
    directory: Path,
    samples: Dataset[Any] | None = None,
    *,
    guard: NonFiniteGuard | None = None,
    half: bool = False,
    **arguments: Any,
) -> L.Trainer:
    data = PairsDataModule(samples or Pictures(), Pictures(), batch_size=6, **arguments)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", limit_val_batches=0, logger=False,
        # By its name, float16 is for GPUs only.
        plugins=[MixedPrecision("16-mixed", "cpu")] if half else None,
        callbacks=[guard or NonFiniteGuard(directory)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, data)
    return trainer


def batch_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "failure" / "failure.json").read_text())


class Spy(L.Callback):
    """Keeps the weights and statistics as they were before each step."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.before = {name: value.clone() for name, value in module.state_dict().items()}


def test_the_step_of_the_bomb_stops_the_run_and_names_it(tmp_path: Path) -> None:
    classifier = build()
    with pytest.raises(FloatingPointError) as caught:
        fit(classifier, tmp_path)
    about = batch_of(tmp_path)
    assert BOMB in about["rows"]
    assert len(about["rows"]) == 6
    text = str(caught.value)
    assert f"the loss is not finite in epoch 0, batch {about['batch_index']}" in text
    assert "first output not finite: model.log (Log), which read finite values" in text
    assert f"loss not finite by itself: row {BOMB}\n" in text
    assert f"replay {tmp_path / 'failure'} --build" in text
    # One NaN in a BatchNorm spoils every row of the batch; only one is to blame.
    assert sorted(about["found"]["rows"]) == sorted(about["rows"])
    assert about["found"]["rows_alone"] == [BOMB]


def test_nothing_of_the_step_is_left(tmp_path: Path) -> None:
    classifier, spy = build(), Spy()
    guard = NonFiniteGuard(tmp_path)
    data = PairsDataModule(Pictures(), Pictures(), batch_size=6)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", limit_val_batches=0, logger=False,
        callbacks=[spy, guard], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(FloatingPointError):
        trainer.fit(classifier, data)
    after = classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in spy.before.items())
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("seed", [0, 5])
def test_a_replay_is_the_step_bit_for_bit(tmp_path: Path, seed: int) -> None:
    with pytest.raises(FloatingPointError) as caught:
        fit(build(seed=seed), tmp_path, seed=seed)
    again = replay(tmp_path / "failure", build())
    assert again.same is True
    assert again.rows_alone == (BOMB,)
    assert set(again.to_text().splitlines()) - {
        "images and outputs are those of the step that failed, bit for bit"
    } <= {line.strip() for line in str(caught.value).splitlines()}


class NetOfMany(Net):
    """Its BatchNorm asks the other processes for their statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.SyncBatchNorm(3)


def test_one_process_looks_into_a_step_by_itself(tmp_path: Path) -> None:
    """The others may not look, and it would wait for them; with gloo it would raise."""

    def build_of_many() -> Classifier:
        torch.manual_seed(3)
        transform = BatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
        return Classifier(NetOfMany(), CrossEntropyLoss(), transform=transform, optimizer=SGD)

    with pytest.raises(FloatingPointError):
        fit(build_of_many(), tmp_path)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        again = build_of_many()
        assert replay(tmp_path / "failure", again).rows_alone == (BOMB,)
        assert "forward" not in vars(again.model.norm)
    finally:
        torch.distributed.destroy_process_group()


def test_another_crop_or_mask_would_be_noticed(tmp_path: Path) -> None:
    """The comparison can fail: with another key or random state it does."""
    with pytest.raises(FloatingPointError):
        fit(cliff(), tmp_path, Pictures(bomb=None))
    assert replay(tmp_path / "failure", cliff()).same is True
    for change in ({"epoch": 1}, {"seed": 1}, {"batch_index": 1}):
        step = FailedStep.load(tmp_path / "failure")
        vars(step).update(change)
        step.save(tmp_path / "crop")
        assert replay(tmp_path / "crop", cliff()).same is False
    step = FailedStep.load(tmp_path / "failure")
    step.random_state["cpu"] = torch.Generator().manual_seed(1).get_state()
    step.save(tmp_path / "mask")
    assert replay(tmp_path / "mask", cliff()).same is False


def test_mixed_batches_and_lists_of_images(tmp_path: Path) -> None:
    class Sizes(Pictures):
        def __getitem__(self, index: int) -> Sample:
            image, target, row = super().__getitem__(index)
            return Sample(image[:, : 6 + index % 3], target, row)  # type: ignore[index, arg-type]

    with pytest.raises(FloatingPointError):
        fit(build(), tmp_path, Sizes(), collate=CutMixCollator(3, p=1.0, size=8))
    again = replay(tmp_path / "failure", build())
    assert again.same is True
    assert again.rows
    again = replay(tmp_path / "failure", build())
    assert again.same is True


def test_pairs(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        fit(build_pairs(), tmp_path, Pictures(pairs=True))
    again = replay(tmp_path / "failure", build_pairs())
    assert again.same is True
    assert again.rows_alone == (BOMB,)
    assert set(again.terms) == {"train_labels", "train_consistency"}


def test_sam_in_its_first_pass(tmp_path: Path) -> None:
    sam = partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1)
    with pytest.raises(FloatingPointError) as caught:
        fit(build(sam), tmp_path)
    assert "second pass" not in str(caught.value)
    assert replay(tmp_path / "failure", build()).same is True


class Cliff(nn.Module):
    """Finite where SAM starts, infinite anywhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.drop(images.mean(dim=(2, 3)) * self.weight)
        safe = (self.weight.detach() == 1).all()
        return torch.where(safe | torch.tensor([True, False, True]), x, torch.inf)


def cliff() -> Classifier:
    sam = partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1)
    transform = BatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(Cliff(), CrossEntropyLoss(), transform=transform, optimizer=sam)


def test_sam_in_its_second_pass(tmp_path: Path) -> None:
    classifier = cliff()
    with pytest.raises(FloatingPointError, match=r"batch 0 .*, second pass"):
        fit(classifier, tmp_path, Pictures(bomb=None))
    assert torch.equal(classifier.model.weight, torch.ones(3))
    again = replay(tmp_path / "failure", cliff())
    assert again.same is True
    assert again.first_module == "model (Cliff)"


class Kink(nn.Module):
    """A finite value with an infinite slope: the square root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * self.scale + self.weight.sqrt()


def kink(optimizer: Any = SGD) -> Classifier:
    transform = BatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(Kink(), CrossEntropyLoss(), transform=transform, optimizer=optimizer)


def test_an_infinite_gradient_stops_before_the_weights_are_lost(tmp_path: Path) -> None:
    classifier = kink()
    with pytest.raises(FloatingPointError, match="the gradient is not finite in epoch 0, batch 0"):
        fit(classifier, tmp_path, Pictures(bomb=None))
    assert torch.equal(classifier.model.weight, torch.zeros(3))
    again = replay(tmp_path / "failure", kink())
    assert again.same is True
    assert again.gradients == ("model.weight",)
    assert again.rows == ()


def test_a_huge_gradient_is_not_an_infinite_one(tmp_path: Path) -> None:
    """Its square is infinite in float32."""
    fit(loud(1e25, lr=0.0), tmp_path, Pictures(bomb=None))


def test_steps_that_sam_leaves_out_are_counted_and_limited(tmp_path: Path) -> None:
    sam = partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1)
    guard = NonFiniteGuard(tmp_path, max_skipped=3)
    with pytest.raises(FloatingPointError, match="3 steps in a row were left out"):
        fit(kink(sam), tmp_path, Pictures(bomb=None), guard=guard)
    assert guard.skipped_steps == 3
    assert replay(tmp_path / "failure", kink(sam)).gradients == ("model.weight",)


class Loud(nn.Module):
    """Gradients that float16 holds at a scale of ``loud`` but not of 65536."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.loud = loud

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3))) * self.loud


def loud(value: float, lr: float = 1e-6) -> Classifier:
    transform = BatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    optimizer = partial(torch.optim.SGD, lr=lr)
    return Classifier(Loud(value), CrossEntropyLoss(), transform=transform, optimizer=optimizer)


def test_a_scaler_that_finds_its_scale_is_no_error(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path)
    trainer = fit(loud(30.0), tmp_path, Pictures(bomb=None), guard=guard, half=True)
    assert 0 < guard.skipped_steps < 8
    assert float(trainer.callback_metrics["skipped_steps"]) == guard.skipped_steps
    assert not (tmp_path / "failure").exists()


def test_a_scaler_that_finds_none_is_stopped(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, max_skipped=4)
    with pytest.raises(FloatingPointError, match="4 steps in a row were left out"):
        fit(kink(), tmp_path, Pictures(bomb=None), guard=guard, half=True)
    again = replay(tmp_path / "failure", kink())
    assert again.same is True
    assert again.gradients == ("model.weight",)


def test_a_loss_in_float16_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is not finite"):
        fit(build(), tmp_path, half=True)
    assert replay(tmp_path / "failure", build()).same is True


def test_a_sound_run_is_left_as_it_is(tmp_path: Path) -> None:
    weights = []
    for guard in (True, False):
        classifier = build()
        data = PairsDataModule(Pictures(bomb=None), Pictures(), batch_size=6)
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", limit_val_batches=0, logger=False,
            callbacks=[NonFiniteGuard(tmp_path)] if guard else [], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(classifier, data)
        weights.append(classifier.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_counters_survive_a_resume(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path)
    guard.load_state_dict({"skipped_steps": 7, "in_a_row": 2})
    assert guard.state_dict() == {"skipped_steps": 7, "in_a_row": 2}


def test_the_command_runs_the_step_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FloatingPointError):
        fit(build(), tmp_path)
    assert main(["replay", str(tmp_path / "failure"), "--build", f"{__file__}:build"]) == 0
    printed = capsys.readouterr().out
    assert f"loss not finite by itself: row {BOMB}" in printed
    assert AGAIN in printed
    for wrong in ("build", "none.py:build", f"{__file__}:nothing"):
        with pytest.raises(SystemExit):
            main(["replay", str(tmp_path / "failure"), "--build", wrong])
    assert "has no function nothing" in capsys.readouterr().err


def test_damaged_files_and_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        fit(build(), tmp_path)
    with pytest.raises(ValueError, match="do not fit the classifier that was built"):
        replay(tmp_path / "failure", kink())
    for name in ("weights.safetensors", "batch.safetensors"):
        path = tmp_path / "failure" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} differs from the file"):
            replay(tmp_path / "failure", build())
        path.write_bytes(data)
    assert {p.suffix for p in (tmp_path / "failure").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("slow_disk", [0, 1])
def test_of_two_processes_none_ends_before_both_have_saved(
    slow_disk: int, machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """They share a gradient that only one is to blame for, and with the first all are killed."""
    out = machine.folder / f"steep_{slow_disk}"
    codes = machine.run(out, world=2, workers=0, model="plain", trick="steep", slow_disk=slow_disk)
    assert 1 in codes
    assert set(codes) <= {1, -signal.SIGKILL}
    log = (machine.folder / "log.txt").read_text()
    assert re.search(r"FloatingPointError: the gradient is not finite in epoch 0", log[-3000:])
    build = Path(__file__).with_name("forked_runs.py")
    blamed = []
    for rank in (0, 1):
        failure = out / "fold_0" / f"failure_rank_{rank}"
        assert f"failure_rank_{rank}: loss " in log[-3000:]
        assert main(["replay", str(failure), "--build", f"{build}:steep"]) == 0
        blamed.append("gradient not finite: model.layers" in capsys.readouterr().out)
    assert any(blamed)
