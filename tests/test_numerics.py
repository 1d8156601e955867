import pytest
import torch
import torch.nn.functional as F

from lowres_vision._numerics import at_least_float32, unit_vectors


def test_unit_vectors_are_those_of_torch_with_their_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    ours, theirs = unit_vectors(x), F.normalize(x, dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(ours, x, cotangent)
    (expected,) = torch.autograd.grad(theirs, x, cotangent)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(unit_vectors, x)


@pytest.mark.parametrize("length", [0.0, 1e-30, 9e-7])
def test_a_vector_without_a_direction_is_left_as_it_is(length: float) -> None:
    x = torch.tensor([[length, 0.0], [3.0, 4.0]], requires_grad=True)
    unit = unit_vectors(x)
    assert torch.equal(unit[0], x[0])
    cotangent = torch.tensor([[2.0, -5.0], [0.0, 0.0]])
    (gradient,) = torch.autograd.grad(unit, x, cotangent)
    assert torch.equal(gradient, cotangent)


def test_a_short_vector_with_a_direction_is_normalised() -> None:
    torch.testing.assert_close(unit_vectors(torch.tensor([2e-6, 0.0])), torch.tensor([1.0, 0.0]))


def test_precision_is_raised_to_float32_and_float64_kept() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert at_least_float32(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
