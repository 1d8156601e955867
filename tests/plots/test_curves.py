from pathlib import Path

import pytest

from lowres_vision.plots import learning_curves


def write(folder: Path, fold: int) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "epoch,step,train_loss,val_accuracy,val_loss,val_macro_f1\n"
        f"0,7,,0.4,1.{fold},0.35\n0,7,1.38,,,\n1,15,,0.{fold},1.1,0.5\n1,15,1.2,,,\n"
    )


def test_a_line_per_fold_is_drawn(tmp_path: Path) -> None:
    for fold in range(2):
        write(tmp_path / f"fold_{fold}", fold)
    figure = learning_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    loss, accuracy, macro_f1 = figure.axes
    drawn = [line.get_xydata().tolist() for line in loss.lines]
    assert drawn == [
        [[1, 1.0], [2, 1.1]],
        [[1, 1.38], [2, 1.2]],
        [[1, 1.1], [2, 1.1]],
        [[1, 1.38], [2, 1.2]],
    ]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.4, 0.0], [0.4, 0.1]]
    assert [line.get_ydata().tolist() for line in macro_f1.lines] == [[0.35, 0.5]] * 2
    assert [text.get_text() for text in macro_f1.get_legend().texts] == ["fold_0", "fold_1"]
    colours = [line.get_color() for line in accuracy.lines]
    assert len(set(colours)) == 2


def test_models_and_seeds_are_told_apart(tmp_path: Path) -> None:
    for model in ("resnet", "vit"):
        for fold in range(6):
            write(tmp_path / model / f"fold_{fold}", fold)
    accuracy = learning_curves(tmp_path).axes[1]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in accuracy.lines}) == 12
    assert accuracy.lines[0].get_label() == "resnet/fold_0"


def test_an_empty_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no fold_\*/metrics.csv"):
        learning_curves(tmp_path)
