"""Damage that says nothing is found, and what is sound is not accused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lowres_vision import _doctor
from lowres_vision.__main__ import main
from lowres_vision.export import Predictor, TrainedModel
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.resizer import Resize


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "share"), [((64, 64), "23.4%"), ((70, 70), None), ((256, 256), "3.1%")]
)
def test_pixels_beyond_the_last_patch_are_found(size: tuple[int, int], share: str | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 14, stride=14), nn.Flatten())
    found = _doctor.unread_pixels(model, size)
    if share is None:
        assert found == []
    else:
        assert f"{share} of the pixels" in found[0].words


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_models_that_read_all_are_not_accused(name: str) -> None:
    model = (
        timm.create_model(name, num_classes=3, img_size=64)
        if "vit" in name
        else (timm.create_model(name, num_classes=3))
    )
    model.train()
    assert _doctor.unread_pixels(model, (64, 64)) == []
    assert model.training


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_what_a_fresh_network_has_shut_is_not_counted(name: str) -> None:
    model = LowResClassifier(name, 3, image_size=64)
    shut = [parameter for parameter in model.parameters() if not parameter.any()]
    assert any(parameter.ndim == 1 for parameter in shut)
    assert _doctor.unread_pixels(model, (64, 64)) == []
    assert not any(parameter.any() for parameter in shut)


def test_a_model_without_eyes_is_found() -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 2, requires_grad=True)

    assert _doctor.unread_pixels(Blind(), (8, 8))[0].words == "no output depends on the image"


def test_wrong_normalisation_names_the_right_one() -> None:
    half = (0.5, 0.5, 0.5)
    assert levels(_doctor.weights("resnet18", mean=half, std=half)) == ["note", "fault", "fault"]
    right = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert levels(_doctor.weights("resnet18", **right)) == ["note"]
    assert levels(_doctor.weights("resnet18", mean=(0.485,))) == ["note", "fault"]
    found = [*_doctor.weights("resnet18", mean=half)]
    assert "(0.485, 0.456, 0.406)" in found[1].words


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.rand(2, 3, 8, 8).to(torch.uint8) + torch.eye(8, dtype=torch.uint8), "were cast"),
        (torch.rand(2, 3, 8, 8).to(torch.uint8), "every pixel is 0 (floats in"),
        (255 * torch.rand(2, 3, 8, 8), "divide by 255"),
        (torch.rand(2, 3, 8, 8) / 255, "divided by 255 twice"),
        (torch.full((2, 3, 8, 8), 7, dtype=torch.uint8), "every pixel is 7"),
        (torch.randn(2, 3, 8, 8), "normalised already?"),
        (torch.tensor([0.0, float("nan")]).expand(3, 8, 2)[None], "NaN"),
    ],
)
def test_damaged_images(batch: torch.Tensor, words: str) -> None:
    (found,) = _doctor.images(batch)
    assert words in found.words


def test_sound_images_of_several_sizes() -> None:
    byte = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert _doctor.images([byte, byte[:, :5]]) == []
    assert _doctor.images(torch.rand(2, 3, 8, 8)) == []


def test_the_command_tells_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", "resnet18", "--mean", ".5", ".5", ".5", "--size", "64"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "licence of the weights" in printed
    assert "fault: resnet18: `mean` is (0.5, 0.5, 0.5)" in printed


def test_the_command_on_sound_images(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--csv", str(toy / "train.csv")])
    printed = capsys.readouterr().out
    assert "36 rows" in printed
    assert printed.endswith("no fault found\n")


def test_the_command_tells_of_pixels_that_the_model_refuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", "vit_small_patch14_dinov2.lvd142m", "--size", "64"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "fault: vit_small_patch14_dinov2.lvd142m: `image_size` (64, 64) leaves 23.4%" in printed
    assert "licence of the weights apache-2.0" in printed
    assert "ops.resize on the CPU" in printed


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--model", "resnet81"])
    assert ended.value.code == 2
    assert (
        "must be the name of a timm model, got 'resnet81' (near ones: " in capsys.readouterr().err
    )


def test_the_command_looks_into_a_predictor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    std = (0.229, 0.224, 0.225)
    model = LowResClassifier("test_resnet.r160_in1k", 2, image_size=32)
    read = Resize(32, mean=model.mean, std=std)
    Predictor([TrainedModel(model, CrossEntropyLoss(), read)], classes=("a", "b")).save(
        tmp_path / "p.safetensors"
    )
    arguments = ["doctor", "--predictor", str(tmp_path / "p.safetensors")]
    with pytest.raises(SystemExit):
        main(arguments)
    printed = capsys.readouterr().out
    assert f"fault: test_resnet.r160_in1k: `std` is {std}" in printed
    assert "`mean` is" not in printed
    assert "licence of the weights apache-2.0" in printed


def test_the_command_finds_floats_that_a_collator_cast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floats = np.random.default_rng(0).random((4, 3, 8, 8))
    np.save(tmp_path / "batch.npy", floats.round().astype(np.uint8))
    with pytest.raises(SystemExit):
        main(["doctor", "--batch", str(tmp_path / "batch.npy")])
    assert "fault: uint8 images hold 0 and 1 only: floats in [0, 1] were cast" in (
        capsys.readouterr().out
    )
    np.save(tmp_path / "batch.npy", (255 * floats).round().astype(np.uint8))
    main(["doctor", "--batch", str(tmp_path / "batch.npy")])


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lowres_vision", "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ops.resize on the CPU" in done.stdout
