import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lowres_vision.models import LowResClassifier, freeze_except
from lowres_vision.training import parameter_groups


def by_name(model: nn.Module, groups: list[dict], key: str) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[key] for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet"]
)
def test_layers_count_as_in_timms_whole_model(name: str) -> None:
    """There the classifier is in the model, here beside it; its norm may be on either side."""
    whole = timm.create_model(name, num_classes=3)
    theirs = param_groups_layer_decay(
        whole, weight_decay=0.1, layer_decay=0.6, no_weight_decay_list=_exempt(whole)
    )
    model = LowResClassifier(name, 3)
    ours = parameter_groups(model, layer_decay=0.6, weight_decay=0.1)
    for key in ("lr_scale", "weight_decay"):
        expected = by_name(whole, theirs, key)
        got = by_name(model, ours, key)
        assert got.keys() == {n for n, _ in model.named_parameters()}
        assert got["head.weight"] == {"lr_scale": 1.0, "weight_decay": 0.1}[key]
        backbone = {n.removeprefix("backbone."): v for n, v in got.items() if "backbone." in n}
        assert backbone == pytest.approx({n: expected[n] for n in backbone})
    assert len({group["lr_scale"] for group in ours}) > 3


def _exempt(model: nn.Module) -> set[str]:
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()


def test_what_is_not_the_backbones_trains_at_the_full_rate() -> None:
    model = LowResClassifier(
        "test_resnet", 3, resizer=nn.Conv2d(3, 3, 1), pool="gem", neck="embedding"
    )
    scales = by_name(model, parameter_groups(model, layer_decay=0.5), "lr_scale")
    assert {v for n, v in scales.items() if not n.startswith("backbone.")} == {1.0}
    assert max(v for n, v in scales.items() if n.startswith("backbone.")) == 0.5


def test_rates_multiply_and_the_last_match_counts() -> None:
    model = LowResClassifier("test_resnet", 3, pool="gem")
    groups = parameter_groups(
        model, layer_decay=0.5, rates={"*": 2, "pool": 20, "backbone.layer4.*.bn?": 0}
    )
    scales = by_name(model, groups, "lr_scale")
    assert scales["pool.p"] == 20
    assert scales["head.bias"] == 2
    assert scales["backbone.layer4.0.bn1.weight"] == 0
    assert scales["backbone.layer4.0.conv1.weight"] == 2 * 0.5


def test_only_what_trains_is_grouped_once() -> None:
    model = LowResClassifier("test_resnet", 3)
    freeze_except(model, ["backbone.layer4", "head"])
    groups = parameter_groups(model, layer_decay=0.5, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])
    torch.optim.AdamW(groups, lr=0.1)


def test_refusals() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"`layer_decay` must be > 0\.0 and <= 1\.0, got 0"):
        parameter_groups(model, layer_decay=0)
    with pytest.raises(ValueError, match="layers timm can count, Linear has none; give `rates`"):
        parameter_groups(model, layer_decay=0.5)
    with pytest.raises(ValueError, match="`rates` has 'heat', which matches no parameter"):
        parameter_groups(model, rates={"weight": 1, "heat": 10})
    with pytest.raises(ValueError, match=r"`rates\['weight'\]` must be >= 0\.0, got -1"):
        parameter_groups(model, rates={"weight": -1})
