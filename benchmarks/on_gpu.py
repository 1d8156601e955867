"""Everything there is to do on a machine with a GPU, in one command.

    python benchmarks/on_gpu.py --out gpu
    python benchmarks/on_gpu.py --out gpu --quick

Builds the C kernel in place, runs the tests that need a GPU and each benchmark on it, one process
after the other. A step that fails or takes too long is noted, and the rest goes on. ``--out`` gets
one JSON per benchmark, ``log.txt`` with all that was printed, and ``summary.json`` with each step's
command, exit status and seconds. Each step is stopped at its limit; the limits add up to less than
eleven minutes. ``--quick`` runs every step once on small batches, to see that all of it works.

It needs what the tests need, and torch with CUDA; nothing is installed. kornia,
pytorch-metric-learning and DALI are compared with where they are there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """A command of the interpreter that runs this, in the checkout, and its limit in seconds."""

    name: str
    arguments: list[str]
    limit: int


def steps(out: Path, *, quick: bool) -> list[Step]:
    """Return what to run, in the order of what one wants to know first."""

    def benchmark(name: str, limit: int, *arguments: str, short: tuple[str, ...]) -> Step:
        script = f"benchmarks/bench_{name.partition('_')[0]}.py"
        chosen = [*arguments, *(short if quick else ())]
        output = ["--device", "cuda", "--output", str(out / f"{name}_cuda.json")]
        return Step(name, [script, *chosen, *output], limit)

    few = ("--rounds", "2")
    resize = (*few, "--batch", "32")
    main, rest = ("A", "E", "M", "B", "gradient A"), ("C", "D", "gradient B", "gradient C")
    return [
        Step("build", ["setup.py", "-q", "build_ext", "--inplace"], 60),
        Step("versions", ["-m", "torch.utils.collect_env"], 60),
        Step("tests", ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], 150),
        benchmark(
            "resize", 130, "--batch", "1024", "--rounds", "9", "--workloads", *main, short=resize
        ),
        benchmark("losses", 40, "--rounds", "15", short=few),
        benchmark("resizer", 40, short=few),
        benchmark("loader", 60, "--batch-sizes", "256", "--rounds", "3", short=few),
        benchmark(
            "resize_rest", 100, "--batch", "1024", "--rounds", "7", "--workloads", *rest,
            short=resize,
        ),
    ]  # fmt: skip


def run(step: Step, log: Path) -> dict[str, object]:
    """Run a step to its end or limit, and return how it went."""
    command = [sys.executable, *step.arguments]
    print(f"{step.name}: {' '.join(step.arguments)}", flush=True)
    start = time.perf_counter()
    with log.open("a") as stream:
        stream.write(f"\n== {step.name}: {' '.join(command)}\n")
        stream.flush()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        try:
            status: int | str = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
                timeout=step.limit, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = f"stopped after {step.limit} s"
    seconds = round(time.perf_counter() - start, 1)
    print(f"    {'done' if status == 0 else f'FAILED: {status}'} in {seconds} s", flush=True)
    return {"step": step.name, "command": command, "status": status, "seconds": seconds}


def main() -> int:
    """Run every step, and return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of steps")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = steps(out, quick=arguments.quick)
    if arguments.only:
        chosen = [step for step in chosen if step.name in arguments.only]
    outcomes = []
    for step in chosen:
        outcomes.append(run(step, out / "log.txt"))
        # Written after each: whoever stops this keeps what there is.
        (out / "summary.json").write_text(json.dumps(outcomes, indent=1) + "\n")
    return sum(outcome["status"] != 0 for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
