"""Two processes that share the weights out between them, on the CPU."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from lowres_vision.training.__main__ import main
from lowres_vision.training._checkpoint import read_checkpoint
from lowres_vision.training._fold import FoldRun
from lowres_vision.training._sharding import shard

RUN: dict[str, Any] = {"workers": 0, "model": "plain", "epochs": 7, "keep": 7, "patience": 9}


def weights(out: Path) -> list[dict[str, torch.Tensor]]:
    return [
        load_file(out / f"fold_{fold}" / f"epoch_{epoch}.safetensors")
        for fold in (0, 1)
        for epoch in (0, 6)
    ]


def assert_close(ours: Path, theirs: Path) -> None:
    """Within what float32 sums in another order, 1e-7 each, make of 21 steps of size 0.01."""
    for one, two in zip(weights(ours), weights(theirs), strict=True):
        assert list(one) == list(two)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    for name in ("probabilities", "test"):
        one, two = (np.load(out / "fold_1" / "predictions.npz")[name] for out in (ours, theirs))
        np.testing.assert_allclose(one, two, atol=1e-5)
    one, two = (
        np.genfromtxt(out / "fold_0" / "metrics.csv", delimiter=",", names=True)
        for out in (ours, theirs)
    )
    for name in ("train_loss", "val_loss", "val_accuracy", "val_macro_f1"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


@pytest.mark.parametrize(
    "trick", ["clip", *(pytest.param(trick, marks=pytest.mark.slow) for trick in ("ema", "sam"))]
)
def test_two_that_share_train_the_weights_of_one(trick: str, machine: Any) -> None:
    """Weights of the first and the last of 7 epochs, predictions, scores."""
    for world in (1, 2):
        out = machine.folder / f"{trick}_{world}"
        machine.finish(out, world=world, strategy="fsdp", trick=trick, **RUN)
    assert_close(machine.folder / f"{trick}_1", machine.folder / f"{trick}_2")
    first, last = weights(machine.folder / f"{trick}_2")[:2]
    assert (first["layers.0.weight"] - last["layers.0.weight"]).abs().max() > 1e-2


def shapes(value: Any) -> Any:
    """Return the structure of a checkpoint: its keys, and the shapes of its tensors."""
    if isinstance(value, dict):
        return {key: shapes(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(entry) for entry in value]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize(
    ("arithmetic", "atol"),
    [
        ({"accumulate": 2}, 1e-5),
        # Six steps of 0.01 by gradients that round otherwise, by 2**-8; ten times that, as some
        # are sums whose terms cancel. Measured: 4e-4, and 1e-2 between bf16 and float32.
        ({"precision": "bf16-mixed"}, 10 * 6 * 0.01 * 2**-8),
    ],
    ids=["accumulate", "bf16-mixed"],
)
def test_accumulation_and_bf16_go_with_it(
    arithmetic: dict[str, Any], atol: float, machine: Any
) -> None:
    """Two that share train the weights of one, which are not those of plain float32 steps."""
    short = {**RUN, "epochs": 2, "keep": 2}
    found = []
    for world, options in ((1, arithmetic), (2, arithmetic), (1, {})):
        out = machine.folder / f"{'_'.join(arithmetic)}_{world}_{len(options)}"
        machine.finish(out, world=world, strategy="fsdp", **{**short, **options})
        found.append(load_file(out / "fold_0" / "epoch_1.safetensors"))
    one, two, plain = found
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=atol)
    assert any(not torch.allclose(one[name], plain[name], rtol=0, atol=atol) for name in one)


@pytest.mark.slow
def test_a_checkpoint_is_that_of_whole_weights_and_any_strategy_goes_on_from_it(
    machine: Any,
) -> None:
    """Killed in the second epoch while weights are shared out; finished by one process."""
    kill = {"rank": 0, "place": "saving", "count": 37}
    found = {}
    for world, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
        out = machine.folder / f"killed_{strategy}"
        codes = machine.run(out, world=world, strategy=strategy, kill=kill, **RUN)
        assert codes[0] == -signal.SIGKILL, (machine.folder / "log.txt").read_text()[-3000:]
        found[strategy] = read_checkpoint(out / "fold_0" / "training.checkpoint")
    assert found["fsdp"]["global_step"] == found["ddp"]["global_step"] > 3
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert shapes(found["fsdp"][part]) == shapes(found["auto"][part])
    assert shapes(found["fsdp"]) == shapes(found["ddp"])
    unbroken = machine.folder / "unbroken_plain"
    machine.finish(unbroken, world=1, strategy="auto", **RUN)
    machine.finish(machine.folder / "killed_fsdp", world=1, strategy="auto", **RUN)
    assert_close(machine.folder / "killed_fsdp", unbroken)
    machine.finish(machine.folder / "killed_auto", world=2, strategy="fsdp", **RUN)
    assert_close(machine.folder / "killed_auto", unbroken)


def test_a_loss_that_is_not_finite_stops_all_and_is_replayed_by_one(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is on the disk, a slow one, before the first ends, with whom the others are killed.

    Its own last words may be what the other does not come to.
    """
    out = machine.folder / "not_finite"
    codes = machine.run(out, world=2, strategy="fsdp", trick="nan", slow_disk=0, **RUN)
    assert 1 in codes
    assert set(codes) <= {1, -signal.SIGKILL}
    log = (machine.folder / "log.txt").read_text()
    assert "FloatingPointError: the loss is not finite in epoch 0" in log[-3000:]
    failure = out / "fold_0" / "failure"
    rows = json.loads((failure / "failure.json").read_text())["rows"]
    assert f"rows {', '.join(map(str, rows))}, those of all processes" in log[-3000:]
    build = Path(__file__).with_name("forked_runs.py")
    assert main(["replay", str(failure), "--build", f"{build}:not_finite"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("loss nan")
    (alone,) = re.findall(r"loss not finite by itself: row (.*)", told)
    assert set(alone.split(", ")) < set(map(str, rows))


def test_what_does_not_go_with_it_is_refused(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"epochs": 1, "monitor": "val_loss", "classes": ("a", "b")}
    with pytest.raises(ValueError, match=r"'fsdp' does not go with .*use 'bf16-mixed'"):
        FoldRun(tmp_path, strategy="fsdp", precision="16-mixed", **usual)
    with pytest.raises(ValueError, match=r"must be 'fsdp' to share .* got 'deepspeed'"):
        FoldRun(tmp_path, strategy="deepspeed", precision="32-true", **usual)


class Stages(nn.Module):
    """Blocks by stage, as in HRNet: a list of lists, which have no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
            for _ in range(2)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                features = block(features)
        return features


def test_lists_of_lists_of_blocks_are_shared_out_block_by_block() -> None:
    model, features = Stages(), torch.randn(5, 4)
    expected = model(features)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard(model, init_device_mesh("cpu", (1,)))
        torch.testing.assert_close(model(features), expected)
    finally:
        dist.destroy_process_group()
    parts = [name for name, part in model.named_modules() if isinstance(part, FSDPModule)]
    assert parts == ["", *(f"stages.{stage}.{block}" for stage in (0, 1) for block in (0, 1))]
