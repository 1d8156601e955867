from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lowres_vision.ensemble import OutOfFold, soft_vote, write_submission
from lowres_vision.training import _ranks
from lowres_vision.training._ranks import pool_by_row, rank_share, share_weight


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [3, 4, 8])
def test_shares_make_up_the_batch_and_its_mean(
    batch: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = torch.rand(batch, dtype=torch.float64)
    seen, mean = [], 0.0
    for rank in range(world):
        monkeypatch.setattr(_ranks, "rank_and_world", lambda rank=rank: (rank, world))
        seen += range(batch)[rank_share(batch)]
        mean += float(losses[rank_share(batch)].mean()) * share_weight(batch) / world
    assert sorted(seen) == list(range(batch))
    assert mean == pytest.approx(float(losses.mean()), rel=1e-14)


def test_rows_that_fill_up_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {0: torch.tensor([0, 2, 4]), 1: torch.tensor([1, 3, 0])}
    rows = parts[0]
    monkeypatch.setattr(_ranks, "rank_and_world", lambda: (0, 2))

    def gather(found: list[torch.Tensor], given: torch.Tensor) -> None:
        scale = 10 if given.ndim == 2 else 1
        for rank, part in parts.items():
            found[rank].copy_((scale * part).reshape(given.shape))

    monkeypatch.setattr(_ranks.dist, "all_gather", gather)
    found, values = pool_by_row(rows, 10 * rows[:, None])
    assert found.tolist() == [0, 1, 2, 3, 4]
    assert values.tolist() == [[0], [10], [20], [30], [40]]


def test_two_processes_train_the_weights_of_one(machine: Any) -> None:
    """21 steps of AdamW, mixed, in batches that do not divide by two; then the same predictions.

    The bound: float32 sums in another order, 1e-7 each, through 21 steps of size 0.01.
    """
    found = {}
    for world in (1, 2):
        out = machine.folder / f"ranks_{world}"
        machine.finish(out, world=world, workers=0, model="plain", epochs=7, keep=7, patience=9)
        found[world] = [
            load_file(out / f"fold_{fold}" / f"epoch_{epoch}.safetensors")
            for fold in (0, 1)
            for epoch in (0, 6)
        ]
        rows = np.load(out / "fold_0" / "predictions.npz")["rows"]
        assert rows.tolist() == np.flatnonzero(OutOfFold(out / "ledger").fold_of == 0).tolist()
    for one, two in zip(found[1], found[2], strict=True):
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    moved = found[1][0]["layers.0.weight"] - found[1][1]["layers.0.weight"]
    assert moved.abs().max() > 1e-2
    scores = [
        np.genfromtxt(
            machine.folder / f"ranks_{world}" / "fold_0" / "metrics.csv", delimiter=",", names=True
        )
        for world in (1, 2)
    ]
    for name in ("train_loss", "val_loss", "val_accuracy", "val_macro_f1"):
        np.testing.assert_allclose(scores[0][name], scores[1][name], rtol=1e-5)


def test_any_number_of_workers_gives_the_same_files(machine: Any) -> None:
    expected = machine.reference(1, "auto")
    votes = set()
    for workers in (0, 1, 2, 4):
        out = machine.folder / f"workers_{workers}"
        assert machine.finish(out, world=1, workers=workers) == expected
        stored = np.load(out / "test_probabilities.npz")
        path = write_submission(
            out / "submission.csv",
            soft_vote(stored["probabilities"][0]),
            ids=stored["ids"].tolist(),
            classes=stored["classes"].tolist(),
        )
        votes.add(path.read_bytes())
    assert len(votes) == 1


def test_no_process_returns_before_the_files_are_there(machine: Any) -> None:
    machine.finish(machine.folder / "there", world=2, workers=0, model="plain", slow_disk=0)
