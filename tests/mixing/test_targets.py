import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lowres_vision.mixing import mix_targets, sample_mixup
from lowres_vision.ops import Mix

EPS = torch.finfo(torch.float32).eps


def draw(batch: int, seed: int = 0, **options) -> Mix:
    generator = torch.Generator().manual_seed(seed)
    return sample_mixup(batch, per_sample=True, generator=generator, **options)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 999))
def test_equal_to_a_loop(batch, classes, seed):
    mix = draw(batch, seed)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    mixed = mix_targets(labels, mix, num_classes=classes)
    for i, (partner, lam) in enumerate(zip(mix.partner.tolist(), mix.lam.tolist(), strict=True)):
        expected = [0.0] * classes
        expected[int(labels[i])] += lam
        expected[int(labels[partner])] += 1 - lam
        # One rounding of 1 - lam.
        assert mixed[i].tolist() == pytest.approx(expected, abs=EPS / 2, rel=0)


def test_lam_zero_and_one_and_equal_labels_are_exact():
    labels = torch.tensor([0, 1, 2, 2])
    mix = Mix(torch.tensor([1, 0, 3, 2]), torch.tensor([0.0, 1.0, 0.3, 0.7]), None)
    expected = F.one_hot(torch.tensor([1, 1, 2, 2]), 3).float()
    assert torch.equal(mix_targets(labels, mix, num_classes=3), expected)


def test_linear_in_soft_targets():
    mix = draw(7)
    a, b = torch.rand(2, 7, 5, dtype=torch.float64)
    mixed = mix_targets(0.3 * a + 0.7 * b, mix)
    expected = 0.3 * mix_targets(a, mix) + 0.7 * mix_targets(b, mix)
    # A handful of roundings of numbers below 1.
    torch.testing.assert_close(mixed, expected, rtol=0, atol=8 * torch.finfo(torch.float64).eps)


def test_soft_one_hot_targets_equal_indices():
    mix, labels = draw(6), torch.tensor([3, 0, 1, 1, 2, 3])
    soft = F.one_hot(labels, 4).float()
    assert torch.equal(mix_targets(soft, mix), mix_targets(labels, mix, num_classes=4))
    assert torch.equal(mix_targets(soft, mix, num_classes=4), mix_targets(soft, mix))


def test_rows_keep_their_sum():
    mixed = mix_targets(torch.rand(50, 8).softmax(1), draw(50))
    torch.testing.assert_close(mixed.sum(1), torch.ones(50), rtol=0, atol=8 * EPS)


def test_two_term_loss_equals_the_loss_of_soft_targets():
    mix, labels = draw(16), torch.arange(16) % 5
    logits = torch.randn(16, 5, dtype=torch.float64, requires_grad=True)
    lam = mix.lam.double()
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, labels[mix.partner], reduction="none")
    two_term = (lam * own + (1 - lam) * other).mean()
    soft = F.cross_entropy(logits, mix_targets(labels, mix, num_classes=5).double())
    # The soft targets are float32: EPS relative to the loss, and to its gradient.
    torch.testing.assert_close(soft, two_term, rtol=EPS, atol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (soft, two_term)]
    torch.testing.assert_close(*gradients, rtol=0, atol=EPS)


def test_class_weighted_mean_has_the_two_term_divisor():
    # Partners are a permutation, so sum(t * w) is the sum of the weights of the labels.
    mix, labels = draw(12), torch.arange(12) % 4
    weight = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)
    mix = mix._replace(lam=torch.full((12,), 0.3))
    mixed = mix_targets(labels, mix, num_classes=4).double()
    assert float((mixed * weight).sum()) == pytest.approx(float(weight[labels].sum()), rel=EPS)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_of_soft_targets(dtype, expected):
    assert mix_targets(torch.eye(3, dtype=dtype), draw(3)).dtype == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtype_of_class_indices(dtype):
    labels = torch.tensor([0, 1, 1], dtype=dtype)
    assert mix_targets(labels, draw(3), num_classes=2).dtype == torch.float32


def test_targets_are_not_written_into_nor_returned():
    targets = torch.eye(4)
    mix = draw(4, alpha=0)
    mixed = mix_targets(targets, mix)
    assert torch.equal(mixed, targets)
    mixed.zero_()
    assert torch.equal(targets, torch.eye(4))


@pytest.mark.parametrize(
    ("targets", "num_classes", "error", "message"),
    [
        (torch.zeros(2), 3, ValueError, r"`targets` of floats must have shape \(B, 3\), got \(2,"),
        (torch.zeros(2, 4), 3, ValueError, r"must have shape \(B, 3\), got \(2, 4\)"),
        (torch.zeros(2, 1, 3), None, ValueError, r"must have shape \(B, K\), got \(2, 1, 3\)"),
        (torch.tensor([0, 1]), None, ValueError, "`num_classes` must be given with class indices"),
        (torch.tensor([[0, 1]]), 2, ValueError, r"class indices must have shape \(B,\), got \(1, "),
        (torch.tensor([True, False]), 2, TypeError, "class indices or floats, got torch.bool"),
        (torch.tensor([0, 1, 0]), 2, ValueError, r"`mix.partner` must have shape \(3,\), got \(2,"),
    ],
)
def test_refusals(targets, num_classes, error, message):
    with pytest.raises(error, match=message):
        mix_targets(targets, draw(2), num_classes=num_classes)


def test_a_draw_on_another_device_is_refused():
    mix = Mix(torch.tensor([1, 0], device="meta"), torch.rand(2), None)
    with pytest.raises(ValueError, match=r"`mix.partner` must be on the targets' device, cpu"):
        mix_targets(torch.eye(2), mix)
