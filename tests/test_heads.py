import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision.heads import CosineClassifier, CosineHead, EmbeddingNeck

B, D, K = 6, 10, 4


def draw(dtype: torch.dtype = torch.float64, rows: int = B) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)


MODULES = {
    "neck": lambda: EmbeddingNeck(D, K),
    "cosine": lambda: CosineClassifier(D, K),
    "subcenters": lambda: CosineClassifier(D, K, subcenters=3),
    "cosine_head": lambda: CosineHead(D, K),
}
every_head = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES.keys())


def test_neck_is_linear_batch_norm_prelu() -> None:
    neck = EmbeddingNeck(D, K).double()
    reference = nn.Sequential(nn.Linear(D, K), nn.BatchNorm1d(K), nn.PReLU()).double()
    reference.load_state_dict(
        dict(zip(reference.state_dict(), neck.state_dict().values(), strict=True))
    )
    for training in (True, False):
        neck.train(training)
        reference.train(training)
        x, y = draw().requires_grad_(), draw().requires_grad_()
        ours, theirs = neck(x), reference(y)
        assert torch.equal(ours, theirs)
        mine = torch.autograd.grad(ours.square().sum(), [x, *neck.parameters()])
        expected = torch.autograd.grad(theirs.square().sum(), [y, *reference.parameters()])
        for gradient, wanted in zip(mine, expected, strict=True):
            assert torch.equal(gradient, wanted)


def test_neck_has_512_features_by_default() -> None:
    neck = EmbeddingNeck(D)
    assert (neck.in_features, neck.out_features) == (D, 512)
    assert neck(draw(torch.float32)).shape == (B, 512)


@pytest.mark.parametrize("subcenters", [1, 3])
def test_cosines_are_those_of_a_loop_over_samples_and_directions(subcenters: int) -> None:
    head = CosineClassifier(D, K, subcenters=subcenters).double()
    x = draw().requires_grad_()
    cosines = head(x)
    reference = torch.stack(
        [
            torch.stack(
                [
                    max(
                        x[i] @ w / (x[i].norm() * w.norm())
                        for w in head.weight[c * subcenters : (c + 1) * subcenters]
                    )
                    for c in range(K)
                ]
            )
            for i in range(B)
        ]
    )
    torch.testing.assert_close(cosines, reference, rtol=1e-12, atol=1e-14)
    cotangent = torch.linspace(-1, 1, B * K, dtype=torch.float64).view(B, K)
    for ours, theirs in zip(
        torch.autograd.grad(cosines, [x, head.weight], cotangent),
        torch.autograd.grad(reference, [x, head.weight], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_the_rows_of_a_class_lie_together() -> None:
    head = CosineClassifier(12, 4, subcenters=3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(12))
    assert head.weight.shape == (12, 12)
    assert torch.equal(head(torch.eye(12)).argmax(1), torch.arange(12) // 3)


def test_cosines_ignore_lengths_and_reach_one() -> None:
    head = CosineClassifier(D, K).double()
    x = draw()
    torch.testing.assert_close(head(1e3 * x), head(x))
    torch.testing.assert_close(
        head(head.weight.detach()).diagonal(), torch.ones(K, dtype=torch.float64)
    )
    assert (head(x).abs() <= 1 + 1e-15).all()


def test_the_directions_start_xavier_uniform_and_without_a_bias() -> None:
    torch.manual_seed(0)
    head = CosineClassifier(300, 100, subcenters=2)
    bound = math.sqrt(6 / (300 + 200))
    assert head.weight.abs().max() <= bound
    # The standard deviation of 60,000 uniform draws is within 1 % of bound / sqrt(3).
    assert head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    before = head.weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.weight, before)


@pytest.mark.parametrize("subcenters", [1, 3])
def test_cosines_are_float32_under_autocast(subcenters: int) -> None:
    head = CosineClassifier(D, K, subcenters=subcenters)
    x = draw(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(x.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_heads_compute_their_cosines_in_float32(dtype: torch.dtype) -> None:
    head = CosineClassifier(D, K).to(dtype)
    cosines = head(draw(dtype))
    assert cosines.dtype == torch.float32
    expected = F.normalize(draw(dtype).double()) @ F.normalize(head.weight.double()).t()
    # A dot product of D terms of float32 rounding each.
    torch.testing.assert_close(cosines.double(), expected, rtol=0, atol=D * 1.2e-7)


@every_head
def test_the_zero_vector_has_a_finite_gradient(build) -> None:  # type: ignore[no-untyped-def]
    head = build()
    x = torch.zeros(B, D, requires_grad=True)
    output = head(x)
    assert output.isfinite().all()
    gradients = torch.autograd.grad(output.sum(), [x, *head.parameters()])
    # 100: batch norm divides by sqrt(eps) = 0.003 where all rows agree; F.normalize gives 1e12.
    assert all(gradient.abs().max() < 1000 for gradient in gradients)


def test_cosine_head_is_unit_length_relu_batch_norm_linear() -> None:
    head = CosineHead(D, K).double()
    for training in (True, False):
        head.train(training)
        x = draw().requires_grad_()
        hidden = F.normalize(x).relu()
        if training:
            mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
        else:
            mean, variance = head.norm.running_mean, head.norm.running_var
        reference = ((hidden - mean) / (variance + head.norm.eps).sqrt()) @ head.linear.weight.t()
        reference = reference + head.linear.bias
        ours = head(x)
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(ours.square().sum(), x)
        (expected,) = torch.autograd.grad(reference.square().sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_head_runs_in_half_and_under_autocast(dtype: torch.dtype) -> None:
    head = CosineHead(D, K).to(dtype)
    assert head(draw(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert head(draw(torch.bfloat16)).isfinite().all()


@every_head
def test_compiles_in_one_graph_for_any_batch(build) -> None:  # type: ignore[no-untyped-def]
    torch.compiler.reset()
    head = build().eval()
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 8):
        x = draw(torch.float32, rows)
        torch.testing.assert_close(compiled(x), head(x))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(compiled(x), head(x))


@every_head
def test_exports_with_a_dynamic_batch(build) -> None:  # type: ignore[no-untyped-def]
    head = build().eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(head, (draw(torch.float32),), dynamic_shapes=({0: batch},))
    x = draw(torch.float32, 11)
    torch.testing.assert_close(program.module()(x), head(x))


@every_head
def test_state_dict_round_trip(build) -> None:  # type: ignore[no-untyped-def]
    head, other = build().eval(), build().eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(draw(torch.float32)), other(draw(torch.float32)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmbeddingNeck(0), "`in_features` must be >= 1, got 0"),
        (lambda: EmbeddingNeck(D, 0), "`out_features` must be >= 1"),
        (lambda: CosineClassifier(0, K), "`in_features` must be >= 1"),
        (lambda: CosineClassifier(D, 0), "`num_classes` must be >= 1"),
        (lambda: CosineClassifier(D, K, subcenters=0), "`subcenters` must be >= 1, got 0"),
        (lambda: CosineHead(0, K), "`in_features` must be >= 1"),
        (lambda: CosineHead(D, 0), "`num_classes` must be >= 1"),
    ],
)
def test_refuses_sizes_below_one(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()


def test_cosines_of_tokens_keep_their_places() -> None:
    head = CosineClassifier(8, 5, subcenters=3)
    x = torch.randn(2, 4, 8)
    torch.testing.assert_close(head(x), torch.stack([head(row) for row in x]))
