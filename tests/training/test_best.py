from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lowres_vision.training._best import BestWeights
from lowres_vision.training._writer import Writer


def test_all_processes_choose_by_the_scores_of_the_first(tmp_path: Path) -> None:
    """Were they to differ, one would wait for the others to put weights together with it."""
    writer = Writer()
    best = BestWeights(tmp_path, monitor="val_loss", keep=1, about={}, writer=writer)
    module: Any = SimpleNamespace(model=nn.Linear(2, 2))
    for epoch, (own, of_the_first) in enumerate([(0.5, 0.5), (0.6, 0.4), (0.3, 0.45)]):
        trainer: Any = SimpleNamespace(
            callback_metrics={"train_loss": torch.tensor(9.0), "val_loss": torch.tensor(own)},
            current_epoch=epoch,
            strategy=SimpleNamespace(broadcast=lambda _, told=of_the_first: {"val_loss": told}),
        )
        best.on_validation_end(trainer, module)
    writer.wait()
    assert best.kept == [(-0.4, 1)]
