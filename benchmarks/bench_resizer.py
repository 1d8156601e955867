"""Time LearnableResizer, forward and backward, against the paper written down plainly.

    python benchmarks/bench_resizer.py --output resizer.json
    python benchmarks/bench_resizer.py --device cuda --output resizer_cuda.json

32 x 32 to 224 x 224, 16 channels, one block, batch 16, gradient for the weights. ``paper`` is the
network as most would write it, with PyTorch's modules; outputs and gradients are asserted equal
in float64 before a clock starts. All candidates run in one process, in an order drawn anew in
each round. Reported are quartiles of milliseconds, and the median over rounds of ``paper`` in
contiguous and in channels_last memory format over the candidate: above 1, the candidate is faster.
``held`` is what each image keeps alive between forward and backward, while the backbone runs.

On a machine shared with others, whose threads hold up every parallel region, ``--clock cpu``
counts processor time instead; OMP_WAIT_POLICY=passive keeps waiting threads out of the count.
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _results import write_result
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowres_vision.resizer import LearnableResizer

BATCH, SOURCE, SIZE = 16, 32, (224, 224)


class Paper(nn.Module):
    """Talebi and Milanfar, 2021, one residual block."""

    def __init__(self, size: tuple[int, int], channels: int = 16) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(3, channels, 7, padding=3)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 3, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized images."""
        u = F.leaky_relu(self.conv1(x), 0.2)
        u = self.norm(F.leaky_relu(self.conv2(u), 0.2))
        s = F.interpolate(u, self.size, mode="bilinear", align_corners=False)
        h = s + self.block(s)
        h = self.norm3(self.conv3(h)) + s
        skip = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return self.conv4(h) + skip


class LiveStorages(TorchDispatchMode):
    """Within, remembers every storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def megabytes(self) -> float:
        """Return the size of those still alive."""
        return sum(size for ref, size in self.seen.values() if not ref.expired()) / 1e6


def train_step(model: nn.Module, x: Tensor, grad: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Run forward and backward, and return the output."""
    model.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        y: Tensor = model(x)
    y.backward(grad)
    return y.detach()


def assert_equal(paper: nn.Module, ours: nn.Module, seed: int) -> None:
    """Raise unless outputs and gradients agree to 1e-9, in float64."""
    generator = torch.Generator().manual_seed(seed)
    device = next(paper.parameters()).device
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64).to(device)
    grad = torch.rand(2, 3, *SIZE, generator=generator, dtype=torch.float64).to(device)
    outputs, gradients = [], []
    for model in (copy.deepcopy(paper).double(), copy.deepcopy(ours).double()):
        outputs.append(train_step(model, x, grad))
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)
    # Biases in front of a BatchNorm have a gradient of zero, but not to the last bit.
    atol = 1e-10 * max(float(g.abs().max()) for g in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=atol)


def held_megabytes(model: nn.Module, x: Tensor, *, bfloat16: bool) -> float:
    """Return what one image keeps alive between forward and backward, its output left out."""
    with (
        LiveStorages() as storages,
        torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False),
    ):
        y = model(x)
    return (storages.megabytes() - y.untyped_storage().nbytes() / 1e6) / len(x)


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    paper = Paper(SIZE)
    models: dict[str, nn.Module] = {"paper": paper}
    models["paper channels_last"] = Paper(SIZE).to(memory_format=torch.channels_last)
    models["ours"] = LearnableResizer(SIZE)
    models["ours checkpoint"] = LearnableResizer(SIZE, checkpoint=True)
    for model in models.values():
        model.to(arguments.device)
        model.load_state_dict(
            dict(zip(model.state_dict(), paper.state_dict().values(), strict=True))
        )
        assert_equal(paper, model, arguments.seed)

    contiguous = torch.rand(BATCH, 3, SOURCE, SOURCE).to(arguments.device)
    channels_last = contiguous.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(BATCH, 3, *SIZE).to(arguments.device)
    candidates = {
        "paper": ("paper", contiguous, False),
        "paper channels_last": ("paper channels_last", channels_last, False),
        "paper channels_last bf16": ("paper channels_last", channels_last, True),
        "ours": ("ours", contiguous, False),
        "ours channels_last": ("ours", channels_last, False),
        "ours checkpoint": ("ours checkpoint", contiguous, False),
        "ours bf16": ("ours", contiguous, True),
        "ours bf16 checkpoint": ("ours checkpoint", contiguous, True),
    }

    def call(name: str) -> Callable[[], Tensor]:
        model, x, bfloat16 = candidates[name]
        return lambda: train_step(models[model], x, grad, bfloat16=bfloat16)

    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = random.Random(arguments.seed)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    wait = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    for name in candidates:
        call(name)()
    for _ in range(arguments.rounds):
        for name in order.sample(list(candidates), len(candidates)):
            wait()
            start = clock()
            call(name)()
            wait()
            times[name].append((clock() - start) * 1e3)

    def ratio(name: str, base: str) -> float:
        pairs = zip(times[base], times[name], strict=True)
        return round(statistics.median(peer / mine for peer, mine in pairs), 2)

    results = []
    print(f"{'':26}{'ms':>8}{'paper / it':>12}{'channels_last / it':>20}{'held MB':>9}")
    for name, (model, x, bfloat16) in candidates.items():
        result = {
            "candidate": name,
            "milliseconds": [round(q, 1) for q in statistics.quantiles(times[name], n=4)],
            "paper_ratio": ratio(name, "paper"),
            "channels_last_ratio": ratio(name, "paper channels_last"),
            "held_megabytes": round(held_megabytes(models[model], x, bfloat16=bfloat16), 2),
        }
        results.append(result)
        print(
            f"{name:26}{result['milliseconds'][1]:8.0f}{result['paper_ratio']:12.2f}"
            f"{result['channels_last_ratio']:20.2f}{result['held_megabytes']:9.2f}"
        )
    cost = {
        "float32": round(1 / ratio("ours checkpoint", "ours"), 2),
        "bfloat16": round(1 / ratio("ours bf16 checkpoint", "ours bf16"), 2),
    }
    print(f"checkpoint takes {cost['float32']} x the time, under bf16 {cost['bfloat16']} x")
    write_result(
        arguments.output,
        __file__,
        columns="quartiles of milliseconds; medians of paper / candidate; MB per image",
        kind=arguments.device,
        threads=arguments.threads,
        clock=arguments.clock,
        rounds=arguments.rounds,
        seed=arguments.seed,
        checkpoint_cost=cost,
        results=results,
    )


if __name__ == "__main__":
    main()
