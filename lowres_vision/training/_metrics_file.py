"""metrics.csv: what a run logged, complete on disk at every checkpoint, resumed where it stood."""

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lowres_vision._files import write_whole
from lowres_vision.training._writer import Writer


class MetricsFile(Logger):
    """Writes ``metrics.csv``, a row per call and a column per name, whole at each save.

    Lightning's own CSV logger deletes the file of an interrupted run. This one goes on behind the
    row that the checkpoint knows of, so that the file of a resumed run is that of an unbroken one.

    Args:
        directory: Where the file goes.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        self.writer: Writer | None = None  # where there is one, it writes while training goes on
        self._written = 0

    @property
    def name(self) -> str:
        """Return no name: the directory says it."""
        return ""

    @property
    def version(self) -> str:
        """Return the name of the directory."""
        return self.path.parent.name

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row."""
        row = {
            name: str(value.item() if isinstance(value, Tensor) else value)
            for name, value in metrics.items()
        }
        self.rows.append({**row, "step": str(len(self.rows) if step is None else step)})

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings have their own file."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file, unless that waits for the checkpoint: Lightning calls at every row."""
        if self.writer is None:
            self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        self._write()

    def state_dict(self) -> dict[str, int]:
        """Write the file, and return the number of its rows."""
        self._write()
        return {"rows": len(self.rows)}

    @rank_zero_only
    def _write(self) -> None:
        if len(self.rows) == self._written:
            return
        self._written = len(self.rows)
        text = io.StringIO()
        columns = sorted(set().union(*self.rows))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write = partial(write_whole, self.path, text.getvalue().encode())
        write() if self.writer is None else self.writer.submit(lambda: write)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the row that ``state`` names.

        Raises:
            ValueError: If the file does not have as many rows.
        """
        if not state["rows"]:
            return
        found: list[dict[str, str]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                found = [
                    {name: cell for name, cell in row.items() if cell}
                    for row in csv.DictReader(file)
                ]
        if len(found) < state["rows"]:
            raise ValueError(
                f"{self.path} has {len(found)} rows, the checkpoint beside it knows of "
                f"{state['rows']}; delete the checkpoint to train this run from its beginning"
            )
        self.rows = found[: state["rows"]]
        self._written = -1 if len(found) > len(self.rows) else len(found)
