"""The C kernel under the address and undefined-behaviour sanitizers, over the random cases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowres_vision.ops._resize import native

CASES = 500

RUN = """
import ctypes, importlib.util, sys
import torch
from lowres_vision.ops._resize import native

library = ctypes.CDLL(sys.argv[1])
native._library = lambda: library

def load(path):
    spec = importlib.util.spec_from_file_location("cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

cases, rounded = load(sys.argv[2]), load(sys.argv[3])
torch.set_num_threads(2)
for instructions in cases.instruction_sets():
    for seed in range(int(sys.argv[4])):
        cases.check_forward(cases.random_case(seed), instructions)
        cases.check_backward(cases.random_case(seed), instructions)
cases.test_ragged_list_equals_each_image_alone()
for value in (float("nan"), float("inf"), -float("inf"), -1e30, 1e30, 0.0):
    cases.test_unchecked_boxes_stay_in_memory(value)
rounded.test_bytes_are_pillows("native")
rounded.test_instruction_sets_agree_on_fractional_boxes()
print("clean")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs gcc on Linux")
def test_random_cases_touch_no_foreign_memory(tmp_path):
    source = Path(native.__file__).with_name("native.c")
    library = tmp_path / "libresize.so"
    flags = ["-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined"]
    flags.append("-fno-sanitize-recover=all")
    subprocess.run(["gcc", *flags, "-o", library, source, "-lm", "-lpthread"], check=True)
    runtimes = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    # Tensors live in sanitized memory too, so a read beside an image is seen. Python itself
    # leaks by design.
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    cases = [Path(__file__).with_name(f"test_resize_{part}.py") for part in ("native", "rounded")]
    run = subprocess.run(
        [sys.executable, "-c", RUN, library, *cases, str(CASES)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.strip() == "clean"
