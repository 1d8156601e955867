"""Scripts started as on a cluster: by torchrun, and with what SLURM's srun sets.

srun itself is not at hand; its variables are set by hand, and a process is started for each.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowres_vision.training import CrossValidation

SCRIPT = Path(__file__).with_name("launched_run.py")


def torchrun(*arguments: str | Path) -> tuple[list[int], str]:
    """Return the exit code and all output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*command, SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    return [ended.returncode], ended.stdout + ended.stderr


def srun(*arguments: str | Path) -> tuple[list[int], str]:
    """Return the exit codes, a process each, and all output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The port is of the job's number, as a rule; here it must be free.
    job = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    output = "".join(process.communicate(timeout=300)[0] for process in processes)
    return [process.returncode for process in processes], output


def alone(toy: Path, out: Path) -> CrossValidation:
    """Return the outcome of the same script in this process alone."""
    specification = importlib.util.spec_from_file_location("launched_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    outcome: CrossValidation = script.main(
        [str(toy), f"--out={out}", "--devices=1", "--strategy=auto"]
    )
    return outcome


def assert_same(out: Path, expected: CrossValidation) -> None:
    """Within what sums in another order make of 9 steps of size 0.01."""
    found = np.load(out / "out_of_fold.npz")["probabilities"]
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-5)
    assert (out / "summary.json").is_file()
    assert not [*out.rglob("*.lock"), *out.rglob("*.part"), *out.rglob("*.checkpoint")]


def test_torchrun(toy: Path, tmp_path: Path) -> None:
    codes, output = torchrun(toy, f"--out={tmp_path / 'two'}")
    assert codes == [0], output[-3000:]
    assert_same(tmp_path / "two", alone(toy, tmp_path / "one"))


@pytest.mark.slow
def test_processes_end_in_peace(toy: Path, tmp_path: Path) -> None:
    """A process that ended while Gloo let go of a tensor was aborted, three times in ten."""
    for number in range(10):
        codes, output = torchrun(toy, f"--out={tmp_path / str(number)}")
        assert codes == [0], output[-3000:]


@pytest.mark.slow
def test_srun(toy: Path, tmp_path: Path) -> None:
    codes, output = srun(toy, f"--out={tmp_path / 'two'}")
    assert codes == [0, 0], output[-3000:]
    assert_same(tmp_path / "two", alone(toy, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_ends_all_when_one_is_killed_and_goes_on(
    strategy: str, toy: Path, tmp_path: Path
) -> None:
    """torchrun may end the other before it has said what it lost."""
    run = (toy, f"--out={tmp_path / 'two'}", f"--strategy={strategy}")
    codes, output = torchrun(*run, "--kill=1")
    assert codes == [1]
    assert "Signal 9 (SIGKILL) received" in output
    assert (tmp_path / "two" / "fold_0" / "training.checkpoint").is_file()
    codes, output = torchrun(*run)
    assert codes == [0], output[-3000:]
    assert_same(tmp_path / "two", alone(toy, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_says_so_when_one_is_killed_and_goes_on(
    rank: int, toy: Path, tmp_path: Path
) -> None:
    codes, output = srun(toy, f"--out={tmp_path / 'two'}", f"--kill={rank}")
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert f"another process of {tmp_path / 'two' / 'fold_0'} is gone" in output
    assert f"process {1 - rank}," in (tmp_path / "two" / "fold_0" / "errors.txt").read_text()
    codes, output = srun(toy, f"--out={tmp_path / 'two'}")
    assert codes == [0, 0], output[-3000:]
    assert_same(tmp_path / "two", alone(toy, tmp_path / "one"))
