"""The losses between two predictions, against loops over single numbers in float64."""

import math

import pytest
import torch
from torch import Tensor

from lowres_vision.losses import (
    ArcFaceLoss,
    CosineLoss,
    CrossEntropyLoss,
    FocalLoss,
    consistency_loss,
    distillation_loss,
    feature_loss,
)


def rows(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    powers = [math.exp(value - top) for value in z]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def distilled(z: list[float], t: list[float], temperature: float) -> float:
    p, q = (softmax([value / temperature for value in row]) for row in (z, t))
    return temperature**2 * kl(q, p)


def jensen_shannon(z: list[float], other: list[float]) -> float:
    p, q = softmax(z), softmax(other)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def two_way(z: list[float], other: list[float]) -> float:
    p, q = softmax(z), softmax(other)
    return (kl(p, q) + kl(q, p)) / 2


def cosine(f: list[float], g: list[float]) -> float:
    return 1 - sum(a * b for a, b in zip(f, g, strict=True)) / math.hypot(*f) / math.hypot(*g)


def squares(f: list[float], g: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(f, g, strict=True)) / len(f)


CASES = {
    "distillation 1": (
        lambda a, b, r: distillation_loss(a, b, temperature=1, reduction=r),
        lambda a, b: distilled(a, b, 1),
    ),
    "distillation 4": (
        lambda a, b, r: distillation_loss(a, b, temperature=4, reduction=r),
        lambda a, b: distilled(a, b, 4),
    ),
    "jensen_shannon": (lambda a, b, r: consistency_loss(a, b, reduction=r), jensen_shannon),
    "kl": (lambda a, b, r: consistency_loss(a, b, divergence="kl", reduction=r), two_way),
    "cosine": (lambda a, b, r: feature_loss(a, b, reduction=r), cosine),
    "mse": (lambda a, b, r: feature_loss(a, b, distance="mse", reduction=r), squares),
}
LOSSES = pytest.mark.parametrize(("loss", "reference"), CASES.values(), ids=CASES)


@LOSSES
def test_values_are_those_of_the_formula(loss, reference) -> None:
    a, b = rows(0, 5, 7), rows(1, 5, 7)
    expected = torch.tensor(
        [reference(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(loss(a, b, "none"), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss(a, b, "sum"), expected.sum(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss(a, b, "mean"), expected.mean(), rtol=1e-12, atol=1e-14)


@LOSSES
def test_gradients_of_both_are_slopes_of_the_formula(loss, reference) -> None:
    a, b = rows(2, 3, 4).requires_grad_(), rows(3, 3, 4).requires_grad_()
    gradients = torch.autograd.grad(loss(a, b, "sum"), (a, b))
    step = 1e-5  # central differences: error of order step^2 and eps / step, both 1e-10
    for which, gradient in enumerate(gradients):
        for i in range(3):
            for j in range(4):
                ends = []
                for sign in (1, -1):
                    pair = [a[i].tolist(), b[i].tolist()]
                    pair[which][j] += sign * step
                    ends.append(reference(*pair))
                assert gradient[i, j].item() == pytest.approx(
                    (ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8
                )


@LOSSES
def test_equal_views_cost_nothing_and_pull_nowhere(loss, reference) -> None:
    a = rows(4, 5, 7).requires_grad_()
    value = loss(a, a.detach().clone(), "sum")
    (gradient,) = torch.autograd.grad(value, a)
    assert value.abs() < 1e-13
    assert gradient.abs().max() < 1e-13


@LOSSES
def test_batches_without_rows_cost_nothing(loss, reference) -> None:
    a = torch.zeros(0, 7, requires_grad=True)
    for reduction in ("mean", "sum"):
        value = loss(a, torch.zeros(0, 7), reduction)
        (gradient,) = torch.autograd.grad(value, a)
        assert value.item() == 0
        assert gradient.shape == (0, 7)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_types_are_computed_in_float32(loss, reference, dtype: torch.dtype) -> None:
    a, b = rows(5, 4, 6).to(dtype), rows(6, 4, 6).to(dtype)
    got = loss(a, b, "none")
    assert got.dtype == torch.float32
    # 6 classes, about 20 roundings each, on values of up to 16 T^2 / T.
    torch.testing.assert_close(got.double(), loss(a.double(), b.double(), "none"), rtol=2e-6,
                               atol=2e-6)  # fmt: skip


@LOSSES
def test_extreme_logits_stay_finite(loss, reference) -> None:
    a = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    value = loss(a, torch.tensor([[-1e4, 1e4, 0.0]]), "mean")
    (gradient,) = torch.autograd.grad(value, a)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_distillation_at_high_temperature_matches_logits() -> None:
    """As T grows, the loss becomes half the squared distance of centred logits, over K."""
    z, t = rows(7, 4, 5, scale=1), rows(8, 4, 5, scale=1)
    centred = (z - z.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    expected = centred.square().sum(1) / 2 / 5
    got = distillation_loss(z, t, temperature=1e3, reduction="none")
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0)  # the next term is of order 1 / T


def test_jensen_shannon_is_at_most_log_two() -> None:
    far = consistency_loss(torch.tensor([[0.0, 500.0]]), torch.tensor([[500.0, 0.0]]))
    assert far.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    "loss",
    [CrossEntropyLoss(), FocalLoss(), ArcFaceLoss(scale=30.0), CosineLoss(temperature=7.0)],
)
def test_logits_are_what_probabilities_come_from(loss) -> None:
    outputs = torch.rand(4, 5) * 2 - 1
    torch.testing.assert_close(loss.logits(outputs).softmax(1), loss.probabilities(outputs))
    expected = {
        "ArcFaceLoss": 30 * outputs,
        "CosineLoss": 7 * outputs / outputs.norm(dim=1)[:, None],
    }
    torch.testing.assert_close(loss.logits(outputs), expected.get(type(loss).__name__, outputs))


def test_refusals() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"`temperature` must be > 0\.0, got 0"):
        distillation_loss(a, a, temperature=0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(2, 4\)"):
        distillation_loss(a, b)
    with pytest.raises(ValueError, match="`divergence` must be one of 'jensen_shannon', 'kl'"):
        consistency_loss(a, a, divergence="js")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`other` must be two-dimensional"):
        consistency_loss(a[0], a[0])
    with pytest.raises(ValueError, match="`distance` must be one of 'cosine', 'mse'"):
        feature_loss(a, a, distance="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`reduction` must be one of"):
        feature_loss(a, a, reduction="batchmean")  # type: ignore[arg-type]
