"""One step and one run of a classifier, against plain loops."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Batch, collate
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.ops import Mix
from lowres_vision.optim import SAM, CosineWarmRestarts
from lowres_vision.training import Classifier, PairsDataModule, parameter_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",
)

SGD = partial(torch.optim.SGD, lr=0.5)
WHOLE = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "scale": None, "flip": 0.0}


def classifier(
    model: nn.Module, optimizer: Callable[..., Any] = SGD, **settings: Any
) -> Classifier:
    settings = {"transform": BatchTransform(16, **WHOLE), "schedule": "constant", **settings}
    return Classifier(model, CrossEntropyLoss(), optimizer=optimizer, **settings)


def module(samples: Any, batch_size: int = 12) -> PairsDataModule:
    return PairsDataModule(samples["low"], samples["low"], batch_size=batch_size)


def batches(samples: Any, epochs: int, batch_size: int = 12) -> list[Batch]:
    """Return the batches of a run in their order, images transformed."""

    class Trainer:
        current_epoch = 0

    data, seen = module(samples, batch_size), []
    data.trainer = Trainer()  # type: ignore[assignment]
    transform = BatchTransform(16, **WHOLE).eval()
    for epoch in range(epochs):
        data.trainer.current_epoch = epoch  # type: ignore[misc, union-attr]
        seen += [b._replace(images=transform(b.images)) for b in data.train_dataloader()]
    return seen


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        # The same float32 arithmetic but for the order of a few sums.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch.images), batch.targets)


class TestAverage:
    ema = staticmethod(partial(ModelEmaV3, decay=0.8))

    def test_it_follows_the_weights_after_each_step(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        ours = classifier(patch_net(norm=True), ema=self.ema)
        by_hand, average = copy.deepcopy(ours.model), None
        quiet_trainer(max_epochs=2).fit(ours, datamodule=module(toy_samples))
        optimizer = SGD(by_hand.parameters())
        for batch in batches(toy_samples, epochs=2):
            optimizer.zero_grad()
            cross_entropy(by_hand, batch).backward()
            optimizer.step()
            now = {name: value.clone().double() for name, value in by_hand.state_dict().items()}
            # timm takes over the weights of the first step and averages from then on.
            average = average or now
            average = {name: 0.8 * average[name] + 0.2 * now[name] for name in now}
        assert average is not None
        assert ours.scored_model is not ours.model
        for name, value in ours.scored_model.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
        assert_same_weights(ours.model, by_hand)

    def test_it_is_what_is_scored_and_predicts(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        ours = classifier(patch_net(), ema=self.ema)
        trainer = quiet_trainer(limit_val_batches=None, num_sanity_val_steps=0)
        trainer.fit(ours, datamodule=module(toy_samples))
        batch = collate(toy_samples["low"])
        images = ours.transform.eval()(batch.images)
        of_average, of_model = ours.scored_model(images), ours.model(images)
        assert not torch.allclose(of_average, of_model, atol=1e-3)
        torch.testing.assert_close(
            trainer.callback_metrics["val_loss"],
            nn.functional.cross_entropy(of_average, batch.targets),
        )
        (_, probabilities), *_ = trainer.predict(ours, module(toy_samples, 36))
        torch.testing.assert_close(probabilities, of_average.softmax(1))

    def test_a_resumed_run_ends_with_the_same_average(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any, tmp_path: Path
    ) -> None:
        def run(**settings: Any) -> tuple[Classifier, L.Trainer]:
            ours = classifier(patch_net(norm=True), ema=self.ema)
            trainer = quiet_trainer(max_epochs=4)
            trainer.fit(ours, datamodule=module(toy_samples), **settings)
            return ours, trainer

        unbroken, _ = run()
        half = classifier(patch_net(norm=True), ema=self.ema)
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(half, datamodule=module(toy_samples))
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        resumed, _ = run(ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        for name, value in unbroken.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_it_is_not_trained(self, patch_net: Any, toy_samples: Any, quiet_trainer: Any) -> None:
        ours = classifier(patch_net(), ema=self.ema)
        trainer = quiet_trainer()
        trainer.fit(ours, datamodule=module(toy_samples))
        trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        assert trained == {id(parameter) for parameter in ours.model.parameters()}


class TestAccumulation:
    def test_every_step_is_of_the_mean_loss_also_the_short_last_one(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        """Lightning alone halves the gradient of the third batch, which is a step by itself."""
        ours = classifier(patch_net())
        by_hand = copy.deepcopy(ours.model)
        trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=2)
        trainer.fit(ours, datamodule=module(toy_samples))
        assert trainer.global_step == 4
        optimizer = SGD(by_hand.parameters())
        seen = batches(toy_samples, epochs=2)
        for group in (seen[:2], seen[2:3], seen[3:5], seen[5:]):
            optimizer.zero_grad()
            (sum(cross_entropy(by_hand, batch) for batch in group) / len(group)).backward()
            optimizer.step()
        assert_same_weights(ours.model, by_hand)

    def test_clipping_is_of_the_accumulated_gradient(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        ours = classifier(patch_net())
        by_hand = copy.deepcopy(ours.model)
        trainer = quiet_trainer(accumulate_grad_batches=3, gradient_clip_val=0.05)
        trainer.fit(ours, datamodule=module(toy_samples))
        optimizer = SGD(by_hand.parameters())
        (sum(cross_entropy(by_hand, b) for b in batches(toy_samples, 1)) / 3).backward()
        norm = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
        assert norm > 0.1
        for parameter in by_hand.parameters():
            parameter.grad *= 0.05 / norm
        optimizer.step()
        assert_same_weights(ours.model, by_hand)


class TestSAM:
    sam = staticmethod(partial(SAM, base_optimizer=torch.optim.SGD, lr=0.5, rho=0.1))

    def test_clipping_by_norm_counts_in_the_second_pass(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        ours = classifier(patch_net(), self.sam)
        by_hand = copy.deepcopy(ours.model)
        quiet_trainer(gradient_clip_val=0.05).fit(ours, datamodule=module(toy_samples))
        for batch in batches(toy_samples, 1):
            weights = list(by_hand.parameters())
            slopes = torch.autograd.grad(cross_entropy(by_hand, batch), weights)
            norm = torch.cat([slope.flatten() for slope in slopes]).norm()
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight += 0.1 * slope / norm
            uphill = torch.autograd.grad(cross_entropy(by_hand, batch), weights)
            length = torch.cat([slope.flatten() for slope in uphill]).norm()
            with torch.no_grad():
                for weight, slope, up in zip(weights, slopes, uphill, strict=True):
                    weight -= 0.1 * slope / norm + 0.5 * up * min(1, 0.05 / length)
        assert_same_weights(ours.model, by_hand)

    def test_the_logged_loss_is_that_of_the_first_pass(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        ours = classifier(patch_net(), self.sam)
        (batch,) = batches(toy_samples, 1, batch_size=36)
        expected = cross_entropy(ours.model, batch).detach()
        trainer = quiet_trainer()
        trainer.fit(ours, datamodule=module(toy_samples, 36))
        torch.testing.assert_close(trainer.callback_metrics["train_loss"], expected)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2: only the last batch"),
            (
                {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
                "gradient_clip_algorithm='value': it would turn the direction",
            ),
        ],
    )
    def test_what_lightning_gets_wrong_is_refused(
        self, settings: Any, words: str, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        with pytest.raises(ValueError, match=f"SAM does not go with {words}"):
            quiet_trainer(**settings).fit(
                classifier(patch_net(), self.sam), datamodule=module(toy_samples)
            )


class TestGroups:
    def test_each_group_has_its_rate_and_one_schedule(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        rates = []

        class Spy(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
                rates.append([g["lr"] for g in trainer.optimizers[0].param_groups])

        groups = partial(parameter_groups, rates={"head": 10, "body": 0.5}, weight_decay=0.0)
        ours = classifier(patch_net(), groups=groups, schedule="cosine")
        quiet_trainer(callbacks=[Spy()]).fit(ours, datamodule=module(toy_samples))
        factors = [1, 0.75, 0.25]  # the half cosine over three steps
        expected = [[0.25 * factor, 5 * factor] for factor in factors]
        torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))

    def test_parameters_of_the_loss_are_trained_too(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        class Scaled(CrossEntropyLoss):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))

            def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
                return super().forward(self.scale * logits, targets)

        loss = Scaled()
        ours = Classifier(
            patch_net(), loss, transform=BatchTransform(16, **WHOLE), optimizer=SGD,
            groups=partial(parameter_groups, rates={"head": 10}),
        )  # fmt: skip
        quiet_trainer().fit(ours, datamodule=module(toy_samples))
        assert loss.scale != 1


def test_a_schedule_of_ones_own_is_told_the_steps_of_an_epoch(
    patch_net: Any, toy_samples: Any, quiet_trainer: Any
) -> None:
    rates = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def restarts(optimizer: Any, steps: int) -> CosineWarmRestarts:
        return CosineWarmRestarts(optimizer, first_cycle=steps, max_lr=1.0, min_lr=0.0)

    ours = classifier(patch_net(), schedule=restarts)
    trainer = quiet_trainer(max_epochs=3, callbacks=[Spy()])
    trainer.fit(ours, datamodule=module(toy_samples))
    assert rates == pytest.approx(3 * rates[:3])
    assert rates[0] == pytest.approx(1.0)
    assert rates[0] > rates[1] > rates[2]


def test_a_step_is_a_function_of_seed_epoch_and_batch(
    patch_net: Any, toy_samples: Any, quiet_trainer: Any
) -> None:
    cropping = BatchTransform(16, mean=(0.5,) * 3, std=(0.25,) * 3)
    ours = classifier(patch_net(), transform=cropping, seed=4)
    other = classifier(patch_net(), transform=cropping, seed=5)
    seen: list[Tensor] = []

    class Spy(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, module: Any, batch: Any, index: int
        ) -> None:
            views = module._draw(batch, index, trainer.current_epoch)
            seen.append(module._terms(views)["train_loss"].detach())
            elsewhere = [
                other._draw(batch, index, trainer.current_epoch),
                module._draw(batch, index + 1, trainer.current_epoch),
                module._draw(batch, index, trainer.current_epoch + 1),
            ]
            assert not any(torch.equal(views.images, there.images) for there in elsewhere)

        def on_train_batch_end(
            self, trainer: L.Trainer, module: Any, outputs: Any, *_: object
        ) -> None:
            assert torch.equal(seen[-1], outputs["loss"])

    quiet_trainer(max_epochs=2, callbacks=[Spy()]).fit(ours, datamodule=module(toy_samples))
    assert len(seen) == 6


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_nothing_is_left_of_an_epoch_that_was_broken_off(
    hook: str, patch_net: Any, toy_samples: Any, quiet_trainer: Any
) -> None:
    """With a rate of 0, training again logs what it would have logged the first time."""

    class Break(L.Callback):
        pass

    def broken(self: Any, trainer: Any, module: Any, batch: Any, number: int, *_: Any) -> None:
        if number == 1:
            raise InterruptedError

    setattr(Break, hook, broken)
    usual = {"limit_val_batches": None, "num_sanity_val_steps": 0}
    logged = []
    for interrupted in (False, True):
        ours = classifier(patch_net(), partial(torch.optim.SGD, lr=0.0))
        data = module(toy_samples, batch_size=6)
        if interrupted:
            with pytest.raises(InterruptedError):
                quiet_trainer(callbacks=[Break()], **usual).fit(ours, datamodule=data)
        trainer = quiet_trainer(**usual)
        trainer.fit(ours, datamodule=data)
        logged.append(dict(trainer.callback_metrics))
    assert logged[0] == logged[1]
    assert {"train_loss", "val_loss", "val_macro_f1"} <= logged[0].keys()


def test_refusals(patch_net: Any, toy_samples: Any, quiet_trainer: Any) -> None:
    with pytest.raises(TypeError, match="held-out samples must be of one resolution"):
        quiet_trainer(limit_val_batches=None).validate(
            classifier(patch_net()), PairsDataModule(toy_samples["low"], toy_samples["pair"])
        )
    with pytest.raises(
        ValueError, match=r"`schedule` needs the number of steps of the run, .*`max_"
    ):
        quiet_trainer(max_epochs=-1).fit(
            classifier(patch_net(), schedule="cosine"), datamodule=module(toy_samples)
        )
    with pytest.raises(ValueError, match="`schedule` must be one of 'cosine', 'constant'"):
        classifier(patch_net(), schedule="linear")
    with pytest.raises(ValueError, match="`warmup` must be 0 with a `schedule` of one's own"):
        classifier(patch_net(), schedule=lambda optimizer, steps: None, warmup=0.1)
    mixed = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([0, 1]),
                  Mix(torch.tensor([1, 0]), torch.tensor([0.5, 0.5])))  # fmt: skip
    with pytest.raises(ValueError, match="a drawn mix needs a `transform` that applies it"):
        classifier(patch_net(), transform=None)._draw(mixed, 0, 0)
