"""What all losses promise, against textbook formulas looped over samples and classes."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lowres_vision.heads import CosineClassifier, CosineHead
from lowres_vision.losses import (
    ArcFaceLoss,
    CosineLoss,
    CrossEntropyLoss,
    FocalLoss,
    arcface_loss,
    check_outputs,
    cosine_loss,
    cross_entropy,
    focal_loss,
)

B, K = 7, 5
MARGINS = torch.tensor([0.05, 0.2, 0.5, 0.3, 0.0])
WEIGHT = torch.tensor([0.3, 2.0, 1.0, 0.0, 4.0])


def textbook_cross_entropy(z: Tensor, c: int) -> Tensor:
    return -torch.log(torch.exp(z[c]) / torch.exp(z).sum())


def textbook_focal(z: Tensor, c: int, gamma: float) -> Tensor:
    p = torch.exp(z[c]) / torch.exp(z).sum()
    return -((1 - p) ** gamma) * torch.log(p)


def textbook_cosine(z: Tensor, c: int, share: float) -> Tensor:
    u = z / (z * z).sum().sqrt()
    return 1 - u[c] + share * textbook_cross_entropy(u, c)


def textbook_arcface(z: Tensor, c: int, scale: float, margin: float, easy: bool) -> Tensor:
    theta = torch.acos(z[c])
    if easy:
        target = torch.cos(theta + margin) if theta < math.pi / 2 else torch.cos(theta)
    elif theta < math.pi - margin:
        target = torch.cos(theta + margin)
    else:
        target = torch.cos(theta) - margin * math.sin(math.pi - margin)
    others = [torch.exp(scale * z[j]) for j in range(len(z)) if j != c]
    return -torch.log(torch.exp(scale * target) / (torch.exp(scale * target) + sum(others)))


class Case(NamedTuple):
    function: Callable[..., Tensor]
    module: Callable[..., nn.Module]
    arguments: dict[str, Any]
    textbook: Callable[[Tensor, int], Tensor]


CASES = {
    "cross_entropy": Case(cross_entropy, CrossEntropyLoss, {}, textbook_cross_entropy),
    "focal_2": Case(focal_loss, FocalLoss, {}, lambda z, c: textbook_focal(z, c, 2.0)),
    "focal_half": Case(
        focal_loss, FocalLoss, {"gamma": 0.5}, lambda z, c: textbook_focal(z, c, 0.5)
    ),
    "cosine": Case(cosine_loss, CosineLoss, {}, lambda z, c: textbook_cosine(z, c, 0.0)),
    "cosine_ce": Case(
        cosine_loss, CosineLoss, {"cross_entropy": 0.1}, lambda z, c: textbook_cosine(z, c, 0.1)
    ),
    "arcface": Case(
        arcface_loss, ArcFaceLoss, {}, lambda z, c: textbook_arcface(z, c, 30.0, 0.5, False)
    ),
    "arcface_easy": Case(
        arcface_loss,
        ArcFaceLoss,
        {"easy_margin": True, "scale": 8.0, "margin": 1.2},
        lambda z, c: textbook_arcface(z, c, 8.0, 1.2, True),
    ),
    "arcface_adaptive": Case(
        arcface_loss,
        ArcFaceLoss,
        {"margin": MARGINS},
        lambda z, c: textbook_arcface(z, c, 30.0, float(MARGINS[c]), False),
    ),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def draw_outputs(case: Case, rows: int = B, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits of usual size, or cosines that reach beyond ``pi - margin`` on both sides."""
    generator = torch.Generator().manual_seed(1)
    uniform = 2 * torch.rand(rows, K, generator=generator, dtype=torch.float64) - 1
    reach = 0.99 if case.module is ArcFaceLoss else 4.0
    return (reach * uniform).to(dtype).requires_grad_()


def draw_targets(kind: str, rows: int = B) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    indices = torch.randint(K, (rows,), generator=generator)
    if kind == "indices":
        return indices
    if kind == "one_hot":
        return torch.eye(K, dtype=torch.float64)[indices]
    return torch.rand(rows, K, generator=generator, dtype=torch.float64).softmax(1)


def textbook_loss(
    case: Case,
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    if targets.ndim == 1:
        targets = torch.eye(K, dtype=torch.float64)[targets]
    w = torch.ones(K) if weight is None else weight
    rows, mass = [], 0.0 if weight is not None else float(len(targets))
    for z, t in zip(outputs, targets, strict=True):
        row = torch.zeros((), dtype=torch.float64)
        for c in range(K):
            smoothed = (1 - label_smoothing) * t[c] + label_smoothing / K
            row = row + smoothed * w[c] * case.textbook(z, c)
            if weight is not None:
                mass = mass + t[c] * w[c]
        rows.append(row)
    loss = torch.stack(rows)
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / mass}[reduction]


def assert_same(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    # 1e-9 of the value; the absolute part is rounding of sums of about 100 terms of size 1.
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-13)


@every_loss
@pytest.mark.parametrize("kind", ["indices", "one_hot", "soft"])
def test_values_and_gradients_are_those_of_the_textbook(case: Case, kind: str) -> None:
    for weight, smoothing, reduction in product(
        (None, WEIGHT), (0.0, 0.1), ("mean", "sum", "none")
    ):
        outputs, targets = draw_outputs(case), draw_targets(kind)
        leaves = [outputs] if kind == "indices" else [outputs, targets.requires_grad_()]
        settings = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
        ours = case.function(outputs, targets, **case.arguments, **settings)
        reference = textbook_loss(case, outputs, targets, **settings)
        assert_same(ours, reference)
        cotangent = torch.linspace(0.5, 1.5, ours.numel(), dtype=torch.float64).view_as(ours)
        for mine, theirs in zip(
            torch.autograd.grad(ours, leaves, cotangent),
            torch.autograd.grad(reference, leaves, cotangent),
            strict=True,
        ):
            assert_same(mine, theirs)


@every_loss
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_index_costs_what_its_one_hot_row_costs_in_float32(
    case: Case, weight: Tensor | None, smoothing: float
) -> None:
    outputs = draw_outputs(case, dtype=torch.float32)
    settings = {**case.arguments, "weight": weight, "label_smoothing": smoothing}
    hard = case.function(outputs, draw_targets("indices"), **settings)
    soft = case.function(outputs, draw_targets("one_hot"), **settings)
    torch.testing.assert_close(hard, soft, rtol=1e-6, atol=0)
    (hard_gradient,) = torch.autograd.grad(hard, outputs)
    (soft_gradient,) = torch.autograd.grad(soft, outputs)
    # The largest gradient entry is about the scale, 30; one ulp of it is 2e-6.
    torch.testing.assert_close(hard_gradient, soft_gradient, rtol=1e-5, atol=4e-6)


@every_loss
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_a_mixed_target_costs_the_mixture_of_two_hard_losses(
    case: Case, weight: Tensor | None
) -> None:
    outputs, first = draw_outputs(case), draw_targets("indices")
    second = first.roll(1)  # partners that are a permutation of the batch have the same divisor
    lam = 0.3
    one_hot = torch.eye(K, dtype=torch.float64)
    mixed = lam * one_hot[first] + (1 - lam) * one_hot[second]
    settings = {**case.arguments, "weight": weight}
    two_terms = lam * case.function(outputs, first, **settings)
    two_terms = two_terms + (1 - lam) * case.function(outputs, second, **settings)
    assert_same(case.function(outputs, mixed, **settings), two_terms)


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_gradcheck(case: Case, kind: str) -> None:
    targets = draw_targets(kind)
    settings = {**case.arguments, "weight": WEIGHT.double(), "label_smoothing": 0.1}
    if kind == "indices":
        settings["label_smoothing"] = 0.0  # the path that looks at one class only
    assert torch.autograd.gradcheck(
        lambda outputs: case.function(outputs, targets, **settings), draw_outputs(case)
    )


def extreme_outputs(case: Case, dtype: torch.dtype) -> Tensor:
    if case.module is ArcFaceLoss:
        rows = [
            [1.0, -1.0, 1.0, -1.0, 0.0],
            [-1.0, 1.0, 1.0, 1.0, 1.0],
            [1.0000004, -1.0000004, 1.0000004, -1.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    else:
        rows = [
            [1e4, -1e4, 1e4, -1e4, 0.0],
            [-1e4, 1e4, -1e4, -1e4, -1e4],  # p = 1 for class 1
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1e-7, 0.0, 0.0, 0.0, -1e-7],
        ]
    return torch.tensor(rows, dtype=dtype, requires_grad=True)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_extremes_are_finite_and_right(case: Case, dtype: torch.dtype, autocast: bool) -> None:
    targets = [torch.full((4,), c) for c in range(K)]  # all-one-class batches
    targets += [torch.eye(K)[t] for t in targets] + [torch.full((4, K), 1 / K)]
    for target, smoothing in product(targets, (0.0, 0.1)):
        outputs = extreme_outputs(case, dtype)
        settings = {**case.arguments, "label_smoothing": smoothing, "reduction": "none"}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = case.function(outputs, target, **settings)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        exact = case.function(outputs.detach().double(), target, **settings)
        # Rounding of scaled outputs up to 2e4 (or 60), relative to each loss and to the outputs.
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=2e-5)
        (gradient,) = torch.autograd.grad(loss.sum(), outputs)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_autocast_changes_nothing(case: Case, kind: str) -> None:
    outputs, targets = draw_outputs(case, dtype=torch.bfloat16), draw_targets(kind)
    settings = {**case.arguments, "weight": WEIGHT}
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.function(outputs, targets, **settings)
    outside = case.function(outputs.float(), targets, **settings)
    assert torch.equal(inside, outside)


@every_loss
def test_a_batch_that_weighs_nothing_is_finite(case: Case) -> None:
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    outputs = draw_outputs(case)
    for targets in (torch.zeros(B, dtype=torch.int64), torch.eye(K)[torch.zeros(B, dtype=int)]):
        loss = case.function(outputs, targets, weight=weight, **case.arguments)
        assert loss.item() == 0
        smoothed = case.function(
            outputs, targets, weight=weight, label_smoothing=0.1, **case.arguments
        )
        assert smoothed.isfinite()


@every_loss
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_a_batch_without_rows_costs_nothing(case: Case, kind: str, weight: Tensor | None) -> None:
    """As when the labelled rows of a batch are selected and there are none."""
    outputs = draw_outputs(case, rows=0)
    for smoothing in (0.0, 0.1):
        loss = case.function(
            outputs,
            draw_targets(kind, rows=0),
            weight=weight,
            label_smoothing=smoothing,
            **case.arguments,
        )
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert loss.item() == 0
        assert gradient.shape == (0, K)


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_gradients_per_sample_by_vmap_are_those_of_a_loop(case: Case, kind: str) -> None:
    outputs, targets = draw_outputs(case).detach(), draw_targets(kind)

    def loss(row: Tensor, target: Tensor) -> Tensor:
        return case.function(row[None], target[None], weight=WEIGHT, **case.arguments)

    together = torch.func.vmap(torch.func.grad(loss))(outputs, targets)
    alone = [torch.func.grad(loss)(*pair) for pair in zip(outputs, targets, strict=True)]
    assert_same(together, torch.stack(alone))


@every_loss
def test_one_class_alone_costs_nothing_to_tell_apart(case: Case) -> None:
    outputs = torch.tensor([[0.5], [0.9]], requires_grad=True)
    arguments = {k: v[:1] if isinstance(v, Tensor) else v for k, v in case.arguments.items()}
    hard = case.function(outputs, torch.tensor([0, 0]), **arguments)
    soft = case.function(outputs, torch.ones(2, 1), **arguments)
    assert hard.item() == soft.item() == 0
    (gradient,) = torch.autograd.grad(hard + soft, outputs)
    assert torch.equal(gradient, torch.zeros(2, 1))


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_strides_do_not_matter_and_inputs_are_left_alone(case: Case, kind: str) -> None:
    outputs, targets = draw_outputs(case).detach(), draw_targets(kind)
    kept_outputs, kept_targets = outputs.clone(), targets.clone()
    strided = outputs.t().contiguous().t()
    spread = torch.stack([targets, targets], -1)[..., 0]
    plain = case.function(outputs, targets, **case.arguments)
    assert torch.equal(case.function(strided, spread, **case.arguments), plain)
    assert torch.equal(outputs, kept_outputs)
    assert torch.equal(targets, kept_targets)


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_any_integer_dtype_will_do(case: Case, dtype: torch.dtype) -> None:
    outputs, targets = draw_outputs(case), draw_targets("indices")
    for settings in ({}, {"label_smoothing": 0.1, "weight": WEIGHT}):
        plain = case.function(outputs, targets, **case.arguments, **settings)
        assert torch.equal(
            case.function(outputs, targets.to(dtype), **case.arguments, **settings), plain
        )


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_the_module_is_the_function(case: Case, kind: str) -> None:
    settings = {"weight": WEIGHT, "label_smoothing": 0.2, "reduction": "sum", **case.arguments}
    outputs, targets = draw_outputs(case), draw_targets(kind)
    loss = case.module(**settings)
    assert torch.equal(loss(outputs, targets), case.function(outputs, targets, **settings))
    assert list(loss.parameters()) == []
    assert torch.equal(loss.state_dict()["weight"], WEIGHT)
    assert loss.double().weight.dtype == torch.float64


@every_loss
def test_defaults_agree_between_function_and_module(case: Case) -> None:
    outputs, targets = draw_outputs(case), draw_targets("soft")
    assert torch.equal(
        case.module(**case.arguments)(outputs, targets),
        case.function(outputs, targets, **case.arguments),
    )


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_in_one_graph_for_any_batch(case: Case, kind: str, backend: str) -> None:
    torch.compiler.reset()
    loss = case.module(**case.arguments, weight=WEIGHT)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for rows in (4, 9):
        outputs, targets = draw_outputs(case, rows), draw_targets(kind, rows)
        ours, eager = compiled(outputs, targets), loss(outputs, targets)
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(ours, outputs)
        (expected,) = torch.autograd.grad(eager, outputs)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@every_loss
@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_exports_with_a_dynamic_batch(case: Case, kind: str) -> None:
    loss = case.module(**case.arguments, label_smoothing=0.1)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        loss, (draw_outputs(case), draw_targets(kind)), dynamic_shapes=({0: batch}, {0: batch})
    )
    outputs, targets = draw_outputs(case, 12), draw_targets(kind, 12)
    torch.testing.assert_close(program.module()(outputs, targets), loss(outputs, targets))


@every_loss
def test_probabilities_are_float32_and_sum_to_one(case: Case) -> None:
    loss = case.module(**case.arguments)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        outputs = draw_outputs(case, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            probabilities = loss.probabilities(outputs)
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(1), torch.ones(B))
        assert torch.equal(probabilities.argmax(1), outputs.argmax(1))


@every_loss
@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 4), r"outputs must be \(B, K\)"),
        (torch.zeros(2, K, dtype=torch.int64), torch.zeros(2, K), "floating dtype"),
        (torch.zeros(2, K), torch.zeros(2), r"class indices \(B,\) = \(2,\) of an integer dtype"),
        (torch.zeros(2, K), torch.zeros(3, dtype=torch.int64), r"got \(3,\) torch.int64"),
        (torch.zeros(2, K), torch.zeros(2, dtype=torch.bool), "got .* torch.bool"),
        (torch.zeros(2, K), torch.zeros(2, K, dtype=torch.int64), "probabilities .* floating"),
        (torch.zeros(2, K), torch.zeros(2, K + 1), r"got \(2, 6\)"),
        (torch.zeros(2, K), torch.zeros(2, 1, dtype=torch.int64), r"got \(2, 1\)"),
    ],
)
def test_refuses_shapes_and_dtypes(
    case: Case, outputs: Tensor, targets: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        case.function(outputs, targets)


@every_loss
@pytest.mark.parametrize("label", [-1, -100, K])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_refuses_rows_without_a_class(case: Case, label: int, smoothing: float) -> None:
    targets = torch.tensor([0, label, 1])
    with pytest.raises(ValueError, match=f"from 0 to {K - 1}, got {label}; rows without"):
        case.function(
            torch.zeros(3, K), targets, weight=WEIGHT, label_smoothing=smoothing, **case.arguments
        )


@every_loss
@pytest.mark.parametrize("label", [-1, -100, K])
def test_a_compiled_loss_refuses_them_too(case: Case, label: int) -> None:
    """Torch's cross-entropy skips -100 without a word, and indexing takes -1 for the last class."""
    compiled = torch.compile(case.module(**case.arguments), fullgraph=True, backend="aot_eager")
    targets = torch.tensor([0, label, 1])
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds"):
        compiled(torch.zeros(3, K), targets)


@every_loss
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": torch.ones(K + 1)}, r"`weight` must be \(K,\) = \(5,\)"),
        ({"weight": torch.ones(K, dtype=torch.int64)}, "`weight` must be .* floating"),
        ({"label_smoothing": 1.5}, "`label_smoothing` must be >= 0 and <= 1, got 1.5"),
        ({"label_smoothing": float("nan")}, "`label_smoothing`"),
        ({"reduction": "avg"}, "`reduction` must be one of 'mean', 'sum', 'none', got 'avg'"),
    ],
)
def test_refuses_settings(case: Case, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.function(draw_outputs(case), draw_targets("soft"), **settings)
    with pytest.raises(ValueError, match=message):
        case.module(**settings)(draw_outputs(case), draw_targets("soft"))


@pytest.mark.parametrize("weight", [[-1.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_module_refuses_weights_that_are_no_weights(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="`weight` must be finite and >= 0"):
        CrossEntropyLoss(weight=torch.tensor(weight))


@pytest.mark.parametrize(
    ("head", "gives"),
    [
        (nn.Linear(4, 3), "logits"),
        (CosineHead(3, 3), "logits"),
        (CosineClassifier(4, 3), "cosines"),
    ],
)
@pytest.mark.parametrize(
    ("loss", "reads"),
    [
        (CrossEntropyLoss(), "logits"),
        (FocalLoss(), "logits"),
        (CosineLoss(), "logits"),
        (ArcFaceLoss(), "cosines"),
        (nn.CrossEntropyLoss(), "logits"),
    ],
)
def test_check_outputs_refuses_a_mismatch(
    head: nn.Module, gives: str, loss: nn.Module, reads: str
) -> None:
    if gives == reads:
        check_outputs(head, loss)
    else:
        with pytest.raises(ValueError, match=f"{type(loss).__name__} reads {reads}, .* {gives}"):
            check_outputs(head, loss)


@every_loss
def test_weights_that_are_no_tensor_are_named(case: Case) -> None:
    weight = [1.0] * K  # scikit-learn's are an array
    for build in (
        lambda: case.module(weight=weight),
        lambda: case.function(torch.zeros(2, K), torch.zeros(2, K), weight=weight),
    ):
        with pytest.raises(TypeError, match=r"`weight` must be a Tensor \(K,\), got list"):
            build()
