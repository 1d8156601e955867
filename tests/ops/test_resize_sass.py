"""What the Triton kernels compile to, ahead of time and without a GPU.

The launcher runs with a stand-in for the driver that names a device, and its kernels are compiled
for that instead of launched; the bundled disassembler then shows the machine's instructions.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from lowres_vision.ops._resize import cuda
from lowres_vision.ops._resize.settings import Settings

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
pytestmark = pytest.mark.skipif(
    not DISASSEMBLER.exists(), reason="this build of Triton has no disassembler for CUDA"
)
B, C, SOURCE, SIZE = 2, 3, 64, 224
GAIN = torch.ones(C)
MIXUP = {"partner": torch.arange(B), "lam": torch.ones(B)}
MIXES = {"none": {}, "mixup": MIXUP, "cutmix": MIXUP | {"paste": torch.zeros(B, 4).long()}}


class Device:
    """As much of a driver as compiling asks for; kernels are cached by its device's number."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)


class Recorder:
    """The kernels' module, whose kernels compile where they would launch."""

    def __init__(self, kernels):
        self.kernels, self.compiled = kernels, {}

    def __getattr__(self, name):
        return Launcher(name, getattr(self.kernels, name), self.compiled)


class Launcher:
    def __init__(self, name, kernel, compiled):
        self.name, self.kernel, self.compiled = name, kernel, compiled

    def __getitem__(self, grid):
        def compile_(*args, **kwargs):
            self.compiled[self.name] = self.kernel.warmup(*args, grid=grid, **kwargs)

        return compile_


@pytest.fixture(params=[80, 90])
def assemble(request, monkeypatch, tmp_path):
    """Return a function that runs the launcher and returns its kernels' instructions by name."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    place = "_active" if hasattr(driver, "_active") else "active"  # of Triton 3.4
    active = getattr(driver, place)
    driver.set_active(Device(request.param))

    def run(*args, **kwargs):
        recorder = Recorder(cuda._kernels())
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "_kernels", lambda: recorder)
            cuda.run(*args, **kwargs)
        run.ptx = {name: kernel.asm["ptx"] for name, kernel in recorder.compiled.items()}
        return {name: instructions(k, tmp_path) for name, k in recorder.compiled.items()}

    yield run
    setattr(driver, place, active)


def instructions(kernel, folder):
    """A compiled kernel's lines: instructions and labels."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    text = subprocess.run(
        [DISASSEMBLER, "-c", binary], capture_output=True, text=True, check=True
    ).stdout
    lines = [re.sub(r"/\*.*?\*/", "", line).strip() for line in text.splitlines()]
    return [
        line
        for line in lines
        if re.match(r"\.L_x_\d+:", line)
        or (line.endswith(";") and not line.startswith(".") and "NOP" not in line)
    ]


def loops(lines):
    """The sets of instruction numbers of all loops, the largest first."""
    label = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
    found = {}
    for at, line in enumerate(lines):
        jump = re.search(r"BRA `\((\.L_x_\d+)\)", line)
        if jump and label[jump[1]] < at - 1:  # a jump to itself ends the program
            found[jump[1]] = at
    spans = [
        {at for at in range(label[name], end + 1) if not lines[at].endswith(":")}
        for name, end in found.items()
    ]
    return sorted(spans, key=len, reverse=True)


def operations(lines, name):
    return [match[0] for line in lines if (match := re.search(rf"\b{name}[.\w]*", line))]


def images(kind):
    if kind == "planes":
        return torch.empty(B, C, SOURCE, SOURCE, dtype=torch.uint8)
    return torch.empty(B, SOURCE, SOURCE, C, dtype=torch.uint8).permute(0, 3, 1, 2)


def result(dtype, channels_last=False):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((B, C, SIZE, SIZE), dtype=dtype, memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "cropped"), [("planes", False), ("pixels", True)])
def test_upsampling_costs_at_most_12_instructions_per_element(assemble, dtype, kind, cropped):
    boxes = torch.tensor([[0.0, 0.0, SOURCE, SOURCE]] * B) if cropped else None
    flip = torch.zeros(B, dtype=torch.bool) if cropped else None
    settings = Settings(boxes, flip, GAIN, GAIN)
    lines = assemble(result(dtype), [images(kind)], settings)["resize_kernel"]
    assert set(operations(lines, "STG")) == {"STG.E.128"}
    assert per_element(lines, C) <= 12


@pytest.mark.parametrize(("mode", "channels", "limit"), [("bilinear", C, 15), ("bicubic", 1, 26)])
def test_bytes_store_eight_at_a_time_and_round_as_pillow_does(assemble, mode, channels, limit):
    kernels = assemble(result(torch.uint8), [images("planes")], Settings(mode=mode))
    assert set(operations(kernels["resize_kernel"], "STG")) == {"STG.E.64"}
    assert per_element(kernels["resize_kernel"], channels) <= limit
    # Double precision that is fused, or divides by an approximation, gives other weights.
    assert set(re.findall(r"(?:fma|div)\S+f64", assemble.ptx["tap_kernel"])) == {"div.rn.f64"}


def per_element(lines, channels):
    """Instructions of a walk over ``channels``, per element that it writes; no lane waits."""
    for absent in ("BAR", "LDS", "STS", "LDL", "STL"):  # barriers, shared memory, spilled registers
        assert not operations(lines, absent)
    # One loop over output rows; within, one over the input rows that come into reach, K of them
    # at the start and then SOURCE / SIZE a row. One warp writes channels * SIZE elements.
    outer, inner = loops(lines)
    assert inner < outer
    before = sum(not line.endswith(":") for line in lines) - len(outer)
    rows_read = 2 + cuda._ROWS * SOURCE / SIZE
    issued = before + cuda._ROWS * len(outer - inner) + rows_read * len(inner)
    return 32 * issued / (cuda._ROWS * channels * SIZE)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix"])
def test_walking_needs_no_barrier_and_no_spill(assemble, mode, channels_last, mixing):
    flip = torch.zeros(B, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0.0, SOURCE, SOURCE]] * B)
    out = result(torch.float32, channels_last)
    settings = Settings(boxes, flip, GAIN, GAIN, mode, **MIXES[mixing])
    lines = assemble(out, [images("pixels")], settings)["resize_kernel"]
    assert set(operations(lines, "STG")) == {"STG.E.128"}
    for absent in ("BAR", "LDS", "STS", "LDL", "STL"):
        assert not operations(lines, absent)


@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix"])
def test_gradient_kernel_compiles_without_atomics(assemble, mixing):
    out = torch.empty(B, C, SOURCE, SOURCE)
    settings = Settings(gain=GAIN, **MIXES[mixing])
    kernels = assemble(out, [result(torch.bfloat16)], settings, backward=True)
    assert set(kernels) == {"tap_kernel", "count_kernel", "gradient_kernel"}
    assert operations(kernels["gradient_kernel"], "LDG.E.64")  # four bf16 at a time
    for name in ("ATOM", "RED"):
        assert not operations(kernels["gradient_kernel"], rf"{name}\b")
    # Who shares an image with whom costs a few registers more than there are.
    spilled = len(operations(kernels["gradient_kernel"], "STL"))
    assert spilled <= 8


def test_wide_filters_compile(assemble):
    out = torch.empty(B, C, 4, SIZE, dtype=torch.bfloat16)
    settings = Settings(gain=GAIN, bias=GAIN, mode="bicubic")
    kernels = assemble(out, [images("planes")], settings)
    assert set(kernels) == {"tap_kernel", "wide_kernel"}
    assert not operations(kernels["wide_kernel"], "BAR")
