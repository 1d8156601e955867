import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision import ensemble
from lowres_vision.ensemble import OutOfFold, View, geometric_mean_vote, make_views, soft_vote


class Model(nn.Module):
    """A resizer that doubles the brightness, and a classifier of any image size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.resizer: nn.Module | None = Double()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        if self.resizer is not None:
            images = self.resizer(images)
        x = self.features(images)
        ramp = torch.linspace(0, 1, x.shape[-1])  # so that left and right differ
        return self.head((x.relu() * ramp).mean(dim=(2, 3)))


class Double(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


def softmax(logits: Tensor) -> Tensor:
    return 9 * logits.softmax(1) / 9


def images(rows: int = 5, size: tuple[int, int] = (20, 16)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (rows, 3, *size), generator=generator).to(torch.uint8)


def augment(views: tuple[View, ...], **options: object) -> ensemble.TestTimeAugmentation:
    defaults = {"probabilities": softmax, "size": (20, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    return ensemble.TestTimeAugmentation(Model(), views=views, **{**defaults, **options})  # type: ignore[arg-type]


def test_each_view_is_what_plain_torch_makes_of_it() -> None:
    """Same size: slicing and flipping alone; other sizes: torch's own antialiased resize."""
    views = (
        View(),
        View("flip", flip=True),
        View("corner", box=(0.5, 0.25, 0.5, 0.75)),
        View("small", size=(10, 8)),
        View("large flip", flip=True, size=(40, 32)),
        View("bare", bypass="resizer"),
    )
    augmented = augment(views)
    batch = images()
    got = augmented.each(batch)
    x = (batch / 255 - 0.5) / 0.2

    def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)

    expected = [
        x,
        x.flip(3),
        resized(x[:, :, 10:, 4:], (20, 16)),
        resized(x, (10, 8)),
        resized(x.flip(3), (40, 32)),
        x / 2,
    ]
    for answer, shown in zip(got, expected, strict=True):
        torch.testing.assert_close(answer, softmax(augmented.model(shown)), rtol=1e-4, atol=1e-5)
    assert len(set(got[:, 0, 0].tolist())) == 6


@pytest.mark.parametrize("average", ["probability", "log"])
def test_the_mean_is_the_vote_over_the_views(average: str) -> None:
    augmented = augment(make_views(crop=0.5), average=average, weights=range(12))
    vote = soft_vote if average == "probability" else geometric_mean_vote
    expected = vote(augmented.each(images()).detach().numpy(), weights=range(12))
    torch.testing.assert_close(
        augmented(images()).double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6
    )


def test_the_plain_view_alone_is_the_model() -> None:
    augmented = augment((View(),))
    expected = softmax(augmented.model((images() / 255 - 0.5) / 0.2))
    torch.testing.assert_close(augmented(images()), expected, rtol=1e-5, atol=1e-6)


def test_images_of_different_sizes_are_cropped_by_their_own() -> None:
    augmented = augment(make_views(crop=0.75, sizes=[12]))
    small, large = images(1)[0], images(1, size=(31, 45))[0]
    both = augmented([small, large])
    torch.testing.assert_close(both[:1], augmented(small[None]))
    torch.testing.assert_close(both[1:], augmented(large[None]))


def test_crops_stay_inside_images_of_any_size() -> None:
    """Shares of odd sizes round up here and there; the resize refuses boxes that reach out."""
    for side in range(3, 120, 7):
        augmented = augment(make_views(crop=0.7, flip=False), size=8)
        assert augmented(images(1, size=(side, 2 * side + 1))).isfinite().all()


def test_usual_views_have_different_names_and_the_plain_one_leads() -> None:
    views = make_views(crop=0.8, sizes=[12, (12, 24)], without_resizer=(20, 16))
    names = [view.name for view in views]
    assert names[0] == "plain"
    assert names[-4:] == ["12 x 24 px", "12 x 24 px flip", "no resizer", "no resizer flip"]
    assert len(set(names)) == len(names) == 2 * (1 + 5 + 2 + 1)
    assert make_views(flip=False) == (View(),)
    right = next(view for view in views if view.name == "bottom right")
    assert right.box == pytest.approx((0.2, 0.2, 0.8, 0.8))
    assert augment(views)(images()).shape == (5, 4)


def test_bypassing_shares_the_weights_and_leaves_the_model_as_it_was() -> None:
    augmented = augment((View(), View("bare", bypass="resizer")))
    before = augmented.each(images())
    assert isinstance(augmented.model.resizer, Double)
    with torch.no_grad():
        augmented.model.head.weight.mul_(2)
    after = augmented.each(images())
    assert not torch.allclose(before[1], after[1])
    assert set(augmented.state_dict()) == {f"model.{name}" for name in Model().state_dict()}
    augmented.double()
    assert augmented.each(images().double() / 255).dtype == torch.float64


def test_keeping_views_keeps_their_weights_and_the_model() -> None:
    augmented = augment(make_views(crop=0.5), weights=range(12), average="log")
    fewer = augmented.keep(["top left", "plain flip"])
    assert fewer.names == ("top left", "plain flip")
    assert fewer.weights == [4.0, 1.0]
    assert fewer.model is augmented.model
    places = [augmented.names.index(name) for name in fewer.names]
    torch.testing.assert_close(fewer.each(images()), augmented.each(images())[places])
    assert fewer.average == "log"


def test_costs_are_told_for_each_view() -> None:
    augmented = augment((View(), View("large", size=(400, 320)))).eval()
    seconds = augmented.seconds_per_image(images(8), repeats=3)
    assert list(seconds) == ["plain", "large"]
    assert 0 < 5 * seconds["plain"] < seconds["large"]  # 400 times the pixels


def test_it_exports_with_crops_flips_and_sizes() -> None:
    augmented = augment((View(), View("a", (0.1, 0.1, 0.8, 0.8), True, 24))).eval()
    program = torch.export.export(augmented, (images(),))
    torch.testing.assert_close(
        program.module()(images()), augmented(images()), rtol=1e-4, atol=1e-5
    )


def test_views_go_into_a_ledger_by_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    augmented = augment(make_views()).eval()
    ledger = OutOfFold.create(
        tmp_path, ids=list("abcde"), labels=[0, 1, 2, 3, 0], classes=list("wxyz"),
        fold_of=[0] * 5, data_hash="d",
    )  # fmt: skip
    answers = augmented.each(images()).detach()
    for name, rows in zip(augmented.names, answers, strict=True):
        ledger.add(
            rows.numpy(), ids=list("abcde"), model="m", fold=0, view=name, classes=list("wxyz"),
            data_hash="d", fold_hash=ledger.fold_hash, checkpoint_hash="c",
        )  # fmt: skip
    stored = ledger.probabilities([("m", 0, name) for name in augmented.names])  # type: ignore[misc]
    torch.testing.assert_close(torch.from_numpy(stored), answers)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: View(box=(0.5, 0, 0.6, 1)), "`box` must be top, left, height, width"),
        (lambda: View(box=(0, 0, 0, 1)), "not empty"),
        (lambda: View(size=(0, 3)), "both > 0"),
        (lambda: make_views(crop=0.0), "`crop` must be > 0"),
        (lambda: augment(()), "at least one View"),
        (lambda: augment((View(), View(flip=True))), "`views` must have different names"),
        (lambda: augment((View(),), average="mean"), "`average` must be one of"),
        (lambda: augment((View(),), mode="nearest"), "`mode` must be one of"),
        (lambda: augment((View(),), weights=[1, 2]), "`weights` must be 1 non-negative"),
        (lambda: augment((View(),)).keep(["flip"]), r"got \['flip'\]"),
        (lambda: augment((View("x", bypass="neck"),))(images()), "`bypass` names 'neck'"),
    ],
)
def test_what_does_not_fit_is_refused(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        make()
