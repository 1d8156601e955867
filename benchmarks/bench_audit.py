"""Time the audit of whole data sets, from the CSV to the report.

    python benchmarks/bench_audit.py --output audit.json

Each set is 64 or 256 px photographs' stand-ins: smooth pictures with noise, as PNG or as JPEG of
quality 90, and a CSV of them. ``audit`` reads the CSV, decodes every file whole in one worker
process, hashes it, compares all with all and reports; the start of the worker, which a set of any
size pays once, is timed apart, on a set of one file. Reported are files per second of wall time,
with and without that start, and of the processor time of both processes together: the figure per
core. Beside them stands Pillow alone, decoding the same files in this process.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _results import write_result
from PIL import Image

from lowres_vision.data import audit

SETS = [("PNG", 64), ("JPEG", 64), ("JPEG", 256)]


def write_set(folder: Path, kind: str, side: int, number: int, seed: int) -> Path:
    """Write ``number`` pictures and their CSV, which is returned."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    rows = ["img_path,label"]
    for row in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        name = f"{row:06}.{kind.lower()}"
        Image.fromarray(pixels).save(
            folder / name, kind, **{"quality": 90} if kind == "JPEG" else {}
        )
        rows.append(f"{name},class {row % 25}")
    path = folder / "train.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def seconds(path: Path) -> tuple[float, float]:
    """Return wall and processor seconds of one audit."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    report = audit(path, workers=1)
    taken = time.perf_counter() - began, sum(os.times()[:4]) - used
    assert not report.faults, report
    return taken


def decode_all(folder: Path) -> float:
    """Return the seconds that Pillow takes to decode the files, and nothing else."""
    files = sorted(file for file in folder.iterdir() if file.suffix != ".csv")
    began = time.perf_counter()
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB")
    return time.perf_counter() - began


def rates(files: int, times: Sequence[float], start: float) -> list[int]:
    """Return the quartiles of files per second."""
    return sorted(
        round(files / (q - start)) for q in statistics.quantiles(times, n=4, method="inclusive")
    )


def main() -> None:
    """Time each set and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = write_set(folder / "one", "PNG", 64, 1, options.seed)
        sets = {
            (kind, side): write_set(
                folder / f"{kind}{side}", kind, side, options.files, options.seed
            )
            for kind, side in SETS
        }
        found: dict[tuple[str, int], list[tuple[float, float, float]]] = {key: [] for key in sets}
        starts = []
        for _ in range(options.rounds):
            starts.append(seconds(one))
            for key, path in sets.items():
                found[key].append((*seconds(path), decode_all(path.parent)))
        wall_start, used_start = (statistics.median(column) for column in zip(*starts, strict=True))
        for (kind, side), times in found.items():
            wall, used, alone = zip(*times, strict=True)
            results.append(
                {
                    "format": kind,
                    "side": side,
                    "whole_run": rates(options.files, wall, 0.0),
                    "after_the_start": rates(options.files, wall, wall_start),
                    "per_core": rates(options.files, used, used_start),
                    "pillow_alone": rates(options.files, alone, 0.0),
                }
            )
            print(results[-1])
    write_result(
        options.output,
        __file__,
        columns="files per second, quartiles over rounds",
        start_seconds=round(wall_start, 2),
        files=options.files,
        rounds=options.rounds,
        workers=1,
        seed=options.seed,
        packages=("lowres-vision", "pillow", "numpy"),
        results=results,
    )


if __name__ == "__main__":
    main()
