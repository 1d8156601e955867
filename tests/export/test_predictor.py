"""A predictor comes back from its file to the bit, or is refused with what to do."""

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from lowres_vision.augment import BatchTransform
from lowres_vision.ensemble import ClassBias, Temperature
from lowres_vision.export import Predictor, TrainedModel
from lowres_vision.heads import CosineClassifier
from lowres_vision.losses import ArcFaceLoss, CosineLoss, CrossEntropyLoss, FocalLoss
from lowres_vision.models import LowResClassifier, freeze_except
from lowres_vision.pooling import GeM
from lowres_vision.resizer import LearnableResizer, MullerResizer, Resize
from lowres_vision.training import Classifier

CLASSES = ("heron", "owl, barn", "쇠물닭")
READ = BatchTransform(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
Model = partial(LowResClassifier, "test_resnet", 3, image_size=32)


class Head(nn.Sequential):
    """As a script puts it before the classifier."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.LayerNorm(features), nn.GELU(), nn.Dropout(0.2))


def member(model: nn.Module, loss: nn.Module | None = None) -> TrainedModel:
    return TrainedModel(model, loss or CrossEntropyLoss(), READ)


def one(**arguments: object) -> Predictor:
    return Predictor([member(Model(**arguments))], classes=CLASSES)


def folds() -> Predictor:
    return Predictor([member(Model()) for _ in range(3)], classes=CLASSES)


def hard_vote() -> Predictor:
    pair = [member(Model()), member(Model(), FocalLoss())]
    return Predictor(pair, classes=CLASSES, vote="hard", weights=[2, 1])


def two_backbones() -> Predictor:
    tokens = LowResClassifier("test_vit", 3, image_size=64)
    read = BatchTransform(64, mean=(0.5,) * 3, std=(0.5,) * 3, via=16, mode="bicubic")
    return Predictor(
        [member(Model()), TrainedModel(tokens, CosineLoss(temperature=7.0), read)],
        classes=CLASSES,
        vote="geometric",
        weights=[0.3, 0.1],
        calibration=nn.Sequential(
            Temperature(1.7, reads="probabilities"), ClassBias([0.1, -0.2, 0.1])
        ),
    )


def cosines() -> Predictor:
    model = Model(pool="gem", neck="embedding", head="cosine")
    return Predictor([member(model, ArcFaceLoss(scale=12.5))], classes=CLASSES)


def subcenters() -> Predictor:
    model = Model(pool=GeM(4.0, learnable=False), head="cosine")
    model.add_module("head", CosineClassifier(model.head.in_features, 3, subcenters=2))
    return Predictor([member(model, ArcFaceLoss())], classes=CLASSES)


def own_head() -> Predictor:
    model = Model(drop=0.3)
    model.add_module("head", nn.Sequential(Head(int(model.head.in_features)), model.head))
    return Predictor([member(model)], classes=CLASSES)


def own_neck() -> Predictor:
    neck = nn.Sequential(nn.Linear(96, 20, bias=False), nn.BatchNorm1d(20), nn.PReLU())
    neck.out_features = 20
    return one(neck=neck)


def other_transform() -> Predictor:
    read = Resize((32, 32), mean=(0.5,) * 3, rounding="uint8")
    return Predictor([TrainedModel(Model(), CrossEntropyLoss(), read)], classes=CLASSES)


def timm_arguments() -> Predictor:
    name = "vit_tiny_patch16_224"
    model = LowResClassifier(name, 3, image_size=(32, 48), depth=2, act_layer="relu")
    read = BatchTransform((32, 48), mean=model.mean, std=model.std)
    return Predictor([TrainedModel(model, CrossEntropyLoss(), read)], classes=CLASSES)


def other_size() -> Predictor:
    model = LowResClassifier("test_vit", 3, image_size=64)
    model.set_image_size(32)
    return Predictor([member(model)], classes=CLASSES)


def from_a_classifier() -> Predictor:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    model = Model(resizer=LearnableResizer(32))
    freeze_except(model, ["head"])
    return Predictor(
        [Classifier(model, CrossEntropyLoss(), transform=READ, optimizer=optimizer)],
        classes=CLASSES,
    )


def half() -> Predictor:
    model = Model().to(torch.bfloat16)
    read = BatchTransform(32, mean=(0.5,) * 3, std=(0.5,) * 3, dtype=torch.bfloat16)
    return Predictor([TrainedModel(model, CrossEntropyLoss(), read)], classes=CLASSES)


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "one": one,
    "folds": folds,
    "hard_vote": hard_vote,
    "two_backbones": two_backbones,
    "cosines": cosines,
    "subcenters": subcenters,
    "own_head": own_head,
    "own_neck": own_neck,
    "other_transform": other_transform,
    "timm_arguments": timm_arguments,
    "other_size": other_size,
    "from_a_classifier": from_a_classifier,
    "half": half,
    "learnable": lambda: one(resizer=LearnableResizer(32, channels=8, blocks=2, attention="cbam")),
    "no_blocks": lambda: one(resizer=LearnableResizer(32, blocks=0, checkpoint=True)),
    "muller": lambda: one(resizer=MullerResizer(32, layers=3, kernel_size=3, stddev=0.7)),
    "resize": lambda: one(resizer=Resize(32, mode="bicubic", antialias=False)),
}


def moved(predictor: Predictor) -> Predictor:
    """Move every weight and statistic off what its constructor sets, as training does."""
    generator = torch.Generator().manual_seed(7)
    for name, value in predictor.vote.state_dict().items():
        if value.is_floating_point():
            value += (0.02 * torch.randn(value.shape, generator=generator)).to(value.dtype)
        else:
            value += len(name)
    return predictor


def images(count: int = 4, height: int = 40, width: int = 29) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", PREDICTORS)
@torch.no_grad()
def test_answers_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = moved(PREDICTORS[name]())
    record = predictor.save(tmp_path / "p.safetensors", notes={"macro-F1": ".71"})
    drawn = torch.random.get_rng_state()
    loaded = Predictor.load(tmp_path / "p.safetensors")
    assert torch.equal(torch.random.get_rng_state(), drawn)

    spread = predictor(images(4)).std(dim=(0, 1))
    assert 1e-3 < spread < 0.4, "all the same, or all 0 and 1: any model would agree with that"
    for batch in (images(4), images(1, 32, 32), images(3, 7, 90)):
        assert torch.equal(loaded(batch), predictor(batch))
    assert loaded.classes == CLASSES
    assert loaded.notes == {"macro-F1": ".71"}
    assert not any(part.training for part in loaded.modules())
    state = loaded.state_dict()
    for key, value in predictor.state_dict().items():
        assert torch.equal(state[key], value)
        assert state[key].dtype == value.dtype
        assert state[key].stride() == value.stride()
    loaded.save(tmp_path / "again.safetensors")
    first, again = (tmp_path / "p.safetensors"), (tmp_path / "again.safetensors")
    assert first.read_bytes() == again.read_bytes()
    assert record["classes"] == list(CLASSES)


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    predictor = one()
    predictor.save(tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.pop("answers").shape == (1, 2, 3)
    assert found.keys() == predictor.state_dict().keys()


def test_a_moving_average_is_what_is_saved(tmp_path: Path) -> None:
    from timm.utils import ModelEmaV3

    classifier = Classifier(
        Model(),
        CrossEntropyLoss(),
        transform=READ,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        ema=partial(ModelEmaV3, decay=0.9),
    )
    for parameter in classifier.model.parameters():
        parameter.data += 1
    Predictor([classifier], classes=CLASSES).save(tmp_path / "p.safetensors")
    model = Predictor.load(tmp_path / "p.safetensors").vote.models[0][1]
    average = classifier.scored_model.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


REFUSED = {
    "a model of another kind": (
        lambda: Predictor([member(Foreign())], classes=CLASSES),
        r"member 0, parts, 1 is .*\.Foreign, which a predictor file cannot describe; put it "
        r"together from LowResClassifier, .* or write it with `export_onnx`",
    ),
    "a pool of another kind": (
        lambda: one(pool=Foreign()),
        r"member 0, parts, 1, pool is .*\.Foreign",
    ),
    "a loss of another kind": (
        lambda: Predictor(
            [TrainedModel(Model(), type("Loss", (CrossEntropyLoss,), {"__module__": "mine"})())],
            classes=CLASSES,
        ),
        r"the loss of member 0 is mine\.Loss",
    ),
    "a class for timm": (
        lambda: one(act_layer=nn.SiLU),
        r"timm_args, act_layer is <class .*SiLU'>, which no file of plain values can hold",
    ),
    "a layer put in": (
        lambda: with_layer(one()),
        "cannot be made anew from its constructors' arguments .*extra.*; undo what was changed",
    ),
    "a layer's forward replaced": (
        lambda: with_activation(one()),
        "made anew from its constructors' arguments gives other answers; undo what was changed",
    ),
}


def with_layer(predictor: Predictor) -> Predictor:
    predictor.vote.models[0][1].backbone.add_module("extra", nn.Linear(2, 2))
    return predictor


def with_activation(predictor: Predictor) -> Predictor:
    predictor.vote.models[0][1].backbone.act1 = nn.Sigmoid()
    return predictor


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_anew_is_refused_at_once(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        moved(make()).save(tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_copy_of_a_predictor_is_one(tmp_path: Path) -> None:
    predictor = two_backbones()
    twin = copy.deepcopy(predictor)
    twin.save(tmp_path / "twin.safetensors")
    predictor.save(tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "twin.safetensors").read_bytes()


@pytest.mark.slow
def test_a_new_process_gives_the_same_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = moved(two_backbones())
    predictor.save(tmp_path / "p.safetensors")
    code = (
        "import sys, torch; from lowres_vision.export import Predictor\n"
        "predictor = Predictor.load(sys.argv[1])\n"
        "batch = (torch.arange(4 * 3 * 20 * 24) % 251).to(torch.uint8).view(4, 3, 20, 24)\n"
        "with torch.no_grad(): print(predictor(batch).double().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    batch = (torch.arange(4 * 3 * 20 * 24) % 251).to(torch.uint8).view(4, 3, 20, 24)
    with torch.no_grad():
        assert done.stdout.strip() == str(predictor(batch).double().tolist())


OTHER = {"lowres-vision": "0.0.1", "torch": "2.8.0", "timm": "1.0.19"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_versions_that_answer_alike_are_taken(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = half() if dtype == torch.bfloat16 else folds()
    monkeypatch.setattr("lowres_vision.export._predictor.installed_versions", lambda *_: OTHER)
    predictor.save(tmp_path / "p.safetensors")
    monkeypatch.undo()
    assert Predictor.load(tmp_path / "p.safetensors").classes == CLASSES


def test_other_versions_that_answer_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    predictor = moved(one())
    monkeypatch.setattr("lowres_vision.export._predictor.installed_versions", lambda *_: OTHER)
    predictor.save(tmp_path / "p.safetensors")
    monkeypatch.undo()
    # As if this version of timm had another activation under the same name.
    original = nn.ReLU.forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: original(self, x) + 0.1)
    with pytest.raises(ValueError, match=r"p\.safetensors was written with .*1\.0\.19.*install"):
        Predictor.load(tmp_path / "p.safetensors")


def test_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    predictor = Predictor([member(Model())], classes=("a", "b"))
    with pytest.raises(ValueError, match="give 3 classes, `classes` names 2"):
        predictor.save(tmp_path / "p.safetensors")
