"""The result file that a benchmark writes: what was run, on what, with what, and the numbers."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write_result(
    path: Path | None, script: str, *, results: Any, packages: Sequence[str] = (), **about: Any
) -> None:
    """Write ``results`` with their circumstances to ``path``, or nothing if it is None.

    Args:
        path: The JSON file.
        script: ``__file__`` of the benchmark.
        results: The numbers.
        packages: Distributions whose versions count, beside torch.
        about: Columns, seeds, threads, rounds and other settings, in this order.
    """
    if path is None:
        return
    report = {
        "command": f"benchmarks/{Path(script).name}",
        **about,
        "device": device(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", *packages)},
        "results": results,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def device() -> str:
    """Return the processor in words, as far as the system tells."""
    return f"{platform.machine()} {platform.processor()} CPU".replace("  ", " ")


def commit() -> str | None:
    """Return the commit that the benchmark ran at, if git knows."""
    git = subprocess.run(
        ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False
    )
    return git.stdout.strip() or None
