"""What the experiments share around their own work: command line, weights, table."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_backbones  # noqa: F401, two small names for timm
import torch
import tyro

from lowres_vision.models import LowResClassifier


def start(
    main: Callable[[Any], None],
    settings: type,
    *,
    quick: Mapping[str, Any],
    generate: Callable[[Any], Path],
    description: str,
) -> None:
    """Call ``main`` with the settings of the command line; a fault of the user's is one line.

    With ``--quick``, ``generate`` makes the data, and the settings ``quick`` overrule the others.
    """
    found = tyro.cli(settings, description=description)
    try:
        if found.quick:
            # Tensors this small: 7 s, and 58 s on two threads of a busy machine.
            torch.set_num_threads(1)
            found = dataclasses.replace(found, data=generate(found), **quick)
        if found.data is None:
            raise ValueError("give --data FOLDER, or --quick to try generated images")
        main(found)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def network(
    settings: Any, backbone: str, classes: int, weights: Path | None = None, **options: Any
) -> LowResClassifier:
    """Return a network with the weights that the settings ask for: a file's, timm's or none."""
    pretrained = settings.pretrained and weights is None
    return LowResClassifier(
        backbone,
        classes,
        pretrained=pretrained,
        checkpoint_path=weights,
        **settings.timm_args,
        **options,
    )


def stand_in(settings: Any, backbone: str, classes: int, **options: Any) -> LowResClassifier:
    """Return a row's network, or the one that the settings put in its place, by their weights."""
    name = settings.stand_ins.get(backbone, backbone)
    return network(settings, name, classes, settings.checkpoint_paths.get(name), **options)


def spread(scores: Sequence[float], digits: int = 4) -> str:
    """Return mean and standard deviation over seeds, and each score; ``-`` without any."""
    each = [f"{score:.{digits}f}" for score in scores]
    if len(each) < 2:
        return "".join(each) or "-"
    return f"{np.mean(scores):.{digits}f} ± {np.std(scores):.{digits}f} ({' '.join(each)})"


class Table:
    """A table in Markdown that is in its file from the first row on."""

    def __init__(self, file: Path, *headings: str) -> None:
        self.file = file
        self.text = f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|\n"

    def add(self, *cells: str) -> None:
        self.text += f"| {' | '.join(cells)} |\n"
        self.file.write_text(self.text, encoding="utf-8")

    def __str__(self) -> str:
        return self.text.rstrip()
