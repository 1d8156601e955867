import pytest
import torch
import torch.nn.functional as F

from lowres_vision.losses import cross_entropy

B, K = 12, 6


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    targets = torch.randint(K, (B,), generator=generator)
    weight = torch.rand(K, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), targets, weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_indices_are_those_of_torch(smoothing: float, reduction: str, weighted: bool) -> None:
    logits, targets, weight = draw()
    settings = {
        "weight": weight if weighted else None,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    ours = cross_entropy(logits, targets, **settings)
    theirs = F.cross_entropy(logits, targets, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("reduction", "weighted"), [("mean", False), ("sum", True), ("none", True)]
)
def test_probabilities_are_those_of_torch_but_for_the_weighted_mean(
    smoothing: float, reduction: str, weighted: bool
) -> None:
    logits, _, weight = draw()
    soft = torch.randn(B, K, generator=torch.Generator().manual_seed(5)).double().softmax(1)
    settings = {
        "weight": weight if weighted else None,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    ours = cross_entropy(logits, soft, **settings)
    torch.testing.assert_close(ours, F.cross_entropy(logits, soft, **settings), rtol=1e-9, atol=0)


def test_the_weighted_mean_of_one_hot_rows_is_that_of_indices_where_torch_differs() -> None:
    logits, targets, weight = draw()
    one_hot = F.one_hot(targets, K).double()
    by_index = F.cross_entropy(logits, targets, weight=weight)
    torch.testing.assert_close(cross_entropy(logits, one_hot, weight=weight), by_index)
    torch_by_row = F.cross_entropy(logits, one_hot, weight=weight)
    assert abs((torch_by_row / by_index).item() - 1) > 0.1
    torch.testing.assert_close(torch_by_row * B / weight[targets].sum(), by_index)
