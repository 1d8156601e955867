"""The example scripts as a user runs them; `.ci/run` runs each whole with --quick."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowres_vision.data import make_toy_folders
from lowres_vision.ensemble import OutOfFold

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


PAGES = sorted((EXAMPLES.parent / "docs" / "experiments").glob("*_*.md"))


@pytest.mark.skipif(not PAGES, reason="the documentation is in the checkout only")
def test_the_scripts_take_every_command_of_their_pages() -> None:
    code = f"import sys; sys.path[:0] = [{str(EXAMPLES)!r}]; import tyro, {', '.join(SCRIPTS)}\n"
    code = code.replace(".py", "")
    for page in PAGES:
        text = re.sub(r"\\\n", " ", page.read_text(encoding="utf-8"))
        commands = re.findall(r"^python examples/(\w+)\.py (.*)$", text, re.MULTILINE)
        assert len(commands) > 1
        for script, command in commands:
            line = shlex.split(command, comments=True)
            code += f"tyro.cli({script}.Settings, args={line!r})\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TINY = ["--backbone", "test_vit", "--image-size", 64, "--no-pretrained", "--folds", 2]
TINY += ["--epochs", 1, "--flip", 0.5]


@pytest.mark.parametrize("setting", ["64", "256to64", "64to256", "64to224"])
def test_birds_beit_runs_every_setting_on_the_users_files(
    setting: str, toy: Path, tmp_path: Path
) -> None:
    done = run("birds_beit.py", "--data", toy, "--out", tmp_path, "--variant", setting, *TINY)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "submission.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (toy / "sample_submission.csv").open() as file:
        assert [row["id"] for row in rows] == [row["id"] for row in csv.DictReader(file)]
    assert {row["label"] for row in rows} <= {"Amber Finch", "Azure Tit", "Bronze Heron"}
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    assert "class counts: {'Amber Finch': 12" in done.stdout
    assert "empty cells: {'img_path': 0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --data FOLDER, or --quick"),
        (["--data", "{toy}/train"], "train.csv is not a file"),
        (["--data", "{toy}"], "weights of 'beit_base_patch16_224.in22k_ft_in22k' are not"),
        (["--data", "{toy}", "--folds", "13"], "3 of 3 classes cannot be in each of 13 folds"),
        (["--data", "{toy}", "--checkpoint-path", "no.pth"], "`checkpoint_path` no.pth is not"),
    ],
)
def test_birds_beit_says_in_one_sentence_what_is_missing(
    arguments: list[str], words: str, toy: Path, tmp_path: Path
) -> None:
    filled = [argument.format(toy=toy) for argument in arguments]
    done = run("birds_beit.py", *filled, "--out", tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("found", "written", "words"),
    [
        ("label\n", "species\n", "train.csv: has no column `label`, so its rows are unlabelled"),
        ("train/TRAIN_00000.png", "train/GONE.png", "column `img_path`, ./train/GONE.png: file is"),
    ],
)
def test_birds_beit_names_the_fault_in_the_users_files(
    found: str, written: str, words: str, toy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(toy, folder)
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace(found, written, 1))
    done = run("birds_beit.py", "--data", folder, "--out", tmp_path / "out", *TINY)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("claims", ["--variant", "span"], "the row `span` takes --sr-weights FILE"),
        ("claims", ["--table", "--rows", "none", "span"], "the row `span` takes --sr-weights FILE"),
        (
            "claims",
            ["--resolution", "enlarged", "--variant", "none"],
            "the row `none` takes --sr-w",
        ),
        ("claims", ["--pseudo-labels", "runs"], "--pseudo-labels are for birds_multiresolution.py"),
        ("multiresolution", ["--resolution", "enlarged"], "enlarged takes --sr-weights FILE"),
        (
            "multiresolution",
            ["--backbones", "test_vit", "--lrs", "1e-3"],
            "beit+dinov2 takes 2 --backbones",
        ),
    ],
)
def test_birds_at_two_resolutions_say_what_is_missing(
    script: str, arguments: list[str], words: str, toy: Path, tmp_path: Path
) -> None:
    done = run(f"birds_{script}.py", "--data", toy, "--out", tmp_path, *arguments)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_painters_of_a_contest_are_not_named_in_the_test(tmp_path: Path) -> None:
    count = {"train": 6, "val": 3, "test": 2}
    folder = make_toy_folders(tmp_path / "data", per_class=count, size=32, label="artist")
    lines = (folder / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("\n".join(line.partition(",")[0] for line in lines))
    (folder / "artists.csv").write_text("name;genre\nMonet;Impressionism\nArp;Dada,Surrealism\n")
    tiny = ["--variant", "b2", "--stand-ins", "efficientnet_b2", "test_resnet", "--shrink", "0.1"]
    tiny += ["--no-pretrained", "--epochs", 1]
    done = run("painters_tinyvit.py", "--data", folder, "--out", tmp_path / "out", *tiny)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].split("|")[3].strip() == "-"  # no test F1
    assert len((tmp_path / "out/submission_b2.csv").read_text().splitlines()) == 9
    assert (tmp_path / "out/overview/genres.png").is_file()
    held_out = OutOfFold(tmp_path / "out/b2/ledger").ids
    assert len(held_out) == 12
    assert all(id.startswith("val/") for id in held_out)


@pytest.mark.slow
def test_birds_that_high_images_taught_are_blended_with_others(tmp_path: Path) -> None:
    outs = [tmp_path / "low", tmp_path / "pair"]
    for out in outs:
        done = run("birds_multiresolution.py", "--quick", "--resolution", out.name, "--out", out)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "pair-teachers").is_dir()
    command = [sys.executable, "-m", "lowres_vision", "ensemble", *outs]
    command += ["--submission", tmp_path / "blend.csv"]
    blended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert blended.returncode == 0, blended.stderr
    assert blended.stdout.count("its views") == 4  # two backbones, each trained in two ways
    assert (tmp_path / "blend.csv").is_file()


@pytest.mark.slow
def test_birds_go_on_with_a_teacher_that_was_begun(tmp_path: Path) -> None:
    (tmp_path / "high-ce/test_vit-high-ce-cutmix-64/seed_0/fold_0").mkdir(parents=True)
    done = run("birds_claims.py", "--quick", "--variant", "pair-ce", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| pair-ce | " in done.stdout


PICTURES = ("learning_curves", "confusion", "test_confusion", "test_images")
SCRIPTS = {  # script: what it prints of the row that --quick trains
    "birds_beit.py": "out-of-fold accuracy ",
    "birds_claims.py": "| both-cosine | ",
    "birds_multiresolution.py": "equal weights ",
    "cifar10_resizer.py": "| cbam-cutmix | ",
    "landmark_gem_arcface.py": "| 12 | ",
    "painters_tinyvit.py": "| SFCA | ",
}

ROWS = {  # script: how many its table has
    "birds_beit.py": 4,
    "birds_claims.py": 17,
    "birds_multiresolution.py": 3,
    "cifar10_resizer.py": 8,
    "landmark_gem_arcface.py": 13,
    "painters_tinyvit.py": 24,
}

IN_OUT = {  # script: what else it leaves
    "birds_multiresolution.py": [
        "table.md",
        "ensemble_beit+dinov2.png",
        "submission_beit+dinov2.csv",
        *(f"beit/{name}.png" for name in ("learning_curves", "confusion", "test_images")),
    ],
    "cifar10_resizer.py": [f"cbam-cutmix/{name}.png" for name in (*PICTURES, "resizer")],
    "landmark_gem_arcface.py": ["overview_val/counts.txt", *(f"12/{p}.png" for p in PICTURES)],
    "painters_tinyvit.py": [
        "overview/sizes.png",
        "submission_SFCA.csv",
        *(f"SFCA/{name}.png" for name in PICTURES),
    ],
}


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != "cifar10_resizer.py"])
def test_quick(script: str, tmp_path: Path) -> None:
    done = run(script, "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert SCRIPTS[script] in done.stdout
    assert not [name for name in IN_OUT.get(script, []) if not (tmp_path / name).is_file()]


@pytest.mark.parametrize(
    "script", ["cifar10_resizer.py", *(pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS)]
)
def test_what_is_finished_is_read_back(script: str, tmp_path: Path) -> None:
    done, again = (run(script, "--quick", "--out", tmp_path) for _ in range(2))
    assert again.returncode == 0, done.stderr + again.stderr
    assert SCRIPTS[script] in done.stdout
    assert not [name for name in IN_OUT.get(script, []) if not (tmp_path / name).is_file()]
    assert again.stdout.splitlines()[-2] == done.stdout.splitlines()[-2]
    found, found_again = (
        [line for line in ended.stdout.splitlines() if SCRIPTS[script] in line]
        for ended in (done, again)
    )
    assert found == found_again
    assert "Epoch" not in again.stdout


@pytest.mark.slow
def test_restyled_works_are_the_same_in_a_second_call(tmp_path: Path) -> None:
    # An argument of the row's backbone, which the judge of styles would not take.
    backbone = ("--timm-args", "no_embed_class", "1")
    arguments = ("--quick", "--variant", "style", *backbone, "--out", tmp_path)
    done, again = (run("painters_tinyvit.py", *arguments) for _ in range(2))
    assert again.returncode == 0, done.stderr + again.stderr
    assert again.stdout.splitlines()[-2] == done.stdout.splitlines()[-2]
    assert "Epoch" not in again.stdout


@pytest.mark.parametrize(
    "script", ["cifar10_resizer.py", *(pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS)]
)
def test_data_is_asked_for(script: str, tmp_path: Path) -> None:
    done = run(script, "--out", tmp_path)
    assert done.returncode != 0
    assert "give --data FOLDER, or --quick" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_row_runs(script: str, tmp_path: Path) -> None:
    done = run(script, "--quick", "--table", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    help_text = run(script, "--help").stdout
    assert len(rows) == ROWS[script]
    assert all(line.split("|")[1].strip() in help_text for line in rows)
    if script == "painters_tinyvit.py":
        assert len([*tmp_path.glob("ensemble_b2+*.png")]) == 2
        assert (tmp_path / "styled.png").is_file()
