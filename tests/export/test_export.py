"""Exported files give what the Modules give, on batches and sizes they were not traced with."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lowres_vision.augment import BatchTransform
from lowres_vision.ensemble import Temperature
from lowres_vision.export import Predictor, TrainedModel, export_onnx, export_program
from lowres_vision.losses import ArcFaceLoss, CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.resizer import LearnableResizer, Resize

CLASSES = ("heron", "owl", "rail")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A vision transformer behind a resizer, and a CNN with cosines at another size."""
    torch.manual_seed(0)
    tokens = LowResClassifier("test_vit", 3, image_size=64, resizer=LearnableResizer(64))
    maps = LowResClassifier("test_resnet", 3, image_size=96, head="cosine", pool="gem")
    return Predictor(
        [
            TrainedModel(tokens, CrossEntropyLoss(), BatchTransform(32, mean=HALF, std=HALF)),
            TrainedModel(maps, ArcFaceLoss(), BatchTransform(96, mean=HALF, std=(0.25,) * 3)),
        ],
        classes=CLASSES,
        weights=[2, 1],
        calibration=Temperature(1.5, reads="probabilities"),
    )


def images(count: int, height: int = 40, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_predictor_is_the_weighted_calibrated_mean(predictor: Predictor) -> None:
    batch = images(5)
    members = []
    with torch.no_grad():
        for member, (loss, mean, std, size) in zip(
            predictor.vote.models,
            [(CrossEntropyLoss(), HALF, HALF, 32), (ArcFaceLoss(), HALF, (0.25,) * 3, 96)],
            strict=True,
        ):
            read = BatchTransform(size, mean=mean, std=std).eval()(batch)
            members.append(loss.probabilities(member[1](read)))
        blend = (2 * members[0] + members[1]) / 3
        expected = blend.pow(1 / 1.5)
        expected /= expected.sum(1, keepdim=True)
        torch.testing.assert_close(predictor(batch), expected)


def test_onnx_on_other_batches_and_sizes(predictor: Predictor, tmp_path: Path) -> None:
    certificate = export_onnx(predictor, tmp_path / "p.onnx", images(4), dynamic_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    for batch in (images(1), images(7), images(3, 20, 90), images(2, 300, 41)):
        (found,) = session.run(None, {"images": batch.numpy()})
        with torch.no_grad():
            expected = predictor(batch)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    assert certificate.file == "p.onnx"
    assert certificate.images == 4
    assert certificate.largest_difference < 1e-5
    assert certificate.same_class == 4


def test_onnx_file_names_its_classes(predictor: Predictor, tmp_path: Path) -> None:
    export_onnx(predictor, tmp_path / "p.onnx", images(2), notes={"source": "toy"})
    stored = {p.key: p.value for p in onnx.load(tmp_path / "p.onnx").metadata_props}
    assert stored["classes"].split("\n") == list(CLASSES)
    assert stored["source"] == "toy"
    about = json.loads((tmp_path / "p.onnx.json").read_text())
    assert about["notes"]["source"] == "toy"
    assert set(about["versions"]) >= {"torch", "onnxruntime", "lowres-vision"}


def test_onnx_file_holds_no_paths_of_the_machine_it_was_made_on(
    predictor: Predictor, tmp_path: Path
) -> None:
    export_onnx(predictor, tmp_path / "p.onnx", images(2))
    content = (tmp_path / "p.onnx").read_bytes()
    assert b"classes" in content
    assert b"Traceback" not in content
    assert b".py" not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_a_view_is_a_second_output(predictor: Predictor, tmp_path: Path) -> None:
    export_onnx(predictor, tmp_path / "p.onnx", images(4), dynamic_size=True, view=Resize(24))
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    batch = images(3, 20, 90)
    outputs, views = session.run(["outputs", "views"], {"images": batch.numpy()})
    pillow = torch.stack(
        [
            pil_to_tensor(to_pil_image(image).resize((24, 24), Image.Resampling.BILINEAR))
            for image in batch
        ]
    )
    assert float((torch.from_numpy(views) * 255 - pillow).abs().max()) < 1.5  # Pillow rounds twice
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs), predictor(batch), rtol=0, atol=1e-5)


class _Drift(nn.Module):
    """A view that is another one outside an exported graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255 if torch.compiler.is_exporting() else x / 255 + 1


def test_a_view_that_differs_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`view` differs from the Module by up to 1 .*nothing"):
        export_onnx(predictor, tmp_path / "p.onnx", images(2), view=_Drift())
    assert not list(tmp_path.iterdir())


def test_program_on_other_batches(predictor: Predictor, tmp_path: Path) -> None:
    export_program(predictor, tmp_path / "p.pt2", images(4), dynamic_size=True)
    program = torch.export.load(tmp_path / "p.pt2").module()
    for batch in (images(1), images(6, 64, 30)):
        with torch.no_grad():
            torch.testing.assert_close(program(batch), predictor(batch), rtol=0, atol=1e-6)


def test_program_keeps_channels_last_weights_without_a_warning(tmp_path: Path) -> None:
    model = LowResClassifier("test_resnet", 3, image_size=32).to(memory_format=torch.channels_last)
    export_program(model, tmp_path / "p.pt2", torch.rand(2, 3, 32, 32))
    loaded = torch.export.load(tmp_path / "p.pt2").state_dict
    weight = model.backbone.layer1[0].conv2.weight
    assert loaded["backbone.layer1.0.conv2.weight"].stride() == weight.stride()
    assert torch.equal(loaded["backbone.layer1.0.conv2.weight"], weight)


def test_mode_and_gradients_are_left_as_they_were(tmp_path: Path) -> None:
    model = LowResClassifier("test_resnet", 3, image_size=32).train()
    model.backbone.eval()
    export_onnx(model, tmp_path / "m.onnx", torch.rand(2, 3, 32, 32))
    assert model.training
    assert model.head.training
    assert not model.backbone.training
    assert model(torch.rand(2, 3, 32, 32)).requires_grad


class _Drifting(nn.Module):
    """Gives another answer each time it is run outside an exported graph."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x.float().mean((2, 3))[:, :2]
        return scores if torch.compiler.is_exporting() else scores + 1


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_difference_is_refused_and_leaves_nothing(export, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"differs from the Module by up to 1 .*nothing was writ"):
        export(_Drifting(), tmp_path / "d.pt2", images(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_bad_batches_are_named(export, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="at least two images, got 1"):
        export(model, tmp_path / "m.pt2", images(1))
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        export(model, tmp_path / "m.pt2", images(2)[0])


def test_predictor_refuses_classes_that_do_not_fit() -> None:
    member = TrainedModel(nn.Linear(4, 3), CrossEntropyLoss())
    with pytest.raises(ValueError, match="at least two different names"):
        Predictor([member], classes=("a", "a", "b"))
    with pytest.raises(ValueError, match="give 3 classes, `classes` names 2"):
        Predictor([member], classes=("a", "b"))(torch.rand(2, 4))
