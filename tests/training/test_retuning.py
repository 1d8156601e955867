import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

from lowres_vision.augment import BatchTransform
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.training import Classifier, Consistency, PairsDataModule, retune_head

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",
    "ignore:torch.searchsorted",
    "ignore:Using a non-tuple sequence",
)

SGD = partial(torch.optim.SGD, lr=0.01)
LAST_NORM = {"test_resnet": "layer4.0.downsample.2", "test_vit": "norm"}


def trained(backbone: str = "test_resnet", **settings: Any) -> Classifier:
    torch.manual_seed(0)
    model = LowResClassifier(backbone, 3, image_size=32, pool="gem")
    transform = BatchTransform(32, mean=(0.5,) * 3, std=(0.25,) * 3, mode="bicubic", flip=0.25)
    return Classifier(
        model, CrossEntropyLoss(), transform=transform, optimizer=SGD, seed=7, **settings
    )


@pytest.mark.parametrize("backbone", LAST_NORM)
def test_pooling_head_and_last_norm_train_and_the_rest_is_frozen(backbone: str) -> None:
    again = retune_head(trained(backbone), optimizer=SGD)
    last = f"backbone.{LAST_NORM[backbone]}"
    assert {n for n, p in again.model.named_parameters() if p.requires_grad} == {
        f"{last}.weight", f"{last}.bias", "pool.p", "head.weight", "head.bias",
    }  # fmt: skip
    again.train()
    norms = {n: m for n, m in again.model.named_modules() if hasattr(m, "running_mean")}
    assert {name for name, norm in norms.items() if norm.training} == {last} & norms.keys()


def test_images_come_whole_at_the_new_size_and_else_as_before() -> None:
    before = trained()
    again = retune_head(before, optimizer=SGD, size=48)
    ours, theirs = again.transform, before.transform
    assert ours.size == again.model.image_size == (48, 48)
    assert ours.scale is None
    for name in ("mean", "std", "flip", "mode", "via", "dtype"):
        assert getattr(ours, name) == getattr(theirs, name)
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    crops = ours.draw(images)._replace(flip=torch.tensor([False, False]))
    assert torch.equal(ours(images, crops=crops), ours.eval()(images))
    assert again.seed == 7
    assert again.loss is before.loss


def test_a_vision_transformer_takes_another_size() -> None:
    before = trained("test_vit")
    again = retune_head(before, optimizer=SGD, size=64)
    images = torch.rand(2, 3, 64, 64)
    assert again.model(images).shape == (2, 3)
    assert before.model.image_size == (32, 32)
    with pytest.raises(ValueError, match=r"\(40, 40\) leaves 36\.0% of the pixels unread"):
        retune_head(before, optimizer=SGD, size=40)


def test_it_trains_a_copy_of_the_scored_weights(toy_samples: Any, quiet_trainer: Any) -> None:
    before = trained(ema=ModelEmaV3, pairing=Consistency())
    with torch.no_grad():
        before.scored_model.head.bias += 1.0
    state = copy.deepcopy(before.state_dict())
    # At 32 px the last map is one pixel, whose mean does not depend on the power.
    again = retune_head(before, optimizer=SGD, size=64)
    assert again.pairing is None
    for name, value in before.scored_model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    start = copy.deepcopy(again.model.state_dict())
    data = PairsDataModule(toy_samples["low"], toy_samples["low"], batch_size=18)
    quiet_trainer().fit(again, datamodule=data)
    moved = {n for n, v in again.model.state_dict().items() if not torch.equal(v, start[n])}
    norm = "backbone.layer4.0.downsample.2"
    assert moved == {
        *(f"{norm}.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
        f"{norm}.num_batches_tracked", "pool.p", "head.weight", "head.bias",
    }  # fmt: skip
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())


def test_refusals(patch_net: Any) -> None:
    with pytest.raises(TypeError, match=r"`classifier\.model` must be a LowResClassifier, got Pat"):
        retune_head(Classifier(patch_net(), CrossEntropyLoss(), optimizer=SGD), optimizer=SGD)
    with pytest.raises(ValueError, match="`norms` must be >= 0 and <= "):
        retune_head(trained(), optimizer=SGD, norms=100)
    bare = trained()
    bare.transform = None
    with pytest.raises(TypeError, match=r"`classifier\.transform` must be a BatchTransform"):
        retune_head(bare, optimizer=SGD)
