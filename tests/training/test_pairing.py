"""Training from pairs: what the model and the teacher see, and what is asked of the model."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lowres_vision.augment import BatchTransform
from lowres_vision.data import PairBatch, collate
from lowres_vision.losses import ArcFaceLoss, CrossEntropyLoss
from lowres_vision.mixing import CutMixCollator
from lowres_vision.ops import Mix, resize
from lowres_vision.optim import SAM
from lowres_vision.training import Classifier, Consistency, Distillation, PairsDataModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers"
)

STATISTICS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
WHOLE = slice(None)


def transform(size: int = 16, **settings: Any) -> BatchTransform:
    return BatchTransform(size, **STATISTICS, **settings)


def pairs(batch: int = 6, *, soft: bool = False) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 256, (batch, 3, 16, 16), dtype=torch.uint8, generator=generator)
    high = low.repeat_interleave(4, 2).repeat_interleave(4, 3)
    targets = torch.arange(batch) % 3
    if soft:
        targets = torch.rand(batch, 3, generator=generator).softmax(1)
    return PairBatch(low, high, targets, torch.arange(batch))


class Spy(nn.Module):
    """Remembers what it was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.model(images)


def fit(classifier: Classifier, samples: Any, trainer: L.Trainer, **settings: Any) -> None:
    data = PairsDataModule(samples["pair"], samples["low"], **{"batch_size": 12, **settings})
    trainer.fit(classifier, datamodule=data)


def adam(lr: float = 0.01) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=lr)


class TestConsistency:
    def test_both_views_are_one_crop_of_one_picture(self) -> None:
        views = Consistency().prepare(
            pairs(), transform(), CrossEntropyLoss(), WHOLE, torch.Generator().manual_seed(1)
        )
        low, high = views.images.chunk(2)
        assert not torch.allclose(low[0], low[1])
        # The high view is the low one with every pixel fourfold, so shrinking it gives it back;
        # enlarged crops differ between pixel centres, by less than the pixels do.
        difference = (low - high).abs().mean()
        other = (low - high.roll(1, 0)).abs().mean()
        assert difference < 0.35 * other
        assert torch.equal(views.targets, pairs().targets.repeat(2))

    def test_the_loss_is_that_of_both_views_and_their_divergence(self, patch_net: Any) -> None:
        model, loss = patch_net(), CrossEntropyLoss()
        pairing = Consistency(weight=0.7)
        views = pairing.prepare(
            pairs(soft=True), transform(), loss, WHOLE, torch.Generator().manual_seed(1)
        )
        terms = pairing(model, loss, views)
        low, high = (model(part).double() for part in views.images.chunk(2))
        targets = pairs(soft=True).targets.double()
        labels = [-(targets * z.log_softmax(1)).sum(1).mean() for z in (low, high)]
        p, q = low.softmax(1), high.softmax(1)
        m = (p + q) / 2
        divergence = ((p * (p / m).log() + q * (q / m).log()).sum(1) / 2).mean()
        # float32 against float64: a few roundings of numbers around 1.
        torch.testing.assert_close(terms["labels"].double(), sum(labels) / 2, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            terms["consistency"].double(), 0.7 * divergence, rtol=1e-4, atol=1e-7
        )

    def test_the_high_view_stands_still_where_it_teaches(self, patch_net: Any) -> None:
        class TwoOutputs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.low = nn.Parameter(torch.randn(6, 3))
                self.high = nn.Parameter(torch.randn(6, 3))

            def forward(self, images: Tensor) -> Tensor:
                return torch.cat([self.low, self.high])

        for teaches in (False, True):
            model = TwoOutputs()
            pairing = Consistency(high_teaches=teaches, divergence="kl")
            views = pairing.prepare(pairs(), transform(), CrossEntropyLoss(), WHOLE, None)
            pairing(model, CrossEntropyLoss(), views)["consistency"].backward()
            assert model.low.grad is not None
            assert (model.high.grad is None or not model.high.grad.any()) == teaches

    def test_mixes_go_into_both_views_alike(self) -> None:
        box = torch.tensor([[4, 4, 8, 8]] * 6)
        mix = Mix(torch.arange(6).roll(1), torch.full((6,), 0.75), box)
        whole = transform(scale=(1, 1), ratio=(1, 1), flip=0.0)
        plain = Consistency().prepare(pairs(), whole, None, WHOLE, None).images
        mixed = Consistency().prepare(pairs()._replace(mix=mix), whole, None, WHOLE, None).images
        for view, source in zip(mixed.chunk(2), plain.chunk(2), strict=True):
            expected = source.clone()
            expected[:, :, 4:12, 4:12] = source.roll(1, 0)[:, :, 4:12, 4:12]
            torch.testing.assert_close(view, expected)

    def test_it_trains_end_to_end(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        classifier = Classifier(
            patch_net(),
            CrossEntropyLoss(),
            transform=transform(scale=(0.7, 1)),
            optimizer=adam(0.03),
            pairing=Consistency(),
        )
        trainer = quiet_trainer(max_epochs=15, limit_val_batches=None, num_sanity_val_steps=0)
        fit(classifier, toy_samples, trainer, collate=CutMixCollator(3, p=0.5, size=16))
        scores = trainer.callback_metrics
        assert scores["val_accuracy"] > 0.6  # chance is 1/3
        torch.testing.assert_close(
            scores["train_loss"], scores["train_labels"] + scores["train_consistency"]
        )


class TestDistillation:
    def test_teacher_and_student_see_one_crop_each_at_its_own_size(self, patch_net: Any) -> None:
        teacher = Spy(patch_net())
        own = BatchTransform(32, mean=(0.4,) * 3, std=(0.2,) * 3)
        pairing = Distillation(teacher, transform=own)
        box = torch.tensor([[2, 4, 8, 6]] * 6)
        mix = Mix(torch.arange(6).roll(1), torch.full((6,), 0.8125), box)
        student = transform(16)
        generator = torch.Generator().manual_seed(3)
        views = pairing.prepare(
            pairs()._replace(mix=mix), student, CrossEntropyLoss(), WHOLE, generator
        )
        crops = student.draw(pairs().low, generator=torch.Generator().manual_seed(3))
        low = student(pairs().low, crops=crops, mix=mix)
        high = resize(
            pairs().high,
            32,
            boxes=(crops.boxes * 64).float(),
            flip=crops.flip,
            mean=(0.4,) * 3,
            std=(0.2,) * 3,
            mix=mix._replace(box=box * 2),
        )
        torch.testing.assert_close(views.images, low)
        torch.testing.assert_close(teacher.seen[0], high)

    def test_the_loss_is_the_weighted_sum_of_its_terms(self, patch_net: Any) -> None:
        student, teacher = patch_net(width=8, seed=1), patch_net(width=12, seed=2)
        projection = nn.Linear(8, 12)
        pairing = Distillation(
            teacher, labels=0.5, predictions=2.0, features=3.0, temperature=4.0,
            projection=projection,
        )  # fmt: skip
        views = pairing.prepare(pairs(soft=True), transform(), CrossEntropyLoss(), WHOLE, None)
        terms = pairing(student, CrossEntropyLoss(), views)
        z = student(views.images).double()
        t = views.teacher_logits.double()
        q, p = (t / 4).softmax(1), (z / 4).softmax(1)
        expected = {
            "labels": -0.5 * (pairs(soft=True).targets.double() * z.log_softmax(1)).sum(1).mean(),
            "predictions": 2.0 * 16 * (q * (q / p).log()).sum(1).mean(),
            "features": 3.0
            * (
                1
                - nn.functional.cosine_similarity(
                    projection(student.embed(views.images)).double(),
                    views.teacher_features.double(),
                )
            ).mean(),
        }
        assert terms.keys() == expected.keys()
        for name, term in terms.items():
            torch.testing.assert_close(term.double(), expected[name], rtol=1e-5, atol=1e-6)
        sum(terms.values()).backward()
        assert all(parameter.grad is not None for parameter in student.parameters())
        assert projection.weight.grad is not None
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_terms_that_weigh_nothing_are_left_out(self, patch_net: Any) -> None:
        pairing = Distillation(patch_net(), labels=0.0)
        views = pairing.prepare(pairs(), transform(), CrossEntropyLoss(), WHOLE, None)
        assert views.teacher_features is None
        assert list(pairing(patch_net(), CrossEntropyLoss(), views)) == ["predictions"]

    def test_a_teacher_of_cosines_is_read_by_its_own_loss(self, patch_net: Any) -> None:
        class Cosines(nn.Module):
            outputs = "cosines"

            def forward(self, images: Tensor) -> Tensor:
                return torch.full((len(images), 3), 0.5)

        pairing = Distillation(Cosines(), teacher_loss=ArcFaceLoss(scale=20.0))
        pairing.check(patch_net(), CrossEntropyLoss())
        views = pairing.prepare(pairs(), transform(), CrossEntropyLoss(), WHOLE, None)
        assert torch.equal(views.teacher_logits, torch.full((6, 3), 10.0))
        with pytest.raises(ValueError, match="CrossEntropyLoss reads logits, Cosines gives cos"):
            Classifier(patch_net(), CrossEntropyLoss(), transform=transform(), optimizer=adam(),
                       pairing=Distillation(Cosines()))  # fmt: skip

    def test_the_teacher_only_predicts(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        teacher = Spy(patch_net(norm=True, seed=5))
        before = copy.deepcopy(teacher.state_dict())
        classifier = Classifier(
            patch_net(norm=True), CrossEntropyLoss(), transform=transform(), optimizer=adam(),
            pairing=Distillation(teacher),
        )  # fmt: skip
        classifier.train()
        fit(classifier, toy_samples, quiet_trainer(max_epochs=2))
        assert teacher.modes == [(False, False)] * 6  # 36 rows by 12, twice; never with gradients
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert not any("teacher." in name for name in classifier.state_dict())
        ours = {id(parameter) for parameter in classifier.parameters()}
        assert not ours & {id(parameter) for parameter in teacher.parameters()}

    def test_the_teacher_follows_to_another_dtype_and_device(self, patch_net: Any) -> None:
        pairing = Distillation(patch_net())
        pairing.double()
        assert next(pairing.teacher.parameters()).dtype == torch.float64
        pairing.to("meta")
        assert next(pairing.teacher.parameters()).device.type == "meta"

    def test_under_sam_the_teacher_is_asked_once_and_both_passes_see_one_batch(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        teacher, student = Spy(patch_net(seed=5)), Spy(patch_net(norm=True))
        classifier = Classifier(
            student, CrossEntropyLoss(), transform=transform(),
            optimizer=partial(SAM, base_optimizer=torch.optim.SGD, lr=0.1),
            pairing=Distillation(teacher),
        )  # fmt: skip
        fit(classifier, toy_samples, quiet_trainer(), collate=CutMixCollator(3, p=1.0, size=16))
        assert len(teacher.seen) == 3
        assert len(student.seen) == 6
        for first, second in zip(student.seen[::2], student.seen[1::2], strict=True):
            assert torch.equal(first, second)
        assert int(student.model.body[3].num_batches_tracked) == 3

    def test_a_sam_step_is_that_of_a_plain_loop(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        """The same step by hand: no Lightning, no pairing, one closure."""
        teacher, student = patch_net(seed=5), patch_net(seed=6)
        by_hand = copy.deepcopy(student)
        plain = transform(scale=(1, 1), ratio=(1, 1), flip=0.0)
        classifier = Classifier(
            student, CrossEntropyLoss(), transform=plain, schedule="constant",
            optimizer=partial(SAM, base_optimizer=torch.optim.SGD, lr=0.5, rho=0.1),
            pairing=Distillation(teacher, temperature=3.0),
        )  # fmt: skip
        fit(classifier, toy_samples, quiet_trainer(), batch_size=36)

        batch = collate(toy_samples["pair"])
        low, high = plain.eval()(batch.low), plain(batch.high)
        optimizer = SAM(by_hand.parameters(), torch.optim.SGD, lr=0.5, rho=0.1)

        def closure() -> Tensor:
            optimizer.zero_grad()
            z, t = by_hand(low), teacher(high).detach()
            softened = (z / 3).log_softmax(1), (t / 3).log_softmax(1)
            distilled = 9 * nn.functional.kl_div(*softened, log_target=True, reduction="batchmean")
            loss = nn.functional.cross_entropy(z, batch.targets) + distilled
            loss.backward()
            return loss

        optimizer.step(closure)
        for ours, theirs in zip(student.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_a_student_learns_from_its_teacher_without_labels(
        self, patch_net: Any, toy_samples: Any, quiet_trainer: Any
    ) -> None:
        teacher = patch_net(seed=5)
        nn.init.normal_(teacher.head.weight, std=3.0)
        student = patch_net(seed=6)
        plain = transform(scale=(1, 1), ratio=(1, 1), flip=0.0)
        classifier = Classifier(
            student, CrossEntropyLoss(), transform=plain, optimizer=adam(0.02),
            pairing=Distillation(teacher, labels=0.0, features=1.0),
        )  # fmt: skip
        fit(classifier, toy_samples, quiet_trainer(max_epochs=40))
        batch = collate(toy_samples["pair"])
        low, high = plain.eval()(batch.low), plain(batch.high)
        agree = student(low).argmax(1) == teacher(high).argmax(1)
        assert agree.float().mean() > 0.8

    def test_a_run_is_not_resumed_with_another_teacher(self, patch_net: Any) -> None:
        def classifier(seed: int) -> Classifier:
            pairing = Distillation(patch_net(seed=seed))
            return Classifier(patch_net(), CrossEntropyLoss(), transform=transform(),
                              optimizer=adam(), pairing=pairing)  # fmt: skip

        state = classifier(1).state_dict()
        classifier(1).load_state_dict(state)
        with pytest.raises(ValueError, match="trained by another teacher"):
            classifier(2).load_state_dict(state)


def test_rows_and_ranks_draw_the_same_views(patch_net: Any) -> None:
    """The share of a batch is the share of its views, whatever is mixed with what."""
    loss, generator = CrossEntropyLoss(), partial(torch.Generator().manual_seed, 7)
    box = torch.tensor([[2, 4, 8, 6]] * 6)
    batch = pairs(soft=True)._replace(
        mix=Mix(torch.arange(6).roll(1), torch.full((6,), 0.8125), box)
    )
    teacher = patch_net(seed=3).eval()
    whole = Distillation(teacher).prepare(batch, transform(), loss, WHOLE, generator())
    share = Distillation(teacher).prepare(batch, transform(), loss, slice(1, 6, 2), generator())
    torch.testing.assert_close(share.images, whole.images[1::2])
    torch.testing.assert_close(share.targets, whole.targets[1::2])
    torch.testing.assert_close(share.teacher_logits, whole.teacher_logits[1::2])


def test_refusals(patch_net: Any, toy_samples: Any, quiet_trainer: Any) -> None:
    loss = CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"`weight` must be >= 0\.0, got -1"):
        Consistency(weight=-1)
    with pytest.raises(ValueError, match="`predictions` or `features` must be > 0"):
        Distillation(patch_net(), predictions=0.0)
    with pytest.raises(ValueError, match=r"needs `teacher` to have embed and classify.*Linear"):
        Distillation(nn.Linear(2, 2), features=1.0)
    pairing = Distillation(patch_net(), features=1.0)
    with pytest.raises(ValueError, match="needs `model` to have embed and classify"):
        Classifier(nn.Flatten(), loss, optimizer=adam(), pairing=pairing)
    with pytest.raises(
        ValueError, match=r"`loss` to have logits, like the losses of lowres_vision"
    ):
        Classifier(
            patch_net(), nn.CrossEntropyLoss(), transform=transform(), optimizer=adam(),
            pairing=Consistency(),
        )  # fmt: skip
    model = patch_net()
    with pytest.raises(ValueError, match=r"share weights; give copy\.deepcopy\(teacher\)"):
        Classifier(model, loss, optimizer=adam(), pairing=Distillation(model))
    with pytest.raises(ValueError, match=r"as BatchTransform does.*Identity does not"):
        Classifier(patch_net(), loss, transform=nn.Identity(), optimizer=adam(),
                   pairing=Consistency())  # fmt: skip
    with pytest.raises(ValueError, match=r"in one size, got .*; give the classifier a `transform`"):
        Consistency().prepare(pairs(), None, loss, WHOLE, None)
    views = Distillation(patch_net(4), features=1.0).prepare(
        pairs(), transform(), loss, WHOLE, None
    )
    with pytest.raises(ValueError, match=r"width 16, the teacher's 4; give .*nn\.Linear\(16, 4\)"):
        Distillation(patch_net(4), features=1.0)(patch_net(), loss, views)
    classifier = Classifier(patch_net(), loss, transform=transform(), optimizer=adam())
    with pytest.raises(TypeError, match="got a PairBatch with pairing=None"):
        fit(classifier, toy_samples, quiet_trainer())
