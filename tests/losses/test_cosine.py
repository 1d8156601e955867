import math

import pytest
import torch
import torch.nn.functional as F

from lowres_vision.heads import CosineHead
from lowres_vision.losses import CosineLoss, cosine_loss, cross_entropy

B, K = 12, 6


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(K, (B,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_is_torchs_cosine_embedding_loss_plus_the_one_output_cross_entropy(
    reduction: str, share: float
) -> None:
    logits, targets = draw()
    one_hot = F.one_hot(targets, K).double()
    theirs = F.cosine_embedding_loss(logits, one_hot, torch.ones(B), reduction=reduction)
    theirs = theirs + share * F.cross_entropy(F.normalize(logits), targets, reduction=reduction)
    ours = cosine_loss(logits, targets, cross_entropy=share, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)  # torch adds 1e-12 to |z|^2
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_only_the_direction_counts_down_to_the_floor() -> None:
    logits, targets = draw()
    plain = cosine_loss(logits, targets)
    for factor in (1e-5, 1e5):
        torch.testing.assert_close(cosine_loss(factor * logits, targets), plain)


def test_the_range_is_0_to_2() -> None:
    logits = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    losses = cosine_loss(logits, torch.tensor([0, 0, 0]), reduction="none")
    assert losses.tolist() == [0.0, 2.0, 1.0]


def test_a_mixed_target_is_not_normalised() -> None:
    """The best output for t is t / |t|, and its loss is 1 - |t|: the price of staying linear."""
    t = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    assert float(cosine_loss(7 * t, t)) == pytest.approx(1 - math.sqrt(0.6**2 + 0.4**2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_zero_vector_has_loss_1_and_a_gradient_of_size_1(dtype: torch.dtype) -> None:
    """F.normalize has 1e12 there, and cosine_embedding_loss 1e6: neither fits into float16."""
    logits = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    loss = cosine_loss(logits, torch.tensor([2, 0]), reduction="sum")
    assert loss.item() == 2
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [[0, 0, -1], [-1, 0, 0]]


@pytest.mark.parametrize(("classes", "floor"), [(5, 0.836), (25, 2.267), (100, 3.617)])
def test_the_one_output_cross_entropy_has_a_floor(classes: int, floor: float) -> None:
    """The best unit vector for a class is a > 0 there and -b elsewhere; its loss is not near 0."""
    a = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    b = ((1 - a**2) / (classes - 1)).sqrt()
    best = torch.log1p((classes - 1) * torch.exp(-b - a)).min()
    assert float(best) == pytest.approx(floor, abs=5e-4)
    logits = torch.full((1, classes), -float(b[best.argmin()]))
    logits[0, 0] = 1e3
    both = cosine_loss(logits, torch.tensor([0]), cross_entropy=1.0)
    assert float(both - cosine_loss(logits, torch.tensor([0]))) >= floor - 5e-4


def test_the_papers_form_reads_a_second_head_and_trains_it() -> None:
    torch.manual_seed(0)
    targets = torch.arange(B) % K
    model, head = torch.nn.Linear(8, K), CosineHead(K, K)
    images = torch.randn(B, 8)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.5)
    history = []
    for _ in range(60):
        z = model(images)
        loss = cosine_loss(z, targets) + 0.1 * cross_entropy(head(z), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    assert history[-1] < 0.5 * history[0]


def test_probabilities_are_the_softmax_of_scaled_cosines() -> None:
    logits, _ = draw()
    loss = CosineLoss(temperature=4.0)
    expected = torch.softmax(4 * logits / logits.norm(dim=1, keepdim=True), 1)
    torch.testing.assert_close(loss.probabilities(logits), expected)
    loss.temperature = 8.0
    torch.testing.assert_close(
        loss.probabilities(logits), expected**2 / (expected**2).sum(1, keepdim=True)
    )
    assert torch.equal(loss.probabilities(torch.zeros(1, 4)), torch.full((1, 4), 0.25))


@pytest.mark.parametrize(("classes", "share"), [(25, 0.999), (1000, 0.957)])
def test_the_default_temperature_lets_a_perfect_output_be_confident(
    classes: int, share: float
) -> None:
    probabilities = CosineLoss().probabilities(torch.eye(classes)[:1])
    assert float(probabilities[0, 0]) == pytest.approx(share, abs=1e-3)


def test_refuses_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"`cross_entropy` must be >= 0, got -0\.1"):
        CosineLoss(cross_entropy=-0.1)
    with pytest.raises(ValueError, match="`cross_entropy` must be >= 0"):
        cosine_loss(*draw(), cross_entropy=-0.1)
    with pytest.raises(ValueError, match=r"`temperature` must be > 0, got 0"):
        CosineLoss(temperature=0)


def test_prints_its_settings() -> None:
    assert repr(CosineLoss(cross_entropy=0.1)) == (
        "CosineLoss(cross_entropy=0.1, temperature=10.0, label_smoothing=0.0, reduction='mean')"
    )
