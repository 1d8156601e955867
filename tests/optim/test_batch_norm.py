import pytest
import torch
from torch import Tensor, nn

from lowres_vision.optim import SAM, keep_batch_norm_statistics

LAYERS = [
    nn.BatchNorm1d(3),
    nn.BatchNorm1d(3, momentum=None),
    nn.BatchNorm1d(3, momentum=0.4),
    nn.BatchNorm1d(3, track_running_stats=False),
]


def make_model(layer: nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"momentum": layer.momentum, "track_running_stats": layer.track_running_stats}
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, **options), nn.Linear(3, 2)).double()


def draw(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_statistics_stay_and_the_output_is_that_of_the_batch(layer: nn.BatchNorm1d) -> None:
    model, free = make_model(layer), make_model(layer)
    before = buffers(model)
    with keep_batch_norm_statistics(model):
        kept = model(draw(1))
    assert_same(buffers(model), before)
    torch.testing.assert_close(kept, free(draw(1)), rtol=0, atol=0)
    assert model[1].momentum == layer.momentum


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_the_next_pass_goes_on_as_if_nothing_had_been(layer: nn.BatchNorm1d) -> None:
    model, free = make_model(layer), make_model(layer)
    model(draw(1)), free(draw(1))
    with keep_batch_norm_statistics(model):
        model(draw(2))
    model(draw(3)), free(draw(3))
    assert_same(buffers(model), buffers(free))


def test_contexts_may_be_nested_and_left_by_an_error() -> None:
    model = make_model(LAYERS[0])
    before = buffers(model)

    def fail_inside() -> None:
        with keep_batch_norm_statistics(model), keep_batch_norm_statistics(model):
            model(draw(1))
            raise RuntimeError("in the second pass")

    with pytest.raises(RuntimeError, match="in the second pass"):
        fail_inside()
    assert_same(buffers(model), before)
    with keep_batch_norm_statistics(model):
        with keep_batch_norm_statistics(model):
            model(draw(1))
        model(draw(2))
        assert model[1].num_batches_tracked == 1
    assert_same(buffers(model), before)
    model(draw(3))
    assert model[1].num_batches_tracked == 1


def test_the_buffers_are_the_same_tensors_afterwards() -> None:
    """An average of the model, or a compiled one, may hold on to them."""
    model = make_model(LAYERS[0])
    identities = [id(buffer) for buffer in model.buffers()]
    with keep_batch_norm_statistics(model):
        model(draw(1))
    assert [id(buffer) for buffer in model.buffers()] == identities


def test_the_backward_pass_may_come_afterwards() -> None:
    model, free = make_model(LAYERS[0]), make_model(LAYERS[0])
    with keep_batch_norm_statistics(model):
        outputs = model(draw(1))
    outputs.square().sum().backward()
    free(draw(1)).square().sum().backward()
    for a, b in zip(model.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_a_frozen_layer_stays_frozen() -> None:
    model = make_model(LAYERS[0])
    model(draw(1))
    model[1].eval()
    expected = model(draw(2))
    with keep_batch_norm_statistics(model):
        torch.testing.assert_close(model(draw(2)), expected, rtol=0, atol=0)
    assert not model[1].training
    assert model[0].training


def test_disabled_it_does_nothing() -> None:
    model = make_model(LAYERS[0])
    with keep_batch_norm_statistics(model, enabled=False):
        model(draw(1))
    assert model[1].num_batches_tracked == 1


def test_other_buffers_are_left_alone() -> None:
    model = make_model(LAYERS[0])
    model.register_buffer("counter", torch.zeros(()))
    with keep_batch_norm_statistics(model):
        model.counter += 1
    assert model.counter == 1


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_steps_of_sam_count_the_first_pass_only(layer: nn.BatchNorm1d) -> None:
    """The reference computes means and variances from the weights at the start of each step."""
    model = make_model(layer)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    for step in range(1, 5):
        hidden = (draw(step) @ model[0].weight.T + model[0].bias).detach()
        share = 1 / step if layer.momentum is None else layer.momentum
        mean = (1 - share) * mean + share * hidden.mean(dim=0)
        variance = (1 - share) * variance + share * hidden.var(dim=0, unbiased=True)

        def closure(images: Tensor = draw(step)) -> Tensor:  # noqa: B008
            optimizer.zero_grad()
            with keep_batch_norm_statistics(model, enabled=optimizer.in_second_pass):
                loss: Tensor = model(images).square().mean()
                loss.backward()
            return loss

        optimizer.step(closure)
        assert model[1].num_batches_tracked == step
        # Means of six products of four terms each.
        tolerance = 64 * torch.finfo(torch.float64).eps
        torch.testing.assert_close(model[1].running_mean, mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(model[1].running_var, variance, rtol=tolerance, atol=tolerance)
