"""The floors of the package, its public surface, and what importing it may load."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowres_vision

PACKAGE = Path(lowres_vision.__file__).parent
FLOORS = {
    0: ["_checks", "_files", "_modes", "_numerics", "_optional", "_random"],
    1: ["ops"],
    2: ["_batch"],
    3: ["attention", "data", "ensemble", "heads", "losses", "mixing", "optim", "pooling"],
    4: ["augment", "models", "resizer"],
    5: ["_doctor", "export", "plots"],
    6: ["__main__", "training"],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
OPTIONAL = [
    "lightning", "matplotlib", "onnx", "onnxruntime", "sklearn", "spandrel", "torchmetrics",
    "webdataset",
]  # fmt: skip
PARTS = sorted(part.name for part in pkgutil.iter_modules([str(PACKAGE)]))
PUBLIC = [name for name in PARTS if not name.startswith("_")]
NEEDS_EXTRA = {"plots", "training"}
SLOW = {"export", "models", "training"}  # with timm: 2 to 4 s


def imported_parts(file: Path) -> set[str]:
    """Return the parts of the package that a source file imports, function bodies included."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{file} imports relatively"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("lowres_vision.")}
    return parts


def source_files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


def test_every_part_has_a_floor() -> None:
    assert set(PARTS) <= set(FLOOR_OF)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_lower_floors_and_itself(part: str) -> None:
    for file in source_files(part):
        above = {
            other
            for other in imported_parts(file) - {part}
            if FLOOR_OF[other] > FLOOR_OF[part] or (FLOOR_OF[other] == FLOOR_OF[part] != 0)
        }
        assert not above, f"{file.relative_to(PACKAGE)} imports {sorted(above)}"


@pytest.mark.parametrize("part", PUBLIC)
def test_all_is_the_public_surface(part: str) -> None:
    module = importlib.import_module(f"lowres_vision.{part}")
    assert module.__all__ == sorted(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    undocumented = [name for name in module.__all__ if not getattr(module, name).__doc__]
    assert not undocumented


def test_each_public_name_has_one_import_path() -> None:
    homes: dict[str, str] = {}
    for part in PUBLIC:
        for name in importlib.import_module(f"lowres_vision.{part}").__all__:
            assert homes.setdefault(name, part) == part, f"{name} in {homes[name]} and {part}"


def run_fresh(code: str) -> str:
    """Run ``code`` in a new interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, lowres_vision; print(*[m for m in ('torch', 'numpy') if m in sys.modules])"
    assert run_fresh(code) == ""


def test_importing_the_package_adds_little_to_torch() -> None:
    clock = "time.process_time()"
    code = f"import time, torch; start = {clock}; import lowres_vision; print({clock} - start)"
    assert float(run_fresh(code)) < 0.2


def test_parts_without_timm_load_quickly() -> None:
    """torch's compiler takes two seconds to import, and timm and torchvision bring it along."""
    imports = "; ".join(f"import lowres_vision.{part}" for part in PUBLIC if part not in SLOW)
    slow = "('torch._dynamo', 'torchvision', 'timm', 'sympy', 'scipy', 'huggingface_hub')"
    code = f"import sys, torch; {imports}; print(*[m for m in {slow} if m in sys.modules])"
    assert run_fresh(code) == ""


def test_parts_load_no_optional_package() -> None:
    parts = [part for part in PUBLIC if part not in NEEDS_EXTRA]
    imports = "; ".join(f"import lowres_vision.{part}" for part in parts)
    code = f"import sys; {imports}; print(*[m for m in {OPTIONAL} if m in sys.modules])"
    assert run_fresh(code) == ""


@pytest.mark.parametrize(
    ("part", "package", "extra"),
    [("training", "lightning", "train"), ("plots", "matplotlib", "plot")],
)
def test_a_missing_extra_is_named(part: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        f"try:\n    import lowres_vision.{part}\n"
        f"except ModuleNotFoundError as error:\n    print(error)"
    )
    assert f"pip install 'lowres-vision[{extra}]'" in run_fresh(code)
