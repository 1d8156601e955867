import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowres_vision.__main__ import main
from lowres_vision.ensemble import OutOfFold

CLASSES = ["Finch", "Tit"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Write the runs of two models in one folder."""
    labels = np.arange(80) % 2
    ids = [f"row_{row}" for row in range(80)]
    for seed, model in enumerate(("resnet18", "vit")):
        folder = tmp_path / "runs" / model
        ledger = OutOfFold.create(
            folder / "ledger", ids=ids, labels=labels, classes=CLASSES,
            fold_of=np.arange(80) // 4 % 2, data_hash="d",
        )  # fmt: skip
        random = np.random.default_rng(seed)
        p = 1 / (1 + np.exp(random.normal(size=80) + 2 * labels - 1))
        p = np.stack([p, 1 - p], axis=1)
        for fold in range(2):
            rows = np.flatnonzero(ledger.fold_of == fold)
            ledger.add(
                p[rows], ids=[ids[row] for row in rows], model=model, fold=fold, classes=CLASSES,
                data_hash="d", fold_hash=ledger.fold_hash, checkpoint_hash=f"{model}{fold}",
            )  # fmt: skip
        np.savez(
            folder / "test_probabilities.npz", ids=np.array(["x", "y"]), classes=np.array(CLASSES),
            models=np.array([model]), seeds=np.array([0]), views=np.array(["plain"]),
            probabilities=np.array([[[[0.9, 0.1], [0.2, 0.8]]] * 2]),
        )  # fmt: skip
    return tmp_path / "runs"


def test_it_prints_the_table_and_writes_what_it_is_asked_for(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("id,label\ny,Finch\nx,Finch\n")
    arguments = ["ensemble", runs / "resnet18", runs / "vit", "--metric", "accuracy"]
    arguments += ["--picture", tmp_path / "table.png", "--merged", tmp_path / "merged"]
    arguments += ["--submission", tmp_path / "out.csv", "--sample", sample]
    main([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("accuracy")
    assert [line for line in lines if line.startswith(("resnet18, seed 0 ", "vit, seed 0 "))]
    assert any(line.startswith("blend less best member") for line in lines)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out.csv").read_text() == "id,label\ny,Tit\nx,Finch\n"
    assert (tmp_path / "out.probabilities.npz").is_file()
    assert len(OutOfFold(tmp_path / "merged").members()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ensemble", "nowhere"], "nowhere holds no ledger"),
        (["ensemble", "{runs}", "--submission", "out.csv", "--sample", "none.csv"], "none.csv"),
        (["ensemble", "{runs}", "--sample", "none.csv"], "--sample is to check --submission by"),
        (["ensemble"], "the following arguments are required: runs"),
        ([], "the following arguments are required: COMMAND"),
        (["ensemble", "{runs}", "--metric", "f1"], "invalid choice: 'f1'"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(
    arguments: list[str], words: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([argument.format(runs=runs) for argument in arguments])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_it_runs_as_a_module_and_needs_no_extra(runs: Path) -> None:
    hide = "import sys; sys.modules['matplotlib'] = sys.modules['lightning'] = None; "
    code = f"{hide}import runpy; sys.argv = ['lowres_vision', 'ensemble', {str(runs)!r}]; "
    code += "runpy.run_module('lowres_vision', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("macro_f1")


def test_an_extra_that_is_missing_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "lowres_vision.plots", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["ensemble", str(runs), "--picture", "table.png"])
    assert stop.value.code == 2
    assert "pip install 'lowres-vision[plot]'" in capsys.readouterr().err
