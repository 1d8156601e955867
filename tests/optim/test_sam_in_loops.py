"""SAM where others drive it: a gradient scaler, Lightning, two processes, the compiler."""

import contextlib
import copy
import itertools
import socket
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lowres_vision.optim import SAM, CosineWarmRestarts, keep_batch_norm_statistics

STEPS = 4
# Weights of order 1 after at most four steps, each with a norm and gradients summed differently.
FLOAT32 = 64 * torch.finfo(torch.float32).eps


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def make_data(samples: int = 8 * STEPS) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 4, generator=generator)
    return TensorDataset(images, torch.randint(3, (samples,), generator=generator))


def assert_same(found: nn.Module, expected: nn.Module, *, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(
        found.state_dict(), expected.state_dict(), rtol=tolerance, atol=tolerance
    )


def train(model: nn.Module, optimizer: SAM, *schedulers: CosineWarmRestarts) -> None:
    """The closure of the documentation, a step per eight samples."""
    for images, targets in DataLoader(make_data(), batch_size=8):

        def closure(images: Tensor = images, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            with keep_batch_norm_statistics(model, enabled=optimizer.in_second_pass):
                loss = F.cross_entropy(model(images), targets)
                loss.backward()
            return loss

        optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step()


def scaled_step(
    model: nn.Module, optimizer: SAM, scaler: GradScaler, *, clip: float | None = None
) -> None:
    images, targets = make_data(8).tensors
    scaler.scale(F.cross_entropy(model(images), targets)).backward()
    optimizer.first_step(zero_grad=True)
    with keep_batch_norm_statistics(model):
        scaler.scale(F.cross_entropy(model(images), targets)).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("enabled", [True, False])
def test_scaled_steps_are_the_unscaled_ones(clip: float | None, enabled: bool) -> None:
    models = [make_model(), make_model()]
    scalers = [
        GradScaler("cpu", enabled=False),
        GradScaler("cpu", init_scale=2.0**10, enabled=enabled),
    ]
    for model, scaler in zip(models, scalers, strict=True):
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
        for _ in range(STEPS):
            scaled_step(model, optimizer, scaler, clip=clip)
        assert optimizer.skipped_steps == 0
    assert_same(models[1], models[0], tolerance=FLOAT32)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_an_overflow_under_a_scaler_leaves_the_weights_and_lowers_the_scale(
    clip: float | None,
) -> None:
    model, free = make_model(), make_model()
    settings: Any = {"rho": 0.5, "lr": 0.1, "momentum": 0.9}
    optimizer = SAM(model.parameters(), torch.optim.SGD, **settings)
    scaler = GradScaler("cpu", init_scale=2.0**127 * 1.9)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scales = []
    while not optimizer.state:
        for parameter, value in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(parameter.data, value, rtol=0, atol=0)
        scaled_step(model, optimizer, scaler, clip=clip)
        scales.append(scaler.get_scale())
    halvings = [earlier / later for earlier, later in itertools.pairwise(scales)]
    assert optimizer.skipped_steps == len(scales) - 1 > 2
    assert halvings == [2.0] * (len(scales) - 2) + [1.0]

    other = SAM(free.parameters(), torch.optim.SGD, **settings)
    scaled_step(free, other, GradScaler("cpu", enabled=False), clip=clip)
    for found, expected in zip(model.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_an_overflow_in_one_pass_reaches_the_scaler(bad_pass: int) -> None:
    model = make_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, targets = make_data(8).tensors
    for number in (1, 2):
        loss = F.cross_entropy(model(images), targets)
        scaler.scale(loss * float("inf") if number == bad_pass else loss).backward()
        if number == 1:
            optimizer.first_step(zero_grad=True)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert optimizer.skipped_steps == 1
    for parameter, value in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.data, value, rtol=0, atol=0)


def test_clipping_by_value_does_not_hide_an_overflow() -> None:
    model = make_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, targets = make_data(8).tensors
    scaler.scale(F.cross_entropy(model(images), targets)).backward()
    optimizer.first_step(zero_grad=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_value_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert optimizer.skipped_steps == 1
    for parameter, value in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.data, value, rtol=0, atol=0)


def test_a_scaler_with_a_closure_is_refused() -> None:
    model = make_model()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = GradScaler("cpu")
    scaler.scale(model(make_data(8).tensors[0]).sum()).backward()
    with pytest.raises(RuntimeError, match="a GradScaler takes no closure"):
        scaler.step(optimizer, lambda: None)


def test_a_compiled_model_does_not_recompile() -> None:
    model, plain = make_model(), make_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    other = SAM(plain.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer)
    train(plain, other)
    assert_same(model, plain, tolerance=FLOAT32)
    torch._dynamo.reset()


class Trained(L.LightningModule):
    """A step in two halves if optimization is manual, with a closure if it is automatic."""

    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__()
        self.model = make_model()
        self.automatic_optimization = automatic

    def configure_optimizers(self) -> Any:
        optimizer = SAM(self.parameters(), torch.optim.SGD, rho=0.5, lr=9.0, momentum=0.9)
        scheduler = CosineWarmRestarts(optimizer, first_cycle=3, warmup=1, max_lr=0.1, min_lr=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def loss(self, batch: list[Tensor]) -> Tensor:
        second: bool = self.optimizers().in_second_pass
        with keep_batch_norm_statistics(self.model, enabled=second):
            return F.cross_entropy(self.model(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(batch)
        optimizer: Any = self.optimizers()
        self.manual_backward(self.loss(batch))
        optimizer.first_step(zero_grad=True)
        self.manual_backward(self.loss(batch))
        optimizer.second_step(zero_grad=True)
        self.lr_schedulers().step()
        return None


def fit(module: Trained, folder: Path, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, DataLoader(make_data(), batch_size=8))
    return trainer


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*many workers")
class TestLightning:
    @pytest.mark.parametrize("automatic", [True, False])
    def test_it_makes_the_steps_of_a_bare_loop(self, automatic: bool, tmp_path: Path) -> None:
        module = Trained(automatic=automatic)
        trainer = fit(module, tmp_path)
        assert trainer.global_step == STEPS
        model = make_model()
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=9.0, momentum=0.9)
        settings: Any = {"first_cycle": 3, "warmup": 1, "max_lr": 0.1, "min_lr": 0.01}
        train(model, optimizer, CosineWarmRestarts(optimizer, **settings))
        assert_same(module.model, model)

    def test_clipping_counts_in_the_second_pass(self, tmp_path: Path) -> None:
        free, clipped = Trained(), Trained()
        fit(free, tmp_path)
        fit(clipped, tmp_path, gradient_clip_val=1e-9)
        start = make_model()
        before, after = start[3].weight, clipped.model[3].weight
        assert (free.model[3].weight - before).abs().max() > 1e-3
        assert (after - before).abs().max() < 1e-8

    def test_a_checkpoint_resumes_to_the_bit(self, tmp_path: Path) -> None:
        whole, half, resumed = Trained(), Trained(), Trained()
        fit(whole, tmp_path, max_epochs=2)
        fit(half, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=2,
        )
        loader = DataLoader(make_data(), batch_size=8)
        trainer.fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        assert_same(resumed, whole)

    def test_its_accumulation_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="accumulate_grad_batches=1"):
            fit(Trained(), tmp_path, accumulate_grad_batches=2)

    def test_a_scaler_needs_the_two_halves(self, tmp_path: Path) -> None:
        module, plain = Trained(automatic=False), Trained(automatic=False)
        scaler = GradScaler("cpu", init_scale=2.0**4)
        fit(module, tmp_path, plugins=[Scaled("16-mixed", "cpu", scaler)])
        fit(plain, tmp_path)
        assert_same(module, plain, tolerance=FLOAT32)
        with pytest.raises(RuntimeError, match="`step` needs a closure, or a `first_step`"):
            fit(Trained(), tmp_path, plugins=[Scaled("16-mixed", "cpu", scaler)])


class Scaled(MixedPrecision):
    """Scales the loss as 16-mixed does and computes in float32, to be compared exactly."""

    def forward_context(self) -> Any:
        return contextlib.nullcontext()


CASES = list(itertools.product(["shared", "local", "sharded"], [False, True]))


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def run_rank(rank: int, port: int, folder: str) -> None:
    """Train on this rank's half of each batch; in a bad case, rank 1 overflows in step 1."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {case: train_rank(rank, *case) for case in CASES}
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def train_rank(rank: int, way: str, bad: bool) -> tuple[int, dict[str, Tensor]]:
    images, targets = make_data().tensors
    model = make_net()
    if way == "sharded":
        parallel: Any = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        parallel = DistributedDataParallel(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
    for step in range(STEPS):
        own = slice(8 * step + 4 * rank, 8 * step + 4 * rank + 4)
        scale = float("inf") if bad and rank == step == 1 else 1.0

        def closure(own: slice = own, scale: float = scale, sam: SAM = optimizer) -> Tensor:
            sam.zero_grad()
            first = not sam.in_second_pass
            with parallel.no_sync() if way == "local" and first else contextlib.nullcontext():
                loss = F.cross_entropy(parallel(images[own].double()), targets[own])
                (loss * scale if first else loss).backward()
            return loss

        optimizer.step(closure)
        if way == "sharded" and step == 1 and not bad:  # as a run that is resumed
            saved = get_optimizer_state_dict(model, optimizer)
            optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
            set_optimizer_state_dict(model, optimizer, saved)
    state = {
        name: value.full_tensor() if way == "sharded" else value
        for name, value in model.state_dict().items()
    }
    return optimizer.skipped_steps, state


def run_alone(*, local: bool, bad: bool) -> dict[str, Tensor]:
    """The same in one process: one climb for the batch, or one for each half of it."""
    images, targets = make_data().tensors
    model = make_net()
    weights = list(model.parameters())
    base = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    for step in range(STEPS):
        if bad and step == 1:
            continue
        start, size = 8 * step, 4 if local else 8
        shares = [slice(begin, begin + size) for begin in range(start, start + 8, size)]
        base.zero_grad()
        for share in shares:
            climb = copy.deepcopy(model)
            for number in (1, 2):
                loss = F.cross_entropy(climb(images[share].double()), targets[share])
                gradients = torch.autograd.grad(loss, list(climb.parameters()))
                norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
                if number == 1:
                    for weight, gradient in zip(climb.parameters(), gradients, strict=True):
                        weight.data += 0.5 * gradient / (norm + 1e-12)
            for weight, gradient in zip(weights, gradients, strict=True):
                part = gradient / len(shares)
                weight.grad = part if weight.grad is None else weight.grad + part
        base.step()
    return model.state_dict()


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, args=(port, str(tmp_path)), nprocs=2, join=True)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for way, bad in CASES:
        (skipped, first), (others, second) = (rank[way, bad] for rank in ranks)
        assert skipped == others == int(bad)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        # Sums over four steps of a batch of eight in another order.
        exact = 64 * torch.finfo(torch.float64).eps
        alone = run_alone(local=way == "local", bad=bad)
        torch.testing.assert_close(first, alone, rtol=exact, atol=exact)
