import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lowres_vision.training._lock import lock


def write(path: Path, **owner: object) -> None:
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": None}
    path.write_text(json.dumps({**me, **owner}))


def test_the_owner_is_named_and_the_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        words = f"{tmp_path} is in use by process {os.getpid()} on host {socket.gethostname()}"
        with pytest.raises(FileExistsError, match=words), lock(path):
            raise AssertionError("two owners")
        assert path.exists()
    assert not path.exists()


def test_an_error_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path / "run.lock"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lowres_vision.training._lock import lock\n"
        "try:\n    lock(Path(sys.argv[1])).__enter__()\n"
        "except FileExistsError as error: print(error)"
    )
    with lock(tmp_path / "run.lock"):
        command = [sys.executable, "-c", code, str(tmp_path / "run.lock")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()} on host" in done.stdout


def test_a_dead_owner_of_this_host_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
    write(path, pid=process.pid)
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_number_given_out_again_is_another_process(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("only Linux tells when a process started")
    path = tmp_path / "run.lock"
    write(path, started="1")
    with lock(path):
        assert json.loads(path.read_text())["started"] != "1"


def test_another_host_cannot_be_judged(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    write(path, host="elsewhere", pid=1)
    with pytest.raises(FileExistsError, match=f"process 1 on host elsewhere.*delete {path}"):
        lock(path).__enter__()


def test_on_windows_the_owner_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, signal 0 is the one of Ctrl-C."""
    path = tmp_path / "run.lock"
    write(path, pid=2**22 + 1)  # above the highest number there is
    with monkeypatch.context() as patch:
        patch.setattr("lowres_vision.training._lock.os.name", "nt")
        with pytest.raises(FileExistsError, match="If that process is gone, delete"):
            lock(path).__enter__()
    with lock(path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_an_owner_that_died_while_writing_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(text)
    with lock(tmp_path / "run.lock"):
        pass
