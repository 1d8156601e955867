from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowres_vision.plots import learning_curves


def test_a_line_per_fold_is_drawn(tmp_path: Path) -> None:
    for fold in range(2):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "metrics.csv").write_text(
            "epoch,step,train_loss,val_accuracy,val_loss,val_macro_f1\n"
            f"0,7,,0.4,1.{fold},0.35\n0,7,1.38,,,\n1,15,,0.{fold},1.1,0.5\n1,15,1.2,,,\n"
        )
    path = learning_curves(tmp_path, tmp_path / "curves.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    blue, orange = (
        np.abs(pixels - colour).sum(axis=1) for colour in ((31, 119, 180), (255, 127, 14))
    )
    assert (blue < 60).sum() > 100
    assert (orange < 60).sum() > 100


def test_an_empty_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no fold_\*/metrics.csv"):
        learning_curves(tmp_path, tmp_path / "curves.png")
