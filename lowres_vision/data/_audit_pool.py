"""Files decoded in processes of their own, so that a crash or a hang costs one file, not the run.

Each process is fed by a thread. When it dies, the file in flight is tried once more in a fresh
process, and named if that dies too; when a file takes too long, its process is killed. The
processes are plain subprocesses: unlike ``multiprocessing``, they need no ``__main__`` guard in
the caller's script and inherit no locks.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from lowres_vision.data._audit_worker import Inspection
from lowres_vision.data._errors import Fault

_CHUNK = 64
_REMEDY = "replace the file or drop its row"
# The package's own `__init__` is passed over: it loads PyTorch, which takes a process seconds and
# which decoding does without.
_PROGRAM = """
import sys, types
package = sys.modules["lowres_vision.data"] = types.ModuleType("lowres_vision.data")
package.__path__ = [sys.argv[2]]
from lowres_vision.data._audit_worker import serve
serve()
"""


def inspect_files(
    paths: Sequence[str],
    *,
    max_pixels: int,
    time_limit: float,
    workers: int,
    program: str = _PROGRAM,
) -> list[Inspection | Fault]:
    """Decode files in ``workers`` processes.

    Args:
        paths: The files.
        max_pixels: As for :func:`lowres_vision.data.decode_image`.
        time_limit: Seconds that one file may take.
        workers: Number of processes.
        program: The Python that a process runs.

    Returns:
        For each path what it holds, or why it cannot be used.

    Raises:
        RuntimeError: If a process does not come up, with its last words.
    """
    answers: list[Inspection | Fault | None] = [None] * len(paths)
    tasks: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for start in range(0, len(paths), _CHUNK):
        tasks.put(list(range(start, min(start + _CHUNK, len(paths)))))
    workers = min(workers, tasks.qsize())
    if not workers:
        return []
    command = [sys.executable, "-c", program, str(max_pixels), str(Path(__file__).parent)]
    pool = [_Worker(command, paths, answers, tasks) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        jobs = [threads.submit(worker.run) for worker in pool]
        try:
            while wait(jobs, timeout=0.05).not_done:
                for worker in pool:
                    worker.enforce(time_limit)
        finally:
            for worker in pool:
                worker.stop()
    for job in jobs:
        job.result()
    return [answer for answer in answers if answer is not None]


class _Worker:
    """One process and the thread that feeds it."""

    def __init__(
        self,
        command: list[str],
        paths: Sequence[str],
        answers: list[Inspection | Fault | None],
        tasks: queue.SimpleQueue[list[int]],
    ) -> None:
        self.command = command
        self.paths = paths
        self.answers = answers
        self.tasks = tasks
        self.process: subprocess.Popen[str] | None = None
        self.in_flight: tuple[int, float] | None = None  # file, since when
        self.overdue: int | None = None
        self.suspect: int | None = None
        self.stopped = False

    def run(self) -> None:
        """Work until no task is left."""
        try:
            while not self.stopped:
                chunk = self.tasks.get_nowait()
                while chunk and not self.stopped:
                    chunk = self._work(chunk)
        except queue.Empty:
            pass
        finally:
            self._reap()

    def enforce(self, time_limit: float) -> None:
        """Kill the process if its file has taken longer than ``time_limit`` seconds."""
        in_flight, process = self.in_flight, self.process
        if in_flight and process and time.monotonic() - in_flight[1] > time_limit:
            self.overdue = in_flight[0]
            process.kill()

    def stop(self) -> None:
        """Kill the process; the thread finds out and ends."""
        self.stopped = True
        if process := self.process:
            process.kill()

    def _work(self, chunk: list[int]) -> list[int]:
        """Have a chunk inspected; return what is left of it when the process dies underway."""
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # if it has died, the first answer is missing too
            print(json.dumps([self.paths[item] for item in chunk]), file=process.stdin, flush=True)
        for done, item in enumerate(chunk):
            self.in_flight = item, time.monotonic()
            line = process.stdout.readline()
            self.in_flight = None
            if line.endswith("\n"):
                fields = json.loads(line)
                self.answers[item] = Inspection(*fields) if len(fields) > 2 else Fault(*fields)
                continue
            died = self._reap()
            if self.overdue == item:
                self.answers[item] = Fault("takes too long to decode", _REMEDY)
            elif self.suspect == item:
                self.answers[item] = Fault(f"kills its decoder ({died})", _REMEDY)
            else:
                self.suspect = item
                return chunk[done:]
            return chunk[done + 1 :]
        return []

    def _start(self) -> subprocess.Popen[str]:
        """Start a process and wait until it is ready."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folder or os.curdir for folder in sys.path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with tempfile.TemporaryFile() as words:
            self.process = process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment,
                encoding="ascii",
            )
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                died = self._reap()
                words.seek(0)
                last = words.read().decode(errors="replace").strip()[-2000:]
                raise RuntimeError(f"a decoding process did not start ({died}): {last}")
        return process

    def _reap(self) -> str:
        """Close the process's pipes, which ends it if it still lives, and say how it ended."""
        process, self.process = self.process, None
        if process is None:
            return "no process"
        process.communicate()
        code = process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
