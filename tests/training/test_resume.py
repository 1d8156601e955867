"""Runs killed with SIGKILL at random moments end as if nothing had happened."""

import random
import shutil
import signal
from typing import Any

import pytest

from lowres_vision.training._checkpoint import read_checkpoint

PLACES = {"step": 4, "saving": 18, "validation": 3, "between": 2}


@pytest.mark.parametrize(
    ("world", "workers", "kills", "strategy"),
    [
        (1, 0, 6, "auto"),
        (1, 2, 2, "auto"),
        (2, 0, 2, "ddp"),
        (2, 0, 2, "fsdp"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (1, 0, 20, "auto"),
                (1, 2, 12, "auto"),
                (2, 0, 12, "ddp"),
                (2, 2, 6, "ddp"),
                (2, 0, 12, "fsdp"),
                (2, 2, 6, "fsdp"),
            ]
        ),
    ],
)
def test_a_killed_run_ends_bit_for_bit_as_an_unbroken_one(
    world: int, workers: int, kills: int, strategy: str, machine: Any
) -> None:
    """Weights, predictions, ledger, metrics.csv and books; a run may be killed several times."""
    rng = random.Random(100 * world + 10 * workers + kills)
    expected = machine.reference(world, strategy)
    out = machine.folder / f"killed_{world}_{workers}_{strategy}"
    shutil.rmtree(out, ignore_errors=True)
    killed = 0
    while killed < kills:
        place = rng.choice(list(PLACES))
        rank = rng.randrange(world) if place in ("step", "validation") else 0  # 0 writes the files
        kill = {"rank": rank, "place": place, "count": rng.randint(1, PLACES[place])}
        codes = machine.run(out, world=world, workers=workers, kill=kill, strategy=strategy)
        if codes == [0] * world:  # it ended before that moment came
            assert machine.content(out) == expected
            shutil.rmtree(out)
            continue
        assert codes[rank] == -signal.SIGKILL, (machine.folder / "log.txt").read_text()[-3000:]
        killed += 1
        for checkpoint in out.glob("*/training.checkpoint"):
            read_checkpoint(checkpoint)
    found = machine.finish(out, world=world, workers=workers, strategy=strategy)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert list(found) == list(expected)


def test_the_moments_are_reached(machine: Any) -> None:
    """Without this, a misspelt place would make the test above pass without a kill."""
    for place in PLACES:
        out = machine.folder / f"reached_{place}"
        kill = {"rank": 0, "place": place, "count": 1}
        assert machine.run(out, world=1, workers=0, kill=kill) == [-signal.SIGKILL]
