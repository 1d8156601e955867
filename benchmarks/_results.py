"""The result file that a benchmark writes: what was run, on what, with what, and the numbers."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def write_result(
    path: Path | None,
    script: str,
    *,
    results: Any,
    packages: Sequence[str] = (),
    kind: str = "cpu",
    **about: Any,
) -> None:
    """Write ``results`` with their circumstances to ``path``, or nothing if it is None.

    Args:
        path: The JSON file.
        script: ``__file__`` of the benchmark.
        results: The numbers.
        packages: Distributions whose versions count, beside torch.
        kind: Of device, "cpu" or "cuda".
        about: Columns, seeds, threads, rounds and other settings, in this order.
    """
    if path is None:
        return
    report = {
        "command": f"benchmarks/{Path(script).name}",
        **about,
        "device": device(kind),
        "cores": os.cpu_count(),
        "commit": commit(),
        "versions": {name: installed(name) for name in ("torch", *packages)},
        "results": results,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def installed(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device(kind: str = "cpu") -> str:
    """Return the processor, or the GPU, in words, as far as the system tells."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    models: list[str] = []
    if Path("/proc/cpuinfo").exists():  # where platform.processor() says nothing
        models = re.findall(
            r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    return models[0] if models else f"{platform.machine()} {platform.processor()}".strip()


def commit() -> str | None:
    """Return the commit that the benchmark ran at, if git knows."""
    git = subprocess.run(
        ["git", "rev-parse", "--verify", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or None
