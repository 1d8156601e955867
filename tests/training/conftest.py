"""A process that has imported everything and forks cross-validations, for all tests here."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowres_vision.data import make_toy_pairs


class Machine:
    """Starts runs in `forked_runs.py` and reads what they leave."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process
        self.toy = make_toy_pairs(folder / "toy", classes=3, per_class=6, test_per_class=2)
        self.unbroken: dict[int, dict[str, Any]] = {}

    def run(
        self, out: Path, *, world: int, workers: int, kill: Any = None, **options: Any
    ) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {
            "toy": str(self.toy), "out": str(out), "world": world, "workers": workers,
            "kill": kill, "port": port, "log": str(self.folder / "log.txt"),
            "model": "net", "epochs": 2, "keep": 2, **options,
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def finish(self, out: Path, *, world: int, workers: int, **options: Any) -> dict[str, Any]:
        codes = self.run(out, world=world, workers=workers, **options)
        log = (self.folder / "log.txt").read_text(errors="replace")[-3000:]
        assert codes == [0] * world, log
        return self.content(out)

    def reference(self, world: int) -> dict[str, Any]:
        if world not in self.unbroken:
            out = self.folder / f"unbroken_{world}"
            self.unbroken[world] = self.finish(out, world=world, workers=0)
        return self.unbroken[world]

    @staticmethod
    def content(out: Path) -> dict[str, Any]:
        """Return every file of a cross-validation, without times and what the machine was doing."""
        found: dict[str, Any] = {}
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            if path.name in ("usage.csv", "errors.txt"):
                continue
            name = str(path.relative_to(out))
            found[name] = path.read_bytes()
            if path.name in ("run.json", "summary.json"):
                found[name] = json.loads(found[name])
                del found[name]["seconds"]
        return found


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_runs.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        yield Machine(tmp_path_factory.mktemp("forked"), process)
        assert process.stdin is not None
        process.stdin.close()
