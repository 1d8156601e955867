import kornia.losses
import pytest
import torch
import torchvision.ops

from lowres_vision.losses import FocalLoss, cross_entropy, focal_loss

B, K = 12, 6


def draw(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(K, (B,), generator=generator)


def assert_same_with_gradient(
    ours: torch.Tensor, theirs: torch.Tensor, logits: torch.Tensor
) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_kornias_up_to_the_divisor(gamma: float, weighted: bool) -> None:
    """kornia's mean divides by B*K whatever the weights; ours by the weight of the targets."""
    logits, targets = draw()
    weight = torch.linspace(0.2, 3, K, dtype=torch.float64) if weighted else None
    ours = focal_loss(logits, targets, gamma=gamma, weight=weight)
    theirs = kornia.losses.focal_loss(logits, targets, None, gamma, "mean", weight)
    mass = B if weight is None else weight[targets].sum()
    assert_same_with_gradient(ours, theirs * B * K / mass, logits)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_for_two_classes_is_torchvisions_sigmoid_form(gamma: float) -> None:
    logits = draw()[0].detach()[:, :2].requires_grad_()
    soft = torch.linspace(0, 1, B, dtype=torch.float64)
    ours = focal_loss(logits, torch.stack([1 - soft, soft], 1), gamma=gamma, reduction="sum")
    # On hard targets only: torchvision's factor is that of the mixture, which is not linear.
    theirs = sum(
        (
            share
            * torchvision.ops.sigmoid_focal_loss(
                logits[:, 1] - logits[:, 0], torch.full_like(soft, float(c)), alpha=-1, gamma=gamma
            )
        ).sum()
        for c, share in enumerate((1 - soft, soft))
    )
    assert_same_with_gradient(ours, theirs, logits)


def test_gamma_0_is_cross_entropy() -> None:
    logits, targets = draw(torch.float32)
    for target in (targets, torch.eye(K)[targets].lerp(torch.full((B, K), 1 / K), 0.3)):
        for smoothing in (0.0, 0.1):
            assert torch.equal(
                focal_loss(logits, target, gamma=0, label_smoothing=smoothing),
                cross_entropy(logits, target, label_smoothing=smoothing),
            )


def test_the_factor_is_that_of_each_sample_not_of_the_batch() -> None:
    logits, targets = draw()
    mean = cross_entropy(logits, targets)
    of_the_batch = (1 - torch.exp(-mean)) ** 2 * mean
    assert abs((focal_loss(logits, targets) / of_the_batch).item() - 1) > 0.01
    each = torch.stack([focal_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(focal_loss(logits, targets), each.mean())


def test_the_weight_scales_the_loss_and_leaves_the_factor_alone() -> None:
    logits, targets = draw()
    plain = focal_loss(logits, targets, reduction="none")
    doubled = focal_loss(logits, targets, weight=torch.full((K,), 2.0), reduction="none")
    torch.testing.assert_close(doubled, 2 * plain)


@pytest.mark.parametrize("gamma", [1e-3, 0.5, 0.99, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p_of_1_has_loss_0_and_gradient_0(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    for targets in (torch.tensor([0, 2]), torch.eye(3)[[0, 2]]):
        loss = focal_loss(logits, targets, gamma=gamma, reduction="sum")
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), logits)
        assert loss.item() == 0
        assert first.abs().max() <= torch.finfo(dtype).eps ** 2
        assert second.isfinite().all()


def test_the_gradient_near_p_of_1_is_exact() -> None:
    """Where p is close to 1 the loss is about (-log p)^(1 + gamma), in float64 down to 1e-12."""
    gap = 20.0
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0]), gamma=0.5), logits)
    x = torch.log1p(torch.exp(torch.tensor(-gap, dtype=torch.float64)))
    # d/d(gap) of x^1.5, times dx/d(gap) = -(1 - p); one digit in 1e-9 of x is left in 1 + x.
    assert gradient[0, 0].item() == pytest.approx(-1.5 * float(x) ** 1.5, rel=1e-6)


@pytest.mark.parametrize("gamma", [-0.1, float("nan")])
def test_refuses_a_gamma_below_0(gamma: float) -> None:
    with pytest.raises(ValueError, match="`gamma` must be >= 0"):
        FocalLoss(gamma=gamma)
    with pytest.raises(ValueError, match="`gamma` must be >= 0"):
        focal_loss(*draw(), gamma=gamma)


def test_prints_its_settings() -> None:
    loss = FocalLoss(gamma=1.5, weight=torch.ones(3))
    assert repr(loss) == "FocalLoss(gamma=1.5, weight=(3,), label_smoothing=0.0, reduction='mean')"
