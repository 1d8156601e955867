"""What the experiments have in common around their own work: the command line and the table."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import small_backbones  # noqa: F401, two small names for timm
import torch
import tyro


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
