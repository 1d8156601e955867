import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lowres_vision.augment import BatchTransform
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.optim import SAM
from lowres_vision.training import Classifier, PairsDataModule, parameter_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",
)

STAGES = {0: "head", 2: ["body.2", "body.3.weight"]}
ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


class History(L.Callback):
    """The weights before each epoch, and after the last."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.modes: list[bool] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self._keep(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: object) -> None:
        self.modes.append(module.model.body[3].training)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._keep(module)

    def _keep(self, module: Any) -> None:
        self.states.append(copy.deepcopy(dict(module.model.state_dict())))

    def moved(self, epoch: int) -> set[str]:
        before, after = self.states[epoch], self.states[epoch + 1]
        return {name for name in before if not torch.equal(before[name], after[name])}


def classifier(model: nn.Module, **settings: Any) -> Classifier:
    transform = BatchTransform(16, mean=(0.5,) * 3, std=(0.25,) * 3)
    settings = {"optimizer": ADAM, "unfreeze": STAGES, **settings}
    return Classifier(model, CrossEntropyLoss(), transform=transform, **settings)


def module(samples: Any) -> PairsDataModule:
    return PairsDataModule(samples["low"], samples["low"], batch_size=12)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"groups": partial(parameter_groups, rates={"body": 0.1})},
        {"optimizer": partial(SAM, base_optimizer=torch.optim.Adam, lr=0.01)},
    ],
)
def test_each_part_moves_from_its_epoch_on_and_the_rest_never(
    settings: Any, patch_net: Any, toy_samples: Any, quiet_trainer: Any
) -> None:
    history = History()
    ours = classifier(patch_net(norm=True), **settings)
    quiet_trainer(max_epochs=4, callbacks=[history]).fit(ours, datamodule=module(toy_samples))
    head = {"head.weight", "head.bias"}
    statistics = {f"body.3.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert history.moved(0) == history.moved(1) == head
    later = head | statistics | {"body.2.weight", "body.2.bias", "body.3.weight"}
    assert history.moved(2) == history.moved(3) == later
    assert history.modes == 6 * [False] + 6 * [True]


def test_a_resumed_run_goes_on_in_its_stage(
    patch_net: Any, toy_samples: Any, quiet_trainer: Any, tmp_path: Path
) -> None:
    unbroken = classifier(patch_net(norm=True))
    quiet_trainer(max_epochs=4).fit(unbroken, datamodule=module(toy_samples))

    class Save(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            if trainer.current_epoch == 2 and index == 2:
                trainer.save_checkpoint(tmp_path / "last_batch.ckpt")

    saved = classifier(patch_net(norm=True))
    trainer = quiet_trainer(max_epochs=4, callbacks=[Save()])
    trainer.fit(saved, datamodule=module(toy_samples))
    resumed = classifier(patch_net(norm=True, seed=9))
    quiet_trainer(max_epochs=4).fit(
        resumed,
        datamodule=module(toy_samples),
        ckpt_path=tmp_path / "last_batch.ckpt",
        weights_only=True,
    )
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_run_resumed_within_an_epoch_is_in_its_stage(patch_net: Any) -> None:
    """Lightning starts no epoch then, only the training."""
    ours = classifier(patch_net(norm=True))
    assert [n for n, p in ours.model.named_parameters() if p.requires_grad] == [
        "body.2.weight", "body.2.bias", "body.3.weight", "head.weight", "head.bias",
    ]  # fmt: skip
    ours.on_train_start()
    trainable = [n for n, p in ours.model.named_parameters() if p.requires_grad]
    assert trainable == ["head.weight", "head.bias"]


def test_refusals(patch_net: Any) -> None:
    with pytest.raises(ValueError, match=r"what trains from epoch 0, got epochs \[1\]"):
        classifier(patch_net(), unfreeze={1: "head"})
    with pytest.raises(ValueError, match="by epoch, an int >= 0, got -1"):
        classifier(patch_net(), unfreeze={0: "head", -1: "body"})
    with pytest.raises(ValueError, match=r"'neck', which matches no parameter"):
        classifier(patch_net(), unfreeze={0: "head", 3: ["neck"]})
