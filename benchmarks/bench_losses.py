"""Time the losses, forward and backward, against torch, kornia and pytorch-metric-learning.

    python benchmarks/bench_losses.py --output losses.json
    python benchmarks/bench_losses.py --device cuda --output losses_cuda.json

Each pair computes the same number: value and gradient are asserted equal in float64 before a
clock starts, after the conversion that ``cases`` states. Both sides run in one process, in an
order drawn anew in each round. Reported are the median and the quartiles of one call in
microseconds, and the median over rounds of peer / ours: above 1, ours is faster. Ratios hold
across machines far better than times do.

``hard`` targets are class indices. ``mixed`` targets are two-class mixtures, as CutMix makes
them: ours takes them in one call, a peer that knows only indices needs two. A peer that is not
installed is left out.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _results import installed, write_result
from torch import Tensor

from lowres_vision.heads import CosineClassifier
from lowres_vision.losses import arcface_loss, cosine_loss, cross_entropy, focal_loss

EMBEDDING = 512
SIZES = [(64, 25), (64, 100), (256, 1000)]


class Case(NamedTuple):
    """One loss of ours and a peer's, as functions of the same leaf."""

    name: str
    peer_name: str
    leaf: Tensor
    ours: Callable[[Tensor], Tensor]
    peer: Callable[[Tensor], Tensor]


def cases(batch: int, classes: int, dtype: torch.dtype, seed: int, device: str) -> Iterator[Case]:
    """Yield the pairs for one size, drawn from ``seed`` alike for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    logits = logits.to(device, dtype).requires_grad_()
    first = torch.randint(classes, (batch,), generator=generator).to(device)
    second, lam = first.roll(1), 0.7
    one_hot = torch.eye(classes, dtype=dtype, device=device)
    mixed = lam * one_hot[first] + (1 - lam) * one_hot[second]
    ones = torch.ones(batch, device=device)

    def twice(hard_loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: lam * hard_loss(x, first) + (1 - lam) * hard_loss(x, second)

    def kornia_focal(x: Tensor, targets: Tensor) -> Tensor:
        from kornia.losses import focal_loss as peer_focal_loss

        # Its mean divides by batch * classes.
        return classes * peer_focal_loss(x, targets, None, 2.0, "mean")

    def torch_cosine(x: Tensor, targets: Tensor) -> Tensor:
        return F.cosine_embedding_loss(x, F.one_hot(targets, classes).to(dtype), ones)

    head = CosineClassifier(EMBEDDING, classes).to(device, dtype)
    weight = torch.randn(classes, EMBEDDING, generator=generator, dtype=torch.float64)
    head.weight.data = weight.to(device, dtype)
    embeddings = torch.randn(batch, EMBEDDING, generator=generator, dtype=torch.float64)
    embeddings = embeddings.to(device, dtype).requires_grad_()

    yield Case(
        "cross_entropy hard", "torch", logits,
        lambda x: cross_entropy(x, first), lambda x: F.cross_entropy(x, first),
    )  # fmt: skip
    yield Case(
        "cross_entropy mixed", "torch", logits,
        lambda x: cross_entropy(x, mixed), lambda x: F.cross_entropy(x, mixed),
    )  # fmt: skip
    if installed("kornia"):
        yield Case(
            "focal hard", "kornia", logits,
            lambda x: focal_loss(x, first), lambda x: kornia_focal(x, first),
        )  # fmt: skip
        yield Case(
            "focal mixed", "kornia, 2 calls", logits,
            lambda x: focal_loss(x, mixed), twice(kornia_focal),
        )  # fmt: skip
    yield Case(
        "cosine hard", "torch", logits,
        lambda x: cosine_loss(x, first), lambda x: torch_cosine(x, first),
    )  # fmt: skip
    yield Case(
        "cosine mixed", "torch, 2 calls", logits,
        lambda x: cosine_loss(x, mixed), twice(torch_cosine),
    )  # fmt: skip
    if not installed("pytorch-metric-learning"):
        return
    from pytorch_metric_learning.losses import ArcFaceLoss as PeerArcFaceLoss

    # Its margin is in degrees, and its weight the transpose.
    peer_head = PeerArcFaceLoss(classes, EMBEDDING, margin=math.degrees(0.5), scale=30)
    peer_head.W.data = head.weight.detach().t().contiguous()
    yield Case(
        "arcface and head hard", "pytorch-metric-learning", embeddings,
        lambda x: arcface_loss(head(x), first), lambda x: peer_head(x, first),
    )  # fmt: skip
    yield Case(
        "arcface and head mixed", "pytorch-metric-learning, 2 calls", embeddings,
        lambda x: arcface_loss(head(x), mixed), twice(peer_head),
    )  # fmt: skip


def assert_equal(case: Case) -> None:
    """Raise unless value and gradient agree to 1e-9, in float64."""
    ours, peer = case.ours(case.leaf), case.peer(case.leaf)
    torch.testing.assert_close(ours, peer, rtol=1e-9, atol=1e-11)
    (gradient,) = torch.autograd.grad(ours, case.leaf)
    (expected,) = torch.autograd.grad(peer, case.leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def time_call(loss: Callable[[Tensor], Tensor], leaf: Tensor, calls: int) -> float:
    """Return the microseconds of one forward and backward."""
    wait = torch.cuda.synchronize if leaf.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        leaf.grad = None
        loss(leaf).backward()
    wait()
    return (time.perf_counter() - start) / calls * 1e6


def measure(case: Case, rounds: int, order: random.Random) -> dict[str, object]:
    """Time both sides in turn and summarise."""
    sides = {"ours": case.ours, "peer": case.peer}
    for loss in sides.values():
        time_call(loss, case.leaf, 5)
    calls = max(1, round(2000 / time_call(case.peer, case.leaf, 5)))  # about 2 ms a round
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in order.sample(list(sides), 2):
            times[name].append(time_call(sides[name], case.leaf, calls))
    ratios = [peer / ours for ours, peer in zip(times["ours"], times["peer"], strict=True)]
    result: dict[str, object] = {"loss": case.name, "peer": case.peer_name}
    for name, values in {**times, "ratio": ratios}.items():
        result[name] = [round(quartile, 3) for quartile in statistics.quantiles(values, n=4)]
    return result


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    order = random.Random(arguments.seed)
    print(f"{'size':>10}  {'loss':24}{'ours us':>10}{'peer us':>10}{'peer/ours':>11}  peer")
    for batch, classes in SIZES:
        for case in cases(batch, classes, torch.float64, arguments.seed, arguments.device):
            assert_equal(case)
        for case in cases(batch, classes, torch.float32, arguments.seed, arguments.device):
            result = {"batch": batch, "classes": classes, **measure(case, arguments.rounds, order)}
            results.append(result)
            ours, peer, ratio = (result[name][1] for name in ("ours", "peer", "ratio"))
            print(
                f"{f'{batch}x{classes}':>10}  {case.name:24}{ours:10.1f}{peer:10.1f}{ratio:11.2f}"
                f"  {case.peer_name}"
            )
    write_result(
        arguments.output,
        __file__,
        packages=("kornia", "pytorch-metric-learning"),
        kind=arguments.device,
        columns="ours and peer: quartiles in microseconds; ratio: quartiles of peer / ours",
        threads=arguments.threads,
        rounds=arguments.rounds,
        seed=arguments.seed,
        results=results,
    )


if __name__ == "__main__":
    main()
