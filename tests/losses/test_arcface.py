import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ArcFaceLoss as PeerArcFaceLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowres_vision.heads import CosineClassifier
from lowres_vision.losses import ArcFaceLoss, adaptive_margins, arcface_loss, cross_entropy

B, K, D = 16, 7, 9


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    cosines = 2 * torch.rand(B, K, generator=generator, dtype=torch.float64) - 1
    return cosines.to(dtype).requires_grad_(), torch.randint(K, (B,), generator=generator)


def soft_targets(rows: int = B, classes: int = K) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("scale", [10.0, 64.0])
def test_is_pytorch_metric_learnings_with_its_margin_in_degrees(
    margin: float, scale: float
) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(K, (B,))
    head = CosineClassifier(D, K).double()
    with torch.no_grad():
        embeddings[0] = -head.weight[targets[0]]  # beyond pi - margin
        embeddings[0, 0] += 1e-3
    peer = PeerArcFaceLoss(K, D, margin=math.degrees(margin), scale=scale).double()
    peer.W.data = head.weight.detach().t().clone()

    ours = arcface_loss(head(embeddings), targets, scale=scale, margin=margin)
    theirs = peer(embeddings, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    mine = torch.autograd.grad(ours, [embeddings, head.weight])
    expected = torch.autograd.grad(theirs, [embeddings, peer.W])
    torch.testing.assert_close(mine[0], expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine[1], expected[1].t(), rtol=1e-9, atol=1e-12)


def test_margin_0_is_the_softmax_of_scaled_cosines() -> None:
    cosines, targets = draw()
    for target in (targets, soft_targets()):
        for margin in (0.0, torch.zeros(K)):
            for easy in (False, True):
                torch.testing.assert_close(
                    arcface_loss(cosines, target, scale=12.0, margin=margin, easy_margin=easy),
                    cross_entropy(12 * cosines, target),
                    rtol=1e-12,
                    atol=0,
                )


def test_a_tensor_of_one_margin_is_that_margin() -> None:
    cosines, targets = draw()
    for target in (targets, soft_targets()):
        torch.testing.assert_close(
            arcface_loss(cosines, target, margin=torch.full((K,), 0.4, dtype=torch.float64)),
            arcface_loss(cosines, target, margin=0.4),
            rtol=1e-12,
            atol=0,
        )


def test_the_loss_falls_as_the_angle_shrinks() -> None:
    angles = torch.linspace(math.pi, 0, 2001, dtype=torch.float64)
    cosines = torch.stack([angles.cos(), torch.zeros(2001, dtype=torch.float64)], 1)
    for targets in (torch.zeros(2001, dtype=torch.int64), torch.eye(2)[[0] * 2001]):
        losses = arcface_loss(cosines, targets, reduction="none")
        assert (losses.diff() <= 0).all()


def test_the_gradient_keeps_the_factor_that_straight_through_drops() -> None:
    cosines, targets = draw()
    loss = arcface_loss(cosines, targets, margin=0.5, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, cosines)
    index = targets[:, None]
    theta = cosines.detach().gather(1, index).acos()
    logits = 30 * cosines.detach().scatter(1, index, (theta + 0.5).cos())
    straight_through = 30 * (logits.softmax(1).gather(1, index) - 1)
    factor = torch.where(theta < math.pi - 0.5, (theta + 0.5).sin() / theta.sin(), 1.0)
    inside = (theta < math.pi - 0.5) & (straight_through.abs() > 1e-3)
    assert inside.sum() > B / 2
    torch.testing.assert_close(
        gradient.gather(1, index)[inside], (straight_through * factor)[inside]
    )
    assert ((factor[inside] - 1).abs() > 0.04).sum() > B / 2


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_cosines_of_one_have_the_exact_value_and_a_finite_gradient(
    kind: str, easy_margin: bool
) -> None:
    """acos has an infinite slope there, and float32 self-cosines exceed 1 one time in five."""
    cosines = torch.tensor([[1.0, 0.2], [-1.0, 0.2], [1.0000004, 0.2], [-1.0000004, 0.2]])
    cosines.requires_grad_()
    targets = torch.zeros(4, dtype=torch.int64)
    target = targets if kind == "indices" else torch.eye(2)[targets]
    losses = arcface_loss(cosines, target, margin=0.5, easy_margin=easy_margin, reduction="none")
    high = math.cos(0.5)
    low = -1.0 if easy_margin else -1 - 0.5 * math.sin(0.5)
    expected = [math.log1p(math.exp(30 * (0.2 - phi))) for phi in (high, low, high, low)]
    # 30 * 4e-7 where the cosine itself is beyond 1, and one rounding of 1 + exp(-20).
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=3e-5, atol=1.2e-7)
    (gradient,) = torch.autograd.grad(losses.sum(), cosines)
    assert gradient.isfinite().all()
    # At 0 and 180 degrees the slope of the sine is left out: cos(m) or 1 remain, times p - 1.
    slope = torch.tensor([math.cos(0.5), 1.0] * 2)
    share = -torch.expm1(-torch.tensor(expected))
    torch.testing.assert_close(gradient[:, 0], -30 * slope * share, rtol=3e-5, atol=4e-6)


def test_the_second_derivative_is_finite_at_cosines_of_one() -> None:
    cosines = torch.tensor([[1.0, -1.0, 0.3]], requires_grad=True)
    for target in (torch.tensor([0]), torch.tensor([1]), torch.full((1, 3), 1 / 3)):
        loss = arcface_loss(cosines, target)
        (first,) = torch.autograd.grad(loss, cosines, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), cosines)
        assert second.isfinite().all()


def rows_with_one_dominating_class() -> Tensor:
    """Class 0 ahead of the rest by 0.3 to 2 in cosine: 20 to 128 in logits at scale 64."""
    ahead = torch.linspace(0.3, 2, 18, dtype=torch.float64)
    top = torch.minimum(torch.ones_like(ahead), ahead / 2)
    rest = (top - ahead)[:, None] - torch.tensor([0.0, 0.01, 0.3], dtype=torch.float64)
    return torch.cat([top[:, None], rest.clamp(min=-1)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dominating_class_costs_the_soft_path_no_digits(dtype: torch.dtype) -> None:
    """Taking exp(s c_0) off the sum of all would leave nothing, and a loss of 0 instead of 12."""
    cosines = rows_with_one_dominating_class()
    rows, classes = cosines.shape
    soft = soft_targets(rows, classes)
    ours = cosines.to(dtype).requires_grad_()
    loss = arcface_loss(ours, soft.to(dtype), scale=64.0, reduction="none")
    exact = cosines.to(dtype).double().requires_grad_()
    passes = [
        F.cross_entropy(
            64 * exact.scatter(1, index, with_margin(exact.gather(1, index))),
            index[:, 0],
            reduction="none",
        )
        for index in torch.arange(classes)[:, None, None].expand(-1, rows, 1)
    ]
    reference = (soft.to(dtype).double() * torch.stack(passes, 1)).sum(1)
    eps = torch.finfo(dtype).eps
    # Logits of up to 64 carry 64 eps; each loss is made of a handful of them.
    torch.testing.assert_close(loss.double(), reference, rtol=8 * eps, atol=4 * 64 * eps)
    assert float(reference.detach().min()) > 3
    (gradient,) = torch.autograd.grad(loss.sum(), ours)
    (expected,) = torch.autograd.grad(reference.sum(), exact)
    inner = cosines.abs() < 0.999  # next to +-1 the slope of the margin itself is 1 / sqrt(eps)
    torch.testing.assert_close(
        gradient.double()[inner], expected[inner], rtol=1000 * eps, atol=64 * 64 * eps
    )


def with_margin(cosine: Tensor, margin: float = 0.5) -> Tensor:
    theta = cosine.acos()
    return torch.where(
        theta < math.pi - margin, (theta + margin).cos(), cosine - margin * math.sin(margin)
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return result


@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_no_tensor_is_larger_than_the_cosines(kind: str) -> None:
    cosines, targets = draw()
    with LargestTensor() as largest:
        arcface_loss(cosines, targets if kind == "indices" else soft_targets()).backward()
    assert largest.numel == B * K


def test_probabilities_know_no_margin() -> None:
    cosines, _ = draw()
    loss = ArcFaceLoss(scale=20.0, margin=0.5)
    torch.testing.assert_close(loss.probabilities(cosines), (20 * cosines).softmax(1))


def test_margins_are_a_buffer() -> None:
    margins = adaptive_margins([100, 10, 1])
    loss = ArcFaceLoss(margin=margins)
    assert torch.equal(loss.state_dict()["margin"], margins)
    assert loss.double().margin.dtype == torch.float64
    assert repr(loss).startswith("ArcFaceLoss(scale=30.0, margin=(3,), easy_margin=False, ")
    assert ArcFaceLoss(margin=0.3).margin == 0.3


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (28.6, r"`margin` must be in \[0, pi\] radians, got 28.6"),
        (-0.1, "radians, got -0.1"),
        (float("nan"), "radians, got nan"),
        (torch.tensor([0.1, 0.5, 28.6]), "radians, got 28.6"),
        (torch.tensor([[0.1, 0.5]]), r"`margin` must be a float or \(K,\)"),
        (torch.tensor([1, 2]), "of a floating dtype"),
    ],
)
def test_refuses_a_margin_that_is_no_angle(margin: float | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArcFaceLoss(margin=margin)


def test_refuses_margins_that_are_no_tensor() -> None:
    for build in (
        lambda: ArcFaceLoss(margin=[0.1, 0.2]),  # type: ignore[arg-type]
        lambda: arcface_loss(torch.zeros(1, 2), torch.tensor([0]), margin=[0.1, 0.2]),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"`margin` must be a float or a Tensor .*, got list"):
            build()


def test_refuses_margins_for_other_classes_and_a_scale_of_0() -> None:
    cosines, targets = draw()
    with pytest.raises(ValueError, match=r"`margin` must be a float or \(K,\) = \(7,\)"):
        arcface_loss(cosines, targets, margin=torch.zeros(K + 1))
    with pytest.raises(ValueError, match="radians"):
        arcface_loss(cosines, targets, margin=28.6)
    with pytest.raises(ValueError, match="`scale` must be > 0, got 0"):
        arcface_loss(cosines, targets, scale=0)
    with pytest.raises(ValueError, match="`scale` must be > 0"):
        ArcFaceLoss(scale=-1.0)


def test_adaptive_margins_follow_the_fourth_root() -> None:
    counts = [431, 671, 500, 10, 3]
    u = [n**-0.25 for n in counts]
    expected = [0.05 + 0.45 * (x - min(u)) / (max(u) - min(u)) for x in u]
    margins = adaptive_margins(counts)
    torch.testing.assert_close(margins, torch.tensor(expected))
    assert float(margins[1]) == pytest.approx(0.05)
    assert float(margins[4]) == pytest.approx(0.5)
    assert torch.equal(adaptive_margins(torch.tensor(counts)), margins)
    bounds = adaptive_margins(counts, low=0.1, high=0.3)
    assert [float(bounds.min()), float(bounds.max())] == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("counts", [[5, 5, 5], [1], torch.full((4,), 1000)])
def test_adaptive_margins_of_equal_counts_are_the_midpoint(counts: list[int] | Tensor) -> None:
    torch.testing.assert_close(adaptive_margins(counts), torch.full((len(counts),), 0.275))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 0, 5, 0],), r"`counts` must be >= 1 .* classes \[1, 3\]"),
        (([3.0, math.nan],), r"`counts` must be >= 1 .* classes \[1\]"),
        (([],), r"`counts` must be \(K,\) with K > 0"),
        ((torch.ones(2, 2),), r"got \(2, 2\)"),
    ],
)
def test_adaptive_margins_refuse_a_class_without_images(
    arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_margins(*arguments)  # type: ignore[arg-type]


def test_adaptive_margins_refuse_bounds_out_of_order() -> None:
    with pytest.raises(ValueError, match=r"`high` must be >= 0\.5"):
        adaptive_margins([1, 2], low=0.5, high=0.1)
