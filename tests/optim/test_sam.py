import copy
import io
import math
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lowres_vision.optim import SAM

# Sums of at most 8 * 5 products per gradient entry, carried through five steps.
EXACT = 256 * torch.finfo(torch.float64).eps
Batch = tuple[Tensor, Tensor]


def loss_of(weights: Sequence[Tensor], batch: Batch) -> Tensor:
    images, targets = batch
    hidden = torch.tanh(images @ weights[0].T + weights[1])
    return F.cross_entropy(hidden @ weights[2].T + weights[3], targets)


def make_weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (5,), (3, 5), (3,)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(value) for value in values]


def make_batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def closure_for(optimizer: SAM, weights: Sequence[Tensor], *batches: Batch) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = [loss_of(weights, batch) / len(batches) for batch in batches]
        for loss in losses:
            loss.backward()
        return torch.stack(losses).sum()

    return closure


def reference(
    batches: Sequence[Batch],
    *,
    rhos: Sequence[float] = (0.05,) * 4,
    adaptive: Sequence[bool] = (False,) * 4,
    lrs: Sequence[float] = (0.1,) * 4,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """The two passes written out, with torch for the gradients alone."""

    def gradients(weights: list[Tensor], batch: Batch) -> list[Tensor]:
        leaves = [weight.clone().requires_grad_() for weight in weights]
        return list(torch.autograd.grad(loss_of(leaves, batch), leaves))

    weights = [weight.detach().clone() for weight in make_weights()]
    speeds: list[Tensor] | None = None
    for batch in batches:
        first = gradients(weights, batch)
        square = 0.0
        for weight, gradient, relative in zip(weights, first, adaptive, strict=True):
            for w, g in zip(weight.flatten().tolist(), gradient.flatten().tolist(), strict=True):
                square += (abs(w) * g if relative else g) ** 2
        norm = math.sqrt(square) + 1e-12
        moved = [
            weight + rho * (weight**2 * gradient if relative else gradient) / norm
            for weight, gradient, rho, relative in zip(weights, first, rhos, adaptive, strict=True)
        ]
        second = [
            gradient + weight_decay * weight
            for gradient, weight in zip(gradients(moved, batch), weights, strict=True)
        ]
        speeds = (
            second
            if speeds is None
            else [
                momentum * speed + gradient for speed, gradient in zip(speeds, second, strict=True)
            ]
        )
        weights = [w - lr * speed for w, lr, speed in zip(weights, lrs, speeds, strict=True)]
    return weights


def assert_equal_weights(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=0, atol=0)


def assert_close_weights(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_are_those_of_the_formula(adaptive: bool) -> None:
    weights, batches = make_weights(), make_batches(5)
    optimizer = SAM(
        weights,
        torch.optim.SGD,
        rho=0.3,
        adaptive=adaptive,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.05,
    )
    for steps, batch in enumerate(batches, start=1):
        before = loss_of(weights, batch).item()
        assert optimizer.step(closure_for(optimizer, weights, batch)).item() == before
        expected = reference(
            batches[:steps],
            rhos=(0.3,) * 4,
            adaptive=(adaptive,) * 4,
            momentum=0.9,
            weight_decay=0.05,
        )
        assert_close_weights(weights, expected)
    assert optimizer.skipped_steps == 0


def test_groups_share_one_norm_and_keep_their_rho() -> None:
    weights, batches = make_weights(), make_batches(5)
    groups = [
        {"params": weights[:2], "lr": 0.2},
        {"params": weights[2:], "rho": 0.7, "adaptive": True},
    ]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.1, lr=0.05)
    for batch in batches:
        optimizer.step(closure_for(optimizer, weights, batch))
    expected = reference(
        batches,
        rhos=(0.1, 0.1, 0.7, 0.7),
        adaptive=(False, False, True, True),
        lrs=(0.2, 0.2, 0.05, 0.05),
    )
    assert_close_weights(weights, expected)


def test_two_halves_are_the_closure() -> None:
    whole, halves = make_weights(), make_weights()
    closed = SAM(whole, torch.optim.Adam, lr=0.01)
    opened = SAM(halves, torch.optim.Adam, lr=0.01)
    for batch in make_batches(4):
        closed.step(closure_for(closed, whole, batch))
        loss_of(halves, batch).backward()
        assert not opened.in_second_pass
        opened.first_step(zero_grad=True)
        assert opened.in_second_pass
        loss_of(halves, batch).backward()
        opened.second_step(zero_grad=True)
        assert not opened.in_second_pass
        assert all(weight.grad is None for weight in halves)
    assert_equal_weights(whole, halves)


def test_a_radius_of_zero_is_the_base_optimizer() -> None:
    weights, plain = make_weights(), make_weights()
    optimizer = SAM(weights, torch.optim.AdamW, rho=0.0, lr=0.01)
    base = torch.optim.AdamW(plain, lr=0.01)
    for batch in make_batches(4):
        optimizer.step(closure_for(optimizer, weights, batch))
        base.zero_grad()
        loss_of(plain, batch).backward()
        base.step()
    assert_equal_weights(weights, plain)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_climb_does_not_depend_on_the_scale_of_the_loss(adaptive: bool) -> None:
    found = []
    for scale in (1.0, 2.0**16):
        weights = make_weights()
        optimizer = SAM(weights, torch.optim.SGD, adaptive=adaptive, rho=0.5, lr=0.1)
        (loss_of(weights, make_batches(1)[0]) * scale).backward()
        optimizer.first_step()
        found.append([weight.detach().clone() for weight in weights])
    length = math.sqrt(
        sum(((a - b) ** 2).sum().item() for a, b in zip(found[0], make_weights(), strict=True))
    )
    if not adaptive:
        assert length == pytest.approx(0.5, rel=1e-11)
    # The 1e-12 beside a norm of order 1 is what differs.
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-12)


def test_accumulated_micro_batches_are_the_whole_batch() -> None:
    whole, parts = make_weights(), make_weights()
    big = SAM(whole, torch.optim.SGD, lr=0.1)
    small = SAM(parts, torch.optim.SGD, lr=0.1)
    for images, targets in make_batches(4):
        micro = zip(images.split(2), targets.split(2), strict=True)
        big.step(closure_for(big, whole, (images, targets)))
        small.step(closure_for(small, parts, *micro))
    assert_close_weights(whole, parts)


def test_a_closure_that_does_not_zero_is_refused() -> None:
    weights = make_weights()
    batch = make_batches(1)[0]
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)

    def closure() -> Tensor:
        loss = loss_of(weights, batch)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"must call `optimizer.zero_grad\(\)`"):
        optimizer.step(closure)
    assert_equal_weights(weights, make_weights())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_either_way_of_zeroing_will_do(set_to_none: bool) -> None:
    weights = make_weights()
    batches = make_batches(3)
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    for batch in batches:

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = loss_of(weights, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_close_weights(weights, reference(batches))


def test_weights_return_in_place_and_to_the_bit() -> None:
    weights = make_weights()
    addresses = [weight.data_ptr() for weight in weights]
    views = [weight.data for weight in weights]
    loss_of(weights, make_batches(1)[0]).backward()
    optimizer = SAM(weights, torch.optim.SGD, rho=0.7, lr=0.0)
    optimizer.first_step()
    assert all((a != b).any() for a, b in zip(weights, make_weights(), strict=True))
    optimizer.second_step()
    assert_equal_weights(weights, make_weights())
    assert_equal_weights(views, make_weights())
    assert [weight.data_ptr() for weight in weights] == addresses


def test_a_weight_without_second_gradient_returns_too() -> None:
    weights = make_weights()
    batch = make_batches(1)[0]
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    loss_of(weights, batch).backward()
    optimizer.first_step(zero_grad=True)
    loss_of([*weights[:2], *(weight.detach() for weight in weights[2:])], batch).backward()
    optimizer.second_step()
    assert_equal_weights(weights[2:], make_weights()[2:])
    assert_close_weights(weights[:2], reference([batch])[:2])


def test_no_gradient_at_all_moves_nothing() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    optimizer.first_step()
    optimizer.second_step()
    assert_equal_weights(weights, make_weights())


def test_a_zero_gradient_moves_nothing() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    optimizer.step(lambda: (optimizer.zero_grad(), sum((w * 0).sum() for w in weights).backward()))
    assert_equal_weights(weights, make_weights())
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("failing_pass", [1, 2])
def test_a_failing_closure_leaves_the_weights(failing_pass: int) -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    inner = closure_for(optimizer, weights, make_batches(1)[0])
    passes = []

    def closure() -> Tensor:
        passes.append(optimizer.in_second_pass)
        if len(passes) == failing_pass:
            raise MemoryError("out of memory")
        return inner()

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert passes == [False, True][:failing_pass]
    assert_equal_weights(weights, make_weights())
    optimizer.step(closure)
    assert_close_weights(weights, reference(make_batches(1)))


def test_restore_gives_a_begun_step_up() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    loss_of(weights, make_batches(1)[0]).backward()
    optimizer.first_step()
    for _ in range(2):
        optimizer.restore()
        assert_equal_weights(weights, make_weights())
    assert not optimizer.in_second_pass
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_bad_gradient_skips_the_whole_step(bad_pass: int, bad: float) -> None:
    weights, batches = make_weights(), make_batches(4)
    optimizer = SAM(weights, torch.optim.Adam, lr=0.01)
    optimizer.step(closure_for(optimizer, weights, batches[0]))
    before = [weight.detach().clone() for weight in weights]
    state = copy.deepcopy(optimizer.base_optimizer.state_dict()["state"])
    inner = closure_for(optimizer, weights, batches[1])
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        loss = inner()
        if passes == bad_pass:
            assert weights[2].grad is not None
            weights[2].grad[0, 0] = bad
        return loss

    optimizer.step(closure)
    assert passes == 2, "the other ranks are waiting in their second pass"
    assert optimizer.skipped_steps == 1
    assert_equal_weights(weights, before)
    torch.testing.assert_close(
        optimizer.base_optimizer.state_dict()["state"], state, rtol=0, atol=0
    )

    untouched = make_weights()
    other = SAM(untouched, torch.optim.Adam, lr=0.01)
    for batch in (batches[0], batches[2]):
        other.step(closure_for(other, untouched, batch))
    optimizer.step(closure_for(optimizer, weights, batches[2]))
    assert_equal_weights(weights, untouched)
    assert optimizer.skipped_steps == 1


def test_a_bad_first_pass_spoils_the_second_one_for_all_to_see() -> None:
    weights, batch = make_weights(), make_batches(1)[0]
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    (loss_of(weights, batch) * math.inf).backward()
    optimizer.first_step(zero_grad=True)
    assert_equal_weights(weights, make_weights())
    loss_of(weights, batch).backward()
    assert all(weight.grad is not None and weight.grad.isnan().all() for weight in weights)
    optimizer.second_step(zero_grad=True)
    loss_of(weights, batch).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)


def test_gradients_set_by_hand_do_not_save_a_bad_first_pass() -> None:
    """As sharded parameters get theirs, past the hooks of autograd."""
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    (loss_of(weights, make_batches(1)[0]) * math.inf).backward()
    optimizer.first_step()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.second_step()
    assert_equal_weights(weights, make_weights())
    assert optimizer.skipped_steps == 1


def test_resuming_in_the_middle_is_bit_identical() -> None:
    batches = make_batches(6)
    weights = make_weights()
    whole = SAM(weights, torch.optim.Adam, rho=0.2, lr=0.01)
    whole_lr = CosineAnnealingLR(whole, T_max=6)
    file = io.BytesIO()
    for index, batch in enumerate(batches):
        if index == 3:
            state = {"sam": whole.state_dict(), "lr": whole_lr.state_dict(), "weights": weights}
            torch.save(state, file)
        whole.step(closure_for(whole, weights, batch))
        whole_lr.step()

    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(weight.detach().clone()) for weight in loaded["weights"]]
    optimizer = SAM(resumed, torch.optim.Adam, rho=9.0, lr=9.0)
    schedule = CosineAnnealingLR(optimizer, T_max=6)
    optimizer.load_state_dict(loaded["sam"])
    schedule.load_state_dict(loaded["lr"])
    for batch in batches[3:]:
        optimizer.step(closure_for(optimizer, resumed, batch))
        schedule.step()
    assert_equal_weights(resumed, weights)
    torch.testing.assert_close(
        optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0
    )
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    assert optimizer.state is optimizer.base_optimizer.state


def test_the_count_of_skipped_steps_is_resumed() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    (loss_of(weights, make_batches(1)[0]) * math.nan).backward()
    optimizer.first_step()
    optimizer.second_step()
    resumed = SAM(make_weights(), torch.optim.SGD, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.skipped_steps == 1


def test_a_run_may_go_over_from_the_bare_optimizer() -> None:
    plain = torch.optim.SGD(make_weights(), lr=0.3, momentum=0.9)
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, rho=0.2, lr=0.1)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["rho"] == 0.2
    optimizer.step(closure_for(optimizer, weights, make_batches(1)[0]))


def test_copies_and_pickles_go_on_as_the_original() -> None:
    weights, batches = make_weights(), make_batches(3)
    optimizer = SAM(weights, torch.optim.Adam, lr=0.01)
    optimizer.step(closure_for(optimizer, weights, batches[0]))
    copies = [copy.deepcopy((weights, optimizer)), pickle.loads(pickle.dumps((weights, optimizer)))]
    for batch in batches[1:]:
        optimizer.step(closure_for(optimizer, weights, batch))
    for copied, twin in copies:
        for batch in batches[1:]:
            twin.step(closure_for(twin, copied, batch))
        assert_equal_weights(copied, weights)


def test_a_scheduler_takes_it_for_an_optimizer() -> None:
    """A warning about the order of steps would be an error here."""
    for halves in (False, True):
        weights, batches = make_weights(), make_batches(3)
        optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for batch in batches:
            if halves:
                loss_of(weights, batch).backward()
                optimizer.first_step(zero_grad=True)
                loss_of(weights, batch).backward()
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(closure_for(optimizer, weights, batch))
            scheduler.step()
        assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.1 / 8
        assert scheduler.get_last_lr() == [0.1 / 8]


def test_groups_may_be_added() -> None:
    weights, batches = make_weights(), make_batches(2)
    optimizer = SAM(weights[:2], torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": weights[2:], "rho": 0.1})
    assert len(optimizer.base_optimizer.param_groups) == 2
    for batch in batches:
        optimizer.step(closure_for(optimizer, weights, batch))
    assert_close_weights(weights, reference(batches, rhos=(0.3, 0.3, 0.1, 0.1), momentum=0.9))


def test_named_parameters_keep_their_names() -> None:
    model = nn.Linear(2, 3)
    optimizer = SAM(model.named_parameters(), torch.optim.SGD, lr=0.1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_step_hooks_run_once_a_step() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_for(optimizer, weights, make_batches(1)[0]))
    loss_of(weights, make_batches(1)[0]).backward()
    optimizer.first_step()
    optimizer.second_step()
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_norm_of_half_weights_does_not_overflow(dtype: torch.dtype, adaptive: bool) -> None:
    weights = [nn.Parameter(torch.full((300,), 2.0, dtype=dtype)) for _ in range(2)]
    weights.append(nn.Parameter(torch.full((300,), 2.0)))
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0**13)
    optimizer = SAM(weights, torch.optim.SGD, rho=30.0, adaptive=adaptive, lr=0.1)
    optimizer.first_step()
    for weight in weights:
        # rho / sqrt(900) = 1, times |w| if adaptive; twice the spacing of numbers between 2 and 4.
        expected = torch.full_like(weight, 4.0 if adaptive else 3.0)
        torch.testing.assert_close(weight.data, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_halves_out_of_order_are_refused() -> None:
    weights = make_weights()
    optimizer = SAM(weights, torch.optim.SGD, lr=0.1)
    for act in (optimizer.step, optimizer.second_step):
        with pytest.raises(RuntimeError, match="`step` needs a closure, or a `first_step`"):
            act()
    loss_of(weights, make_batches(1)[0]).backward()
    state = optimizer.state_dict()
    optimizer.first_step()
    for act in (
        optimizer.first_step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
    ):
        with pytest.raises(RuntimeError, match="came between the halves of a step"):
            act()


def test_zero_gradients_need_no_second_pass() -> None:
    """The climb is zero, so a second pass would find the same; how state is made to be loaded."""
    weights = make_weights()
    before = [weight.detach().clone() for weight in weights]
    optimizer = SAM(weights, torch.optim.Adam, lr=0.1)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    assert all("exp_avg" in optimizer.state[weight] for weight in weights)
    weights[0].grad = None
    weights[1].grad = torch.full_like(weights[1], 1e-6)
    with pytest.raises(RuntimeError, match="`step` needs a closure, or a `first_step`"):
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="takes no sparse gradients"):
        optimizer.first_step()
    assert not optimizer.in_second_pass


def test_wrong_arguments_are_named() -> None:
    weights = make_weights()
    with pytest.raises(ValueError, match=r"`rho` must be >= 0.0, got -0.1"):
        SAM(weights, torch.optim.SGD, rho=-0.1, lr=0.1)
    with pytest.raises(ValueError, match=r"`rho` must be >= 0.0, got nan"):
        SAM([{"params": weights, "rho": math.nan}], torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match="must be a class such as"):
        SAM(weights, torch.optim.SGD(weights, lr=0.1), lr=0.1)
    with pytest.raises(TypeError, match=r"must build a torch\.optim\.Optimizer, got \["):
        SAM(weights, list)
    with pytest.raises(ValueError, match="must have no rho of its own, got Adadelta"):
        SAM(weights, torch.optim.Adadelta, lr=0.1)
