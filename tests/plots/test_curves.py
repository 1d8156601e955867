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


def test_one_epoch_is_a_point_at_one_and_what_was_not_logged_is_said(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "metrics.csv").write_text("epoch,train_loss\n0,1.5\n")
    loss, accuracy, macro_f1 = learning_curves(tmp_path).axes
    assert loss.get_xticks().tolist() == [1]
    assert loss.lines[1].get_marker() == "x"
    for axes in (accuracy, macro_f1):
        assert [text.get_text() for text in axes.texts] == ["nothing logged"]


def test_many_or_long_names_stand_below_the_panels(tmp_path: Path) -> None:
    for fold in range(3):
        write(tmp_path / "a_model_with_a_long_name" / "seed_0" / f"fold_{fold}", fold)
    figure = learning_curves(tmp_path, tmp_path / "curves.png")
    assert figure.axes[2].get_legend() is None
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"a_model_with_a_long_name/seed_0/fold_{fold}" for fold in range(3)]


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "metrics.csv").write_text("epoch,train_loss\n0,x\n")
    with pytest.raises(ValueError, match=r"fold_0.metrics.csv has a cell that must be a number"):
        learning_curves(tmp_path)
