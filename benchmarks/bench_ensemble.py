"""Time greedy ensemble selection for macro-F1, on a million rows and beside a plain loop.

    python benchmarks/bench_ensemble.py --output ensemble.json

Ten simulated models, 25 classes, 50 rounds. The plain loop scores every candidate of every round
on all rows with numpy's argmax and scikit-learn's ``f1_score``, as the definition has it; on the
smaller size both must make the same picks before a clock counts. The million rows are ours alone:
the loop would take an hour. Reported are seconds, the median and all rounds, and the highest
memory of the process, whose predictions alone are 1 GB.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _results import write_result
from sklearn.metrics import f1_score

from lowres_vision.ensemble import select_ensemble

MODELS, CLASSES, ROUNDS = 10, 25, 50
SMALL, LARGE = 15_834, 1_000_000

Members = list[npt.NDArray[np.float32]]
Labels = npt.NDArray[np.int64]


def simulate(rows: int, seed: int) -> tuple[Members, Labels]:
    """Return predictions of ten models that share a part of their errors, one member at a time."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, rows)
    common = random.standard_normal((rows, CLASSES), dtype=np.float32)
    members = []
    for model in range(MODELS):
        p = common + 0.7 * random.standard_normal((rows, CLASSES), dtype=np.float32)
        p[np.arange(rows), labels] += 3 + 0.1 * model
        np.exp(2 * p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        members.append(p)
    return members, labels


def ours(members: Members, labels: Labels) -> list[int]:
    """Return the picks of the best prefix."""
    return list(select_ensemble(members, labels, rounds=ROUNDS, folds=0).picks[0])


def plain_loop(members: Members, labels: Labels) -> list[int]:
    """Return the same by the definition."""
    total = np.zeros(members[0].shape)
    picks: list[int] = []
    history = []
    every = np.arange(len(labels))
    for size in range(1, ROUNDS + 1):
        keys = []
        for number, member in enumerate(members):
            blend = (total + member) / size
            loss = -np.log(blend[every, labels]).mean()
            score = f1_score(labels, blend.argmax(axis=1), average="macro")
            keys.append((round(-score, 12), round(loss, 13), number))
        best = min(keys)
        picks.append(best[2])
        total += members[best[2]]
        history.append((*best[:2], size))
    return picks[: min(history)[2]]


def time_call(select: Callable[[Members, Labels], list[int]], *data: object) -> float:
    """Return the seconds of one selection."""
    start = time.perf_counter()
    select(*data)  # type: ignore[arg-type]
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="times each is run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = simulate(SMALL, arguments.seed)
    picks = ours(*data)
    if picks != plain_loop(*data):
        raise AssertionError("the picks are not those of the plain loop")
    times: dict[str, list[float]] = {"ours": [], "plain loop": []}
    for _ in range(arguments.rounds):
        times["ours"].append(time_call(ours, *data))
        times["plain loop"].append(time_call(plain_loop, *data))
    ratio = statistics.median(
        peer / own for own, peer in zip(times["ours"], times["plain loop"], strict=True)
    )
    data = simulate(LARGE, arguments.seed)
    million = time_call(ours, *data)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    for name, taken in times.items():
        print(f"{SMALL:>9} rows, {name}: {statistics.median(taken):.2f} s")
    print(f"{SMALL:>9} rows, plain loop / ours: {ratio:.1f}")
    print(f"{LARGE:>9} rows, ours: {million:.1f} s, {memory:.2f} GiB at most")
    write_result(
        arguments.output,
        __file__,
        columns="seconds of one selection of 10 models, 25 classes, 50 rounds, macro-F1",
        threads=arguments.threads,
        seed=arguments.seed,
        packages=("numpy", "scikit-learn"),
        results={
            f"{SMALL} rows": {
                **{name: [round(s, 3) for s in taken] for name, taken in times.items()},
                "plain loop / ours": round(ratio, 2),
            },
            f"{LARGE} rows": {"ours": round(million, 2), "peak_gib": round(memory, 2)},
        },
    )


if __name__ == "__main__":
    main()
