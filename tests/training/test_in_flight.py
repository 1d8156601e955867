import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lowres_vision.data import Manifest, MultiResolutionDataset
from lowres_vision.training._in_flight import InFlight


def test_the_rows_at_which_a_worker_died_are_named_and_the_run_goes_on(machine: Any) -> None:
    """Row 4 kills its reader; the rows named are its batch's, of four at most."""
    out = machine.folder / "dead_worker"
    assert machine.run(out, world=1, workers=2, trick="deadly") == [1]
    log = (machine.folder / "log.txt").read_text(errors="replace")
    (rows,) = re.findall(rf"loader processes of {out}/fold_0 died, with rows ([\d, ]+) being", log)
    named = [int(row) for row in rows.split(",")]
    assert 4 in named
    assert len(named) <= 8  # of both workers, where the dead one had a batch ready
    assert machine.finish(out, world=1, workers=2) == machine.reference(1, "auto")


class Rows(Dataset[int]):
    """As a training split has them: not all rows, and in another order than their numbers."""

    rows = np.array([7, 3, 9, 5])

    def __len__(self) -> int:
        return 8  # each at two resolutions

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_each_worker_notes_its_batch() -> None:
    noted = InFlight(Rows(), workers=2, most=2)
    loader = DataLoader(noted, batch_size=2, num_workers=2, collate_fn=list)
    processes = [batch[0] for batch in loader]
    assert [noted.rows([process]) for process in processes[2:]] == [[3, 7], [5, 9]]
    assert noted.rows(None) == [3, 5, 7, 9]
    assert noted.rows([os.getpid()]) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_what_they_are_without_it(workers: int, toy_manifest: Manifest) -> None:
    samples: Any = MultiResolutionDataset(toy_manifest, resolution="both")
    noted = InFlight(samples, workers=2, most=4)
    assert len(noted) == len(samples)
    order = [5, 0, 17, 30]
    loader = DataLoader(
        noted, batch_size=4, sampler=order, num_workers=workers, collate_fn=lambda batch: batch
    )
    (batch,) = loader
    for found, index in zip(batch, order, strict=True):
        assert torch.equal(found.image, samples[index].image)
        assert found.row == samples[index].row
