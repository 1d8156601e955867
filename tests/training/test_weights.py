import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowres_vision.training import load_weights, save_weights


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return net.to(memory_format=torch.channels_last)


def test_weights_come_back_bit_for_bit_with_their_sidecar(tmp_path: Path) -> None:
    source, target = model(0), model(1)
    save_weights(source, tmp_path / "w.safetensors", classes=["a", "b"], epoch=3)
    about = load_weights(target, tmp_path / "w.safetensors")
    assert about["classes"] == ["a", "b"]
    assert about["epoch"] == 3
    for (name, value), other in zip(
        source.state_dict().items(), target.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors", "w.safetensors.json"]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(model(0), path)
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ValueError, match=r"w\.safetensors differs from the file"):
            load_weights(model(1), path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(model(0), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit Linear: .*Missing key"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_weights(tied, tmp_path / "w.safetensors")
    assert "sha256" in json.loads((tmp_path / "w.safetensors.json").read_text())
