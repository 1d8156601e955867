import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowres_vision import ops
from lowres_vision.resizer import LearnableResizer, MullerResizer, Resize, _recompute

# Float64 on both sides: what is left is the order of the sums.
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bilinear_matrix(source, target):
    """Half-pixel centres, no antialias, written from the definition."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        position = max((i + 0.5) * source / target - 0.5, 0.0)
        low = min(int(position), source - 1)
        high = min(low + 1, source - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    return matrix


def bilinear(x, size):
    rows, columns = bilinear_matrix(x.shape[2], size[0]), bilinear_matrix(x.shape[3], size[1])
    return torch.einsum("ih,bchw,jw->bcij", rows, x, columns)


def batch_norm(x, weight, bias, mean, var, training):
    if training:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    scaled = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
    return scaled * weight[:, None, None] + bias[:, None, None]


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def learned_resize(x, state, size, *, blocks, attention, training):
    """The paper's network, taking its weights in the order of computation."""
    weights = iter(v for k, v in state.items() if not k.endswith("num_batches_tracked"))

    def take(n):
        return [next(weights) for _ in range(n)]

    def norm(x):
        return batch_norm(x, *take(4), training)

    def conv3(x):
        return F.conv2d(x, *take(1), padding=1)

    def cbam(x):
        w1, b1, w2, b2 = take(4)
        descriptors = x.flatten(2).mean(2), x.flatten(2).amax(2)
        logits = sum(torch.relu(d @ w1.T + b1) @ w2.T + b2 for d in descriptors)
        x = x / (1 + torch.exp(-logits[:, :, None, None]))
        maps = torch.stack((x.amax(1), x.mean(1)), dim=1)
        return x / (1 + torch.exp(-norm(F.conv2d(maps, *take(1), padding=3))))

    u = leaky(F.conv2d(x, *take(2), padding=3))
    u = norm(leaky(F.conv2d(u, *take(2))))
    s = h = bilinear(u, size)
    for _ in range(blocks):
        branch = norm(conv3(leaky(norm(conv3(h)))))
        h = h + (cbam(branch) if attention else branch)
    h = norm(conv3(h)) + s
    y = F.conv2d(h, *take(2), padding=3) + bilinear(x, size)
    assert next(weights, None) is None
    return y


def randomise(module, std=0.3):
    """Weights at which no BatchNorm is the identity and no bias is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, std, generator=generator)
    return module


def images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def train_step(module, x, grad):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(grad.to(y.dtype))
    return y.detach(), [x.grad, *(p.grad for p in module.parameters())]


def assert_gradients_close(gradients, expected):
    # Some cancel to zero, as that of a bias in front of a BatchNorm, but not to the last bit.
    atol = 1e-10 * max(float(g.abs().max()) for g in expected)
    torch.testing.assert_close(list(gradients), list(expected), rtol=1e-9, atol=atol)


# Learned resizer: values


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((2, 3, 8, 8), (28, 28), {}),
        ((2, 3, 8, 6), (21, 17), {}),  # odd output, another aspect ratio
        ((2, 3, 20, 9), (7, 12), {"blocks": 2}),  # down and up
        ((3, 1, 5, 5), (10, 9), {"in_channels": 1, "channels": 5, "blocks": 3}),
        ((2, 4, 6, 6), (6, 6), {"in_channels": 4, "channels": 32, "blocks": 0}),
        ((2, 3, 7, 7), (14, 10), {"blocks": 2, "attention": "cbam"}),
        ((2, 3, 7, 7), (9, 9), {"channels": 8, "attention": "cbam"}),  # fewer than the reduction
        ((1, 3, 6, 6), (8, 8), {}),
        ((2, 3, 1, 1), (4, 4), {}),
        ((2, 3, 5, 1), (1, 1), {}),
    ],
)
def test_values_and_gradients_match_the_definition(shape, size, options, training):
    resizer = randomise(LearnableResizer(size, **options)).double().train(training)
    state = {k: v.clone() for k, v in resizer.state_dict().items()}
    state |= {k: v.detach().clone().requires_grad_() for k, v in resizer.named_parameters()}
    x = images(*shape, dtype=torch.float64)
    grad = images(shape[0], shape[1], *size, dtype=torch.float64, seed=1)

    y, gradients = train_step(resizer, x, grad)

    x.requires_grad_()
    expected = learned_resize(
        x,
        state,
        size,
        blocks=options.get("blocks", 1),
        attention=options.get("attention"),
        training=training,
    )
    leaves = [x, *(state[k] for k, _ in resizer.named_parameters())]
    torch.testing.assert_close(y, expected, **EXACT)
    assert_gradients_close(gradients, torch.autograd.grad(expected, leaves, grad))


@pytest.mark.parametrize(
    ("channels", "blocks", "trainable", "statistics"),
    [
        (16, 1, 12_035, 128),
        (16, 2, 16_707, 192),
        (16, 3, 21_379, 256),
        (16, 4, 26_051, 320),
        (32, 1, 38_403, 256),
    ],
)
def test_parameter_count(channels, blocks, trainable, statistics):
    resizer = LearnableResizer(224, channels=channels, blocks=blocks)
    assert sum(p.numel() for p in resizer.parameters()) == trainable
    assert sum(b.numel() for b in resizer.buffers() if b.is_floating_point()) == statistics


def test_state_dict_is_in_the_order_of_computation():
    resizer = LearnableResizer(8, blocks=2, attention="cbam")
    called = []
    for name, module in resizer.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    resizer(images(2, 3, 4, 4))
    stored = [key.rpartition(".")[0] for key in resizer.state_dict()]
    assert list(dict.fromkeys(called)) == list(dict.fromkeys(stored))


@pytest.mark.parametrize("shape", [(2, 3, 9, 30), (2, 3, 64, 5), (1, 3, 31, 31)])
def test_any_input_goes_to_the_size_asked_for(shape):
    assert LearnableResizer((24, 33))(images(*shape)).shape == (shape[0], 3, 24, 33)


@pytest.mark.parametrize("training", [True, False])
def test_zero_init_is_exactly_the_bilinear_resize(training):
    resizer = LearnableResizer((20, 21), blocks=2, zero_init=True).train(training)
    x = images(2, 3, 8, 8)
    y = resizer(x)
    assert torch.equal(y, F.interpolate(x, (20, 21), mode="bilinear", align_corners=False))
    y.square().sum().backward()
    assert float(resizer.project.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("seed", range(20))
def test_channel_gate_is_alive_from_the_start(seed):
    torch.manual_seed(seed)
    resizer = LearnableResizer(16, attention="cbam")
    resizer(images(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in resizer.blocks.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


# Learned resizer: checkpointing


def pair(size, **options):
    """Two equal resizers of which the second has ``checkpoint=True``."""
    plain = randomise(LearnableResizer(size, **options))
    saving = LearnableResizer(size, **options, checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    return plain, saving


def assert_trains_alike(plain, saving, shape, *, steps=2):
    plain.double(), saving.double()
    for step in range(steps):
        x = images(*shape, dtype=torch.float64, seed=step)
        grad = images(shape[0], 3, *plain.size, dtype=torch.float64, seed=step + 9) - 0.3
        expected, expected_gradients = train_step(plain, x, grad)
        y, gradients = train_step(saving, x, grad)
        torch.testing.assert_close(y, expected, **EXACT)
        assert_gradients_close(gradients, expected_gradients)
    torch.testing.assert_close(saving.state_dict(), plain.state_dict(), **EXACT)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(12, 14), (7, 4)])
@pytest.mark.parametrize("part", [1, 2 * 16 * 12 * 14 * 8, 1 << 30])  # one, two and all images
def test_checkpoint_changes_nothing(blocks, size, part, monkeypatch):
    monkeypatch.setattr(_recompute, "_PART", part)
    assert_trains_alike(*pair(size, blocks=blocks), (5, 3, 5, 6))


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpoint_of_attention_changes_no_bit(autocast):
    plain, saving = pair((12, 14), blocks=2, attention="cbam")
    for step in range(2):
        x, grad = images(3, 3, 5, 5, seed=step), images(3, 3, 12, 14, seed=step + 9)
        results = []
        for resizer in (plain, saving):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                results.append(train_step(resizer, x, grad))
        (y, gradients), (saved_y, saved_gradients) = results
        assert torch.equal(y, saved_y)
        assert all(map(torch.equal, gradients, saved_gradients))
        for key, value in plain.state_dict().items():
            assert torch.equal(value, saving.state_dict()[key]), key
    assert int(saving.stem[-1].num_batches_tracked) == int(saving.fuse[-1].num_batches_tracked) == 2


def test_checkpoint_moves_cumulative_statistics_once():
    resizers = pair(8)
    for resizer in resizers:
        for module in resizer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
    assert_trains_alike(*resizers, (2, 3, 4, 4), steps=3)
    assert int(resizers[1].fuse[-1].num_batches_tracked) == 3


@pytest.mark.parametrize("norms", ["all", "fuse"])
def test_checkpoint_follows_norms_that_are_frozen(norms):
    resizers = pair(8, blocks=2)
    for resizer in resizers:
        resizer.eval() if norms == "all" else resizer.fuse.eval()
    assert_trains_alike(*resizers, (3, 3, 5, 5))


def test_checkpoint_trains_what_is_not_frozen():
    resizers = pair(8)
    for resizer in resizers:
        resizer.stem.requires_grad_(False)
        resizer.blocks[0].branch[0].requires_grad_(False)
        resizer.fuse[1].bias.requires_grad_(False)
        resizer(images(2, 3, 4, 4)).square().sum().backward()
    plain, saving = ([p.grad for p in resizer.parameters()] for resizer in resizers)
    assert [g is None for g in plain] == [g is None for g in saving]
    assert sum(g is None for g in saving) == 8


def test_checkpoint_in_half_precision_is_as_near_to_float64_as_without():
    plain, saving = pair(28)
    x, grad = images(4, 3, 8, 8), images(4, 3, 28, 28) - 0.3
    exact = train_step(copy.deepcopy(plain).double(), x.double(), grad.double())
    errors = []
    for resizer in (plain, saving):
        with torch.autocast("cpu", torch.bfloat16):
            y, gradients = train_step(resizer, x, grad)
        assert y.dtype == gradients[-1].dtype == torch.float32
        pairs = zip((y, *gradients), (exact[0], *exact[1]), strict=True)
        differences = [(found - expected).norm() for found, expected in pairs]
        errors.append(torch.stack(differences).norm())
    assert errors[1] < 2 * errors[0]
    for key, value in saving.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=0.02, atol=0.02)


def test_checkpoint_differentiates_the_weights_of_the_call():
    """With torch.func.functional_call the module holds others by the time of the backward pass."""
    plain, saving = (resizer.double() for resizer in pair(8))
    x = images(2, 3, 4, 4, dtype=torch.float64)
    gradients = []
    for resizer in (plain, saving):
        weights = {k: (2 * p).detach().requires_grad_() for k, p in resizer.named_parameters()}
        torch.func.functional_call(resizer, weights, (x,)).square().sum().backward()
        gradients.append([w.grad for w in weights.values()])
    assert_gradients_close(gradients[1], gradients[0])


def test_checkpoint_has_second_derivatives():
    results = []
    for resizer in pair(6):
        resizer.double()
        x = images(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(resizer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, *(p.grad for p in resizer.parameters() if p.grad is not None)])
        assert int(resizer.fuse[-1].num_batches_tracked) == 1
    assert_gradients_close(results[1], results[0])


def test_checkpoint_of_a_single_value_is_refused_as_without():
    for resizer in pair(1):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            resizer(images(1, 3, 4, 4))


def test_checkpoint_heeds_hooks():
    _, saving = pair(8)
    calls = []
    saving.fuse[0].register_forward_hook(lambda *_: calls.append(1))
    assert_trains_alike(copy.deepcopy(saving), saving, (2, 3, 4, 4), steps=1)
    assert calls


def _other_convolution(resizer):
    resizer.fuse[0] = nn.Conv2d(16, 16, 3, padding=2, dilation=2)


def _other_projection(resizer):
    resizer.project = nn.Conv2d(16, 3, 7, padding=3)


def _other_slope(resizer):
    resizer.blocks[0].branch[2].negative_slope = 0.5


def _norm_without_weights(resizer):
    resizer.fuse[1] = nn.BatchNorm2d(16, affine=False)


def _norm_that_keeps_its_statistics(resizer):
    resizer.fuse[1].track_running_stats = False


def _norm_that_does_not_count(resizer):
    resizer.fuse[1].num_batches_tracked = None


def _other_forward(resizer):
    """As accelerate wraps the layers of a model."""
    conv = resizer.fuse[0]
    conv.forward = lambda x: 2 * F.conv2d(x, conv.weight, padding=1)


def _normalised_weights(resizer):
    nn.utils.parametrizations.weight_norm(resizer.project)


CHANGES = (
    _other_convolution,
    _other_projection,
    _other_slope,
    _norm_without_weights,
    _norm_that_keeps_its_statistics,
    _norm_that_does_not_count,
    _other_forward,
    _normalised_weights,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_checkpoint_heeds_changed_layers(change):
    resizers = pair(8)
    for resizer in resizers:
        torch.manual_seed(1)
        change(resizer)
    assert_trains_alike(*resizers, (3, 3, 5, 5))


@pytest.mark.parametrize("attention", [None, "cbam"])
def test_checkpoint_under_the_transforms_of_torch_func(attention):
    plain, saving = (resizer.double().eval() for resizer in pair(8, attention=attention))
    x = images(2, 3, 4, 4, dtype=torch.float64)
    expected, found = (
        torch.func.grad(lambda image, r=resizer: r(image).square().sum())(x)
        for resizer in (plain, saving)
    )
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("options", [{}, {"attention": "cbam"}, {"checkpoint": True}])
def test_gradients_per_sample_by_vmap_are_those_of_a_loop(options):
    resizer = randomise(LearnableResizer(8, **options)).double().eval()
    x = images(3, 3, 4, 5, dtype=torch.float64)
    gradient = torch.func.grad(lambda image: resizer(image[None]).square().sum())
    alone = torch.stack([gradient(image) for image in x])
    torch.testing.assert_close(torch.func.vmap(gradient)(x), alone, **EXACT)


def test_checkpoint_can_be_traced():
    resizer = randomise(LearnableResizer(8, checkpoint=True)).eval()
    x = images(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jit.trace is deprecated, and warns of every shape check
        traced = torch.jit.trace(resizer, x)
    torch.testing.assert_close(traced(x), resizer(x))


def test_statistics_stay_where_they_are_when_the_backward_pass_fails():
    resizer = LearnableResizer(8, checkpoint=True)
    buffers = dict(resizer.named_buffers())
    passes = iter((None, ZeroDivisionError))
    handle = resizer.fuse.register_forward_hook(lambda *_: 1 / 0 if next(passes) else None)
    y = resizer(images(2, 3, 4, 4))
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    handle.remove()
    assert all(buffer is buffers[name] for name, buffer in resizer.named_buffers())


def held_megabytes(resizer, x):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = resizer(x)
    parameters = {p.data_ptr() for p in resizer.parameters()}
    del y
    return sum(n for address, n in kept.items() if address not in parameters) / 1e6


def test_checkpoint_holds_less_than_two_percent():
    x = images(2, 3, 32, 32)
    assert held_megabytes(LearnableResizer(224), x) / 2 > 20
    assert held_megabytes(LearnableResizer(224, checkpoint=True), x) / 2 < 0.4


# Learned resizer: layouts, precision, tracing


def test_layout_of_the_input_is_kept_and_changes_nothing():
    resizer = randomise(LearnableResizer(20)).eval()
    x = images(2, 3, 9, 9)
    y = resizer(x)
    assert y.is_contiguous()
    last = resizer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = resizer(x.repeat_interleave(2, dim=3)[..., ::2])
    torch.testing.assert_close(last, y)
    torch.testing.assert_close(strided, y)


def test_input_is_not_written_to():
    x = images(2, 3, 9, 9)
    before = x.clone()
    train_step(LearnableResizer(20, attention="cbam"), x, images(2, 3, 20, 20))
    assert torch.equal(x, before)


def test_bfloat16_autocast_stays_near_float64():
    resizer = LearnableResizer(28).train()
    x, grad = images(4, 3, 8, 8), images(4, 3, 28, 28)
    exact, exact_gradients = train_step(copy.deepcopy(resizer).double(), x.double(), grad.double())
    with torch.autocast("cpu", torch.bfloat16):
        y, gradients = train_step(resizer, x, grad)
    assert y.dtype == torch.float32
    # About ten roundings of half an eps lie between input and output, of values up to 4.
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=10 * eps / 2 * 4)
    gradient = torch.cat([g.flatten() for g in gradients])
    expected = torch.cat([g.flatten() for g in exact_gradients])
    assert (gradient - expected).norm() < 8 * eps * expected.norm()


def test_a_model_without_memory_gives_shapes():
    with torch.device("meta"):
        assert LearnableResizer(20, checkpoint=True)(torch.rand(2, 3, 8, 8)).shape == (2, 3, 20, 20)


MODULES = {
    "learned": lambda: randomise(LearnableResizer((20, 18)), 0.1),
    "learned odd": lambda: randomise(LearnableResizer((9, 11), attention="cbam"), 0.1),
    "learned checkpoint": lambda: randomise(LearnableResizer((20, 18), checkpoint=True), 0.1),
    "muller": lambda: randomise(MullerResizer((20, 18))),
    "muller pooled": lambda: MullerResizer((4, 3), average_pool=True, weights=[(2, 0), (-3, 0.1)]),
    "resize": lambda: Resize((20, 18), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_whole_trains_as_eager(name, backend):
    eager = MODULES[name]().double()
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=backend)
    for batch in (2, 3):
        x = images(batch, 3, 9, 10, dtype=torch.float64)
        grad = images(batch, 3, *eager.size, dtype=torch.float64, seed=1)
        expected, expected_gradients = train_step(eager, x, grad)
        y, gradients = train_step(compiled, x, grad)
        torch.testing.assert_close(y, expected, **EXACT)
        assert_gradients_close(gradients, expected_gradients)
    torch.testing.assert_close(compiled._orig_mod.state_dict(), eager.state_dict(), **EXACT)


@pytest.mark.parametrize("name", MODULES)
def test_exported_with_a_dynamic_batch_matches_eager(name):
    eager = MODULES[name]().eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        eager, (images(2, 3, 9, 10),), dynamic_shapes=({0: batch},), strict=False
    )
    for size in (1, 5):
        x = images(size, 3, 9, 10)
        torch.testing.assert_close(program.module()(x), eager(x))


@pytest.mark.parametrize("name", ["learned", "learned odd", "muller"])
def test_onnx_runtime_matches_eager(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    eager = MODULES[name]().eval()
    path = tmp_path / "resizer.onnx"
    torch.onnx.export(
        eager,
        (images(2, 3, 9, 10),),
        path,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images(5, 3, 9, 10)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, eager(x).detach().numpy(), rtol=0, atol=1e-5)


# Learned resizer: refusals


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "float, got torch.uint8; scale it"),
        (torch.zeros(3, 8, 8), ValueError, r"\(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), ValueError, r"\(B, 3, H, W\), got \(2, 1, 8, 8\)"),
    ],
)
def test_learned_refuses(x, error, message):
    with pytest.raises(error, match=message):
        LearnableResizer(16)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size` must be"),
        ({"size": 8, "channels": 0}, "`channels` must be >= 1"),
        ({"size": 8, "in_channels": 0}, "`in_channels` must be >= 1"),
        ({"size": 8, "blocks": -1}, "`blocks` must be >= 0"),
        ({"size": 8, "attention": "se"}, "`attention` must be None or 'cbam', got 'se'"),
    ],
)
def test_learned_refuses_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        LearnableResizer(**options)


# MULLER


def muller(x, size, weights, *, kernel_size=5, stddev=1.0, average_pool=False):
    """The authors' definition for one (H, W) channel, in float64 loops over taps and blocks."""
    radius = kernel_size // 2
    taps = np.exp(-((np.arange(kernel_size) - radius) ** 2) / (2 * stddev**2))
    taps /= taps.sum()

    def blur(image):
        for axis in (0, 1):
            width = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
            padded = np.pad(image, width)
            moved = [
                np.take(padded, np.arange(image.shape[axis]) + k, axis) for k in range(len(taps))
            ]
            image = sum(tap * part for tap, part in zip(taps, moved, strict=True))
        return image

    def pool(image, block):
        counts = [-(-n // b) for n, b in zip(image.shape, block, strict=True)]
        near = [(c * b - n) // 2 for c, b, n in zip(counts, block, image.shape, strict=True)]
        pooled = np.empty(counts)
        for i, j in np.ndindex(*counts):
            top, left = i * block[0] - near[0], j * block[1] - near[1]
            rows = slice(max(top, 0), top + block[0])
            pooled[i, j] = image[rows, max(left, 0) : left + block[1]].mean()
        return pooled

    def resize(image):
        block = image.shape[0] // size[0], image.shape[1] // size[1]
        if average_pool and min(block) > 1:
            image = pool(image, block)
        return bilinear(torch.from_numpy(image)[None, None], size)[0, 0].numpy()

    result = resize(x)
    for alpha, beta in weights:
        blurred = blur(x)
        result = result + np.tanh(alpha * resize(blurred - x) + beta)
        x = blurred
    return result


RESNET50 = [(1.892, -0.014), (-11.295, 0.003)]


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((8, 8), (28, 20), {}),
        ((9, 12), (4, 5), {}),
        ((9, 12), (4, 5), {"average_pool": True}),
        ((11, 13), (3, 4), {"average_pool": True}),
        ((31, 17), (4, 4), {"average_pool": True}),
        ((16, 6), (4, 5), {"average_pool": True}),  # no pooling: one side is not halved
        ((7, 7), (9, 9), {"kernel_size": 3, "stddev": 0.7}),
        ((1, 3), (4, 4), {}),
    ],
)
def test_muller_matches_the_authors_definition(shape, size, options):
    x = images(2, 3, *shape, dtype=torch.float64)
    # The Gaussian is stored in float32, so it is what limits the agreement.
    y = MullerResizer(size, weights=RESNET50, **options).double()(x).detach()
    for b, c in np.ndindex(2, 3):
        expected = muller(x[b, c].numpy(), size, RESNET50, **options)
        np.testing.assert_allclose(y[b, c], expected, rtol=0, atol=1e-5)


def test_muller_starts_as_the_plain_resize_and_learns_from_there():
    resizer = MullerResizer((20, 24))
    x = images(2, 3, 9, 9)
    y = resizer(x)
    assert torch.equal(y, ops.resize(x, (20, 24), antialias=False))
    assert sum(p.numel() for p in resizer.parameters()) == 4
    (y * images(2, 3, 20, 24, seed=1)).sum().backward()
    assert (resizer.alpha.grad != 0).all()
    assert (resizer.beta.grad != 0).all()


def test_muller_gradients():
    resizer = MullerResizer((6, 5), layers=3, weights=[(0.5, 0.1), (-1, 0.2), (2, -0.1)]).double()
    x = images(1, 2, 4, 4, dtype=torch.float64).requires_grad_()

    def run(x, alpha, beta):
        return torch.func.functional_call(resizer, {"alpha": alpha, "beta": beta}, (x,))

    torch.autograd.gradcheck(run, (x, *resizer.parameters()))


def test_muller_adds_no_detail_to_a_constant_image_away_from_the_border():
    resizer = MullerResizer(24, weights=[(-4, 0), (-4, 0)])
    y = resizer(torch.full((1, 3, 24, 24), 0.7))
    inside = y[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_muller_keeps_small_differences_in_half_precision(dtype):
    resizer = MullerResizer(20, weights=RESNET50)
    x = images(2, 3, 9, 9).to(dtype)
    exact = resizer(x.float())
    y = resizer(x)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resizer(x.float()), exact)


def test_muller_options_reach_the_plain_resize():
    x = images(2, 3, 16, 16)
    y = MullerResizer(6, mode="bicubic", antialias=True)(x)
    assert torch.equal(y, ops.resize(x, 6, mode="bicubic", antialias=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "`layers` must be >= 1"),
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
        ({"stddev": 0}, "`stddev` must be > 0"),
        ({"mode": "area"}, "`mode` must be one of"),
        ({"weights": [(1, 2)]}, r"`weights` must be 2 pairs \(alpha, beta\)"),
    ],
)
def test_muller_refuses_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        MullerResizer(8, **options)


def test_muller_refuses():
    with pytest.raises(TypeError, match="; scale it first"):
        MullerResizer(8)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got shape \(3, 4, 4\)"):
        MullerResizer(8)(torch.zeros(3, 4, 4))


# Plain resize


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2)},
        {"mean": torch.tensor([0.5, 0.4, 0.3]), "mode": "bicubic", "antialias": False},
        {"dtype": torch.bfloat16, "channels_last": True},
    ],
)
def test_resize_is_the_function(options):
    x = torch.randint(256, (2, 3, 16, 12), generator=torch.Generator().manual_seed(0)).byte()
    y, expected = Resize((7, 20), **options)(x), ops.resize(x, (7, 20), **options)
    assert torch.equal(y, expected)
    assert (y.dtype, y.stride()) == (expected.dtype, expected.stride())


def test_resize_takes_images_of_several_sizes_and_keeps_no_state():
    resize = Resize(8)
    assert resize([torch.zeros(3, 5, 6).byte(), torch.zeros(3, 9, 4).byte()]).shape == (2, 3, 8, 8)
    assert not resize.state_dict()


def test_repr_shows_the_arguments():
    assert "size=(8, 9)" in repr(Resize((8, 9)))
    assert "layers=2" in repr(MullerResizer(8))
