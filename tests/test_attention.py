import copy
import math

import pytest
import torch
from torch import nn

from lowres_vision.attention import CBAM, ChannelAttention, SpatialAttention

# Float64 on both sides: what is left is the order of the sums.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def channel_gate(x, w1, b1, w2, b2):
    B, C = x.shape[:2]
    hidden = len(b1)
    y = torch.empty_like(x)
    for b in range(B):
        logits = [0.0] * C
        for pool in (lambda values: sum(values) / len(values), max):
            pooled = [pool([float(v) for v in x[b, c].flatten()]) for c in range(C)]
            units = [
                max(0.0, float(b1[k]) + sum(float(w1[k, c]) * pooled[c] for c in range(C)))
                for k in range(hidden)
            ]
            for c in range(C):
                logits[c] += float(b2[c]) + sum(float(w2[c, k]) * units[k] for k in range(hidden))
        for c in range(C):
            y[b, c] = x[b, c] * sigmoid(logits[c])
    return y


def spatial_gate(x, kernel, weight, bias, mean, var, training):
    B, C, H, W = x.shape
    side = kernel.shape[-1]
    scores = torch.zeros(B, H, W, dtype=torch.float64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                for di in range(side):
                    for dj in range(side):
                        r, s = i + di - side // 2, j + dj - side // 2
                        if 0 <= r < H and 0 <= s < W:
                            values = [float(v) for v in x[b, :, r, s]]
                            scores[b, i, j] += float(kernel[0, 0, di, dj]) * max(values)
                            scores[b, i, j] += float(kernel[0, 1, di, dj]) * sum(values) / C
    if training:
        mean, var = scores.mean(), scores.var(correction=0)
    scores = (scores - mean) / math.sqrt(float(var) + 1e-5) * weight + bias
    gates = torch.tensor([sigmoid(float(v)) for v in scores.flatten()], dtype=torch.float64)
    return x * gates.view(B, 1, H, W)


def cbam(x, state, training):
    mlp = [state[f"channel.mlp.{k}"] for k in ("0.weight", "0.bias", "2.weight", "2.bias")]
    x = channel_gate(x, *mlp)
    norm = [state[f"spatial.norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var")]
    return spatial_gate(x, state["spatial.conv.weight"], *norm, training)


def randomise(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5, generator=generator)
    return module


def features(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 32, 4, 3), {}),
        ((2, 8, 3, 5), {"reduction": 4, "kernel_size": 3}),
        ((3, 5, 2, 2), {}),  # fewer channels than the reduction: one hidden unit
        ((2, 1, 1, 1), {"kernel_size": 1}),
        ((1, 16, 1, 2), {}),
    ],
)
def test_values_match_loops(shape, options, training):
    module = randomise(CBAM(shape[1], **options)).double().train(training)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x = features(*shape)
    torch.testing.assert_close(module(x), cbam(x, state, training), **EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training):
    module = randomise(CBAM(6, reduction=2, kernel_size=3)).double().train(training)
    x = features(2, 6, 3, 4).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        fresh = copy.deepcopy(module)  # running statistics would move between evaluations
        return torch.func.functional_call(fresh, dict(zip(names, parameters, strict=True)), (x,))

    torch.autograd.gradcheck(run, (x, *module.parameters()))


def test_channel_gate_is_one_mlp_for_both_descriptors():
    module = randomise(ChannelAttention(4, reduction=2)).double()
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 4), (2,), (4, 2), (4,)]
    constant = torch.full((1, 4, 3, 3), 0.7, dtype=torch.float64)  # mean and maximum are the same
    logits = 2 * module.mlp(constant[:, :, 0, 0])
    torch.testing.assert_close(module(constant), constant * logits.sigmoid()[..., None, None])


def test_spatial_gate_reads_maximum_first_and_mean_second():
    module = SpatialAttention(kernel_size=1).double().eval()
    x = features(2, 5, 3, 3)
    for plane, pooled in enumerate((x.amax(1, keepdim=True), x.mean(1, keepdim=True))):
        module.conv.weight.data.zero_()[0, plane] = 1
        expected = x * (pooled / math.sqrt(1 + 1e-5)).sigmoid()
        torch.testing.assert_close(module(x), expected, **EXACT)


def test_weights_in_the_authors_layout_load_in_order():
    shapes = [tuple(p.shape) for p in CBAM(32).parameters()]
    assert shapes == [(2, 32), (2,), (32, 2), (32,), (1, 2, 7, 7), (1,), (1,)]
    assert sum(p.numel() for p in CBAM(32).parameters()) == 262
    assert CBAM(32).spatial.norm.momentum == 0.01
    assert CBAM(32).spatial.norm.eps == 1e-5


@pytest.mark.parametrize("channels", [1, 3, 8, 15])
def test_fewer_channels_than_the_reduction_still_gate_by_the_input(channels):
    module = randomise(ChannelAttention(channels, reduction=16)).double()
    module.mlp[0].bias.data.fill_(1)  # the one unit is alive for either input
    module.mlp[0].weight.data.abs_()
    x = features(1, channels, 2, 2).abs()
    gates = [module(v).detach() / v for v in (x, 2 * x)]
    assert float((gates[0] - gates[1]).abs().max()) > 1e-3


def test_fresh_weights_let_both_gates_learn():
    module = CBAM(32, reduction=4)
    module(features(2, 32, 4, 4).float()).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


def test_one_single_pixel_map_is_refused_in_training_only():
    module = SpatialAttention()
    x = torch.ones(1, 8, 1, 1)
    with pytest.raises(ValueError, match=r"more than one position .* got shape \(1, 8, 1, 1\)"):
        module(x)
    assert module(torch.ones(2, 8, 1, 1)).isfinite().all()
    assert module.eval()(x).isfinite().all()


def test_layout_is_kept_and_changes_nothing():
    module = randomise(CBAM(8)).eval()
    x = features(2, 8, 5, 5, dtype=torch.float32)
    expected = module(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(module(x.repeat_interleave(2, dim=3)[..., ::2]), expected)


def test_bfloat16_autocast_stays_near_float64():
    module = randomise(CBAM(8)).eval()
    x = features(2, 8, 5, 5, dtype=torch.float32)
    exact = copy.deepcopy(module).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    # Two gates, each the sigmoid (slope 1/4) of sums rounded a few times at magnitude ~8.
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=4 * eps * float(x.abs().max()))


@pytest.mark.parametrize(
    "build",
    [lambda: CBAM(8), lambda: ChannelAttention(8), SpatialAttention],
    ids=["cbam", "channel", "spatial"],
)
def test_compiled_and_exported_match_eager(build):
    module = randomise(build()).double()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        results = []
        for run in (module, compiled):
            x = features(batch, 8, 4, 5).requires_grad_()
            y = run(x)
            y.square().sum().backward()
            results.append((y, x.grad))
        torch.testing.assert_close(results[0], results[1], **EXACT)
    module.eval()
    batch = torch.export.Dim("batch", min=1)
    example = (features(2, 8, 4, 5),)
    program = torch.export.export(module, example, dynamic_shapes=({0: batch},), strict=False)
    for size in (1, 5):
        x = features(size, 8, 4, 5)
        torch.testing.assert_close(program.module()(x), module(x), **EXACT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CBAM(0), "`channels` must be >= 1"),
        (lambda: CBAM(8, reduction=0), "`reduction` must be >= 1"),
        (lambda: CBAM(8, kernel_size=4), "`kernel_size` must be odd and > 0, got 4"),
    ],
)
def test_refuses_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_synchronised_norm_judges_the_number_of_values_itself():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(SpatialAttention())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(torch.ones(1, 8, 1, 1))
