"""Time the fused resize against what people use, on the CPU or a GPU.

    python benchmarks/bench_resize.py --output resize.json
    python benchmarks/bench_resize.py --tuned-malloc --output resize_tuned.json
    python benchmarks/bench_resize.py --device cuda --batch 1024 --output resize_cuda.json

Every candidate turns the same uint8 batch into the same normalised float batch of 224 pixels:

    A  64 -> 224      B  256 -> 224      C  32 -> 224      D  512 -> 224
    E  64 -> 224 with a random crop and flip per image      M  E, and MixUp

and ``gradient A`` to ``gradient D`` time the backward pass of float images. A peer that is not
installed, or fails, is left out. All run in one process, in an order drawn anew in each round;
reported are the median and quartiles in milliseconds, the median over rounds of the ratio to
torchvision v2 (to aten without antialias for gradients; above 1 is faster), the median ratio to the
limit (filling a result that exists; a copy of it on a GPU), and the largest error against float64.

glibc returns every block above 32 MB to the system at once, and paging it in again dominates
what most candidates cost. ``--tuned-malloc`` starts again with a malloc that keeps its blocks.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _results import write_result
from resize_peers import MEAN, SIZE, STD, Candidates, Work, peer_candidates
from torch import Tensor

from lowres_vision.ops import (
    Mix,
    output_pool,
    random_resized_crop_boxes,
    resize,
    resize_implementation,
)
from lowres_vision.ops._resize import native
from lowres_vision.ops._resize.settings import Settings

PACKAGES = (
    "torchvision", "numpy", "pillow", "kornia", "kornia_rs", "albumentations",
    "opencv-python-headless", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "onnxruntime", "triton",
)  # fmt: skip
SOURCES = {"A": 64, "B": 256, "C": 32, "D": 512, "E": 64, "M": 64}
TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",  # a threshold would not do: glibc takes none above 32 MB
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def make_work(name: str, batch: int, device: str, seed: int) -> Work:
    """Draw a batch of uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    side = SOURCES[name]
    shape = (batch, side, side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.permute(0, 3, 1, 2).to(device)
    boxes = flip = mix = None
    if name in "EM":
        boxes = random_resized_crop_boxes(batch, (side, side), generator=generator).to(device)
        flip = (torch.rand(batch, generator=generator) < 0.5).to(device)
    if name == "M":
        partner = torch.randperm(batch, generator=generator).to(device)
        mix = Mix(partner, torch.rand(batch, generator=generator).to(device))
    return Work(name, images, boxes, flip, mix)


def our_candidates(work: Work) -> Candidates:
    """Return the public function, with results from the pool and into a given tensor."""
    images, arguments = work.images, work.arguments
    shape = (len(images), 3, SIZE, SIZE)
    out = torch.empty(shape, device=images.device)
    ours: Candidates = {
        "ours": partial(resize, images, SIZE, **arguments),
        "ours, out=": partial(resize, images, SIZE, out=out, **arguments),
        "ours, bfloat16": partial(resize, images, SIZE, dtype=torch.bfloat16, **arguments),
        "ours, channels_last": partial(resize, images, SIZE, channels_last=True, **arguments),
        "ours, bfloat16 channels_last": partial(
            resize, images, SIZE, dtype=torch.bfloat16, channels_last=True, **arguments
        ),
        'ours, rounding="uint8"': partial(resize, images, SIZE, rounding="uint8", **arguments),
        "ours, reference": partial(resize, images, SIZE, impl="reference", **arguments),
    }
    if images.device.type == "cpu":
        ours["ours, no pool"] = partial(without_pool, ours["ours"])
        if native.available():
            ours["ours, portable C"] = partial(portable, out, work)
    return ours


def without_pool(call: Callable[[], object]) -> object:
    """Run with results from malloc."""
    limit, output_pool.limit = output_pool.limit, 0
    try:
        return call()
    finally:
        output_pool.limit = limit


def portable(out: Tensor, work: Work) -> Tensor:
    """Run the kernel as on a machine without vector extensions, into a given tensor."""
    std, mean = torch.tensor(STD), torch.tensor(MEAN)
    mix = {"partner": work.mix.partner, "lam": work.mix.lam} if work.mix else {}
    settings = Settings(work.boxes, work.flip, 1 / (255 * std), -mean / std, **mix)
    native.run(out, [work.images], settings, instructions="portable")
    return out


def gradient_candidates(name: str, batch: int, device: str, seed: int) -> Candidates:
    """Return the backward passes of float images; the first is the one to compare with."""
    side = SOURCES[name]
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, side, side, generator=generator).to(device).requires_grad_()
    gradient = torch.rand(batch, 3, SIZE, SIZE, generator=generator).to(device)

    def backward(result: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(result, images, gradient, retain_graph=True)

    aten = partial(F.interpolate, size=(SIZE, SIZE), mode="bilinear")
    return {
        "aten": backward(aten(images)),
        "aten, antialias": backward(aten(images, antialias=True)),
        "ours": backward(resize(images, SIZE, antialias=False)),
        "ours, antialias": backward(resize(images, SIZE)),
        "limit": gradient.sum,
    }


def limits(shape: tuple[int, ...], device: str) -> Candidates:
    """Return what the machine allows, and what a fresh result alone costs."""
    out = torch.empty(shape, device=device)
    if device == "cuda":
        source = torch.empty_like(out)
        return {"limit": lambda: out.copy_(source)}
    half = torch.empty(shape, dtype=torch.bfloat16)
    return {
        "limit": lambda: out.fill_(0),
        "fill_ of bfloat16": lambda: half.fill_(0),
        "torch.empty and fill_": lambda: torch.empty(shape).fill_(0),
    }


def errors(candidates: Candidates, work: Work) -> dict[str, float]:
    """Return each candidate's largest difference from float64, in normalised units."""
    expected = resize(work.images.double() / 255, SIZE, impl="reference", **work.arguments)
    return {
        name: (call().double() - expected).abs().max().item() for name, call in candidates.items()
    }


def working(peers: Candidates) -> Candidates:
    """Return the peers that can do the work here; says why others cannot."""
    found: Candidates = {}
    for name, call in peers.items():
        try:
            call()
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}")
        else:
            found[name] = call
    return found


def measure(
    candidates: Candidates, first: str, rounds: int, order: random.Random, device: str
) -> dict[str, dict[str, object]]:
    """Time every candidate once a round and summarise."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(2):
        for call in candidates.values():
            call()
    for _ in range(rounds):
        for name in order.sample(list(candidates), len(candidates)):
            wait()
            start = time.perf_counter()
            candidates[name]()
            wait()
            times[name].append((time.perf_counter() - start) * 1e3)

    def ratio(above: str, below: str) -> float:
        pairs = zip(times[above], times[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        name: {
            "ms": [round(value, 3) for value in statistics.quantiles(values, n=4)],
            "faster than first": ratio(first, name),
            "over limit": ratio(name, "limit"),
        }
        for name, values in times.items()
    }


def run(name: str, arguments: argparse.Namespace, order: random.Random) -> dict[str, object]:
    """Measure one workload, print its table and return its figures."""
    batch, device = arguments.batch, arguments.device
    wrong: dict[str, float] = {}
    if name.startswith("gradient"):
        candidates = gradient_candidates(name.split()[1], batch, device, arguments.seed)
        first = "aten"
    else:
        work = make_work(name, batch, device, arguments.seed)
        peers = working(peer_candidates(work))
        first = next(iter(peers))
        candidates = {**our_candidates(work), **peers}
        wrong = errors(candidates, work)
        if wrong["ours"] > 2e-6 / min(STD):
            raise RuntimeError(f"workload {name}: error {wrong['ours']:.1e}; nothing is timed")
        candidates |= limits((batch, 3, SIZE, SIZE), device)
    results = measure(candidates, first, arguments.rounds, order, device)
    print(f"\n{name}: x is how much faster than {first}, limit how many times the limit's time")
    for candidate, result in sorted(results.items(), key=lambda item: item[1]["ms"][1]):
        if candidate in wrong:
            result["error"] = float(f"{wrong[candidate]:.2g}")
        low, median, high = result["ms"]
        print(
            f"{candidate:32}{median:9.2f} ms ({low:.2f} to {high:.2f})"
            f"{result['faster than first']:8.1f} x{result['over limit']:8.2f} limit"
            f"   {'error ' + format(wrong[candidate], '.1e') if candidate in wrong else ''}"
        )
    return {"workload": name, "first": first, "candidates": results}


def main() -> None:
    """Run the benchmark and write the result."""
    names = [*SOURCES, *(f"gradient {name}" for name in "ABCD")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuned-malloc", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.tuned_malloc and not TUNED_MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | TUNED_MALLOC)
    torch.set_num_threads(arguments.threads)

    order = random.Random(arguments.seed)
    results = [run(name, arguments, order) for name in arguments.workloads]
    write_result(
        arguments.output,
        __file__,
        columns="ms: quartiles; both ratios: medians over rounds; error: against float64",
        kind=arguments.device,
        packages=PACKAGES,
        implementation=resize_implementation(),
        threads=arguments.threads,
        batch=arguments.batch,
        rounds=arguments.rounds,
        seed=arguments.seed,
        tuned_malloc=arguments.tuned_malloc,
        results=results,
    )


if __name__ == "__main__":
    main()
