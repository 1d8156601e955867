import copy

import pytest
import torch

from lowres_vision.pooling import GeM, gem_pool2d

# Float64 on both sides: what is left is the order of the sums.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def features(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.05


def gem_loop(x, p, eps):
    """The definition, one number after another; also its derivatives by x and p."""
    B, C, H, W = x.shape
    y = torch.empty(B, C, dtype=torch.float64)
    dx = torch.zeros_like(x)
    for b in range(B):
        for c in range(C):
            total = 0.0
            for value in x[b, c].flatten().tolist():
                total += max(value, eps) ** p
            y[b, c] = (total / (H * W)) ** (1 / p)
            for i in range(H):
                for j in range(W):
                    value = float(x[b, c, i, j])
                    if value > eps:
                        dx[b, c, i, j] = (value / float(y[b, c])) ** (p - 1) / (H * W)
    return y, dx


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 7.3])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (2, 2, 1, 7)])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_values_and_gradients_match_loops(shape, p, as_tensor):
    x = features(*shape) - 0.3  # some values lie below the floor
    expected, dx = gem_loop(x, p, 1e-3)
    x.requires_grad_()
    y = gem_pool2d(x, torch.tensor([p], dtype=torch.float64) if as_tensor else p, eps=1e-3)
    torch.testing.assert_close(y, expected, **EXACT)
    y.sum().backward()
    torch.testing.assert_close(x.grad, dx, **EXACT)


def test_gradient_of_the_exponent():
    x = features(2, 3, 4, 4).requires_grad_()
    for p in ([3.0], [1.0, 2.5, 6.0]):
        p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(gem_pool2d, (x, p))


def test_one_exponent_per_channel():
    x = features(2, 3, 4, 4)
    y = gem_pool2d(x, torch.tensor([1.0, 2.5, 6.0]))
    for c, p in enumerate((1.0, 2.5, 6.0)):
        torch.testing.assert_close(y[:, c], gem_pool2d(x, p)[:, c])


def test_exponent_one_is_the_average():
    x = features(2, 3, 4, 5)
    torch.testing.assert_close(gem_pool2d(x, 1.0), x.mean((2, 3)), **EXACT)


def test_large_exponent_tends_to_the_maximum():
    x = 100 * features(2, 3, 7, 7, dtype=torch.float32)
    for p in (100.0, 1e4):  # 105^100 is far beyond float32
        y = gem_pool2d(x, p)
        assert (y <= x.amax((2, 3)) * (1 + 1e-5)).all()
        assert (y >= x.amax((2, 3)) * 49 ** (-1 / p) * (1 - 1e-5)).all()


def test_scales_with_its_input():
    x = features(2, 3, 4, 4)
    torch.testing.assert_close(gem_pool2d(1000 * x, 3.0), 1000 * gem_pool2d(x, 3.0), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1e-3, 0.02, 1.0, 45.0, 60.0, 100.0])
@pytest.mark.parametrize("halved", [True, False])
@pytest.mark.parametrize("learnable", [True, False])
def test_half_precision_neither_overflows_nor_goes_dead(value, dtype, halved, learnable):
    pool = GeM(3.0, learnable=learnable)
    if halved:
        pool.to(dtype)
    x = torch.full((1, 2, 4, 4), value, dtype=dtype).requires_grad_()
    y = pool(x)
    y.sum().backward()
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype
    torch.testing.assert_close(y, x[:, :, 0, 0], rtol=eps, atol=0)  # one rounding, of the result
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 16), rtol=eps, atol=0)


def test_half_precision_is_float32_rounded_once():
    x = (100 * features(2, 3, 7, 7)).half()
    assert torch.equal(gem_pool2d(x, 3.0), gem_pool2d(x.float(), 3.0).half())


def test_autocast_changes_nothing():
    x = features(2, 3, 7, 7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = GeM()(x)
    assert torch.equal(y, GeM()(x))


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_below_the_floor_the_result_is_the_floor_and_finite(value):
    pool = GeM(eps=1e-4)
    x = torch.full((1, 2, 3, 3), value, requires_grad=True)
    y = pool(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.full((1, 2), 1e-4))
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert pool.p.grad.isfinite().all()


def test_module_is_the_function():
    x = features(2, 3, 4, 4, dtype=torch.float32)
    for learnable in (True, False):
        pool = GeM(4.0, eps=0.1, learnable=learnable)
        assert torch.equal(pool(x), gem_pool2d(x, 4.0, eps=0.1)) or learnable
        torch.testing.assert_close(pool(x), gem_pool2d(x, 4.0, eps=0.1))
        assert [tuple(p.shape) for p in pool.parameters()] == ([(1,)] if learnable else [])


@pytest.mark.parametrize("learnable", [True, False])
def test_repr_shows_the_arguments(learnable):
    assert repr(GeM(2.5, learnable=learnable)) == f"GeM(p=2.5, eps=1e-06, learnable={learnable})"
    assert "p=" in repr(GeM(2.5, learnable=learnable).to("meta"))


def test_layout_changes_nothing():
    x = features(2, 3, 4, 4)
    expected = gem_pool2d(x, 3.0)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gem_pool2d(last, 3.0), expected, **EXACT)
    torch.testing.assert_close(gem_pool2d(x.mT.contiguous().mT, 3.0), expected, **EXACT)
    torch.testing.assert_close(gem_pool2d(x.expand(4, 2, 3, 4, 4)[1], 3.0), expected, **EXACT)


@pytest.mark.parametrize("learnable", [True, False])
def test_compiled_and_exported_match_eager(learnable):
    pool = GeM(learnable=learnable).double()
    compiled = torch.compile(copy.deepcopy(pool), fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        gradients = []
        for module in (pool, compiled):
            x = features(batch, 3, 4, 5).requires_grad_()
            y = module(x)
            y.square().sum().backward()
            gradients.append((y, x.grad))
        torch.testing.assert_close(gradients[0], gradients[1], **EXACT)
    dim = torch.export.Dim("batch", min=1)
    example = (features(2, 3, 4, 5),)
    program = torch.export.export(pool, example, dynamic_shapes=({0: dim},), strict=False)
    for batch in (1, 5):
        x = features(batch, 3, 4, 5)
        torch.testing.assert_close(program.module()(x), pool(x), **EXACT)


def test_refuses():
    with pytest.raises(TypeError, match="`x` must be float, got"):
        gem_pool2d(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 3.0)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got shape \(2, 7, 512\)"):
        gem_pool2d(torch.zeros(2, 7, 512), 3.0)
    with pytest.raises(ValueError, match="`p` must be > 0, got 0"):
        GeM(0)
    with pytest.raises(ValueError, match="`eps` must be > 0, got 0"):
        GeM(eps=0)
