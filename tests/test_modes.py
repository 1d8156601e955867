"""Modes come back part by part, also after an error."""

import pytest
from torch import nn

from lowres_vision._modes import evaluation_mode


def test_each_part_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    model[0].eval()

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(part.training for part in model.modules())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert [part.training for part in model.modules()] == [True, False, True]
