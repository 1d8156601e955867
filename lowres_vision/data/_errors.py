"""Faults in the user's files, collected and told at once."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHOWN = 20
_MAX_FAULTS = 1000


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the user's data, and what to do about it.

    ``row`` counts the data rows of the CSV from 1 (None: the fault is not in one row), ``column``
    is the CSV column and ``path`` the file, each None where it does not apply.
    """

    reason: str
    remedy: str
    row: int | None = None
    column: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        """Return one line: where, what, remedy."""
        where = [
            f"row {self.row}" if self.row is not None else "",
            f"column `{self.column}`" if self.column else "",
            str(self.path or ""),
        ]
        place = ", ".join(part for part in where if part)
        return (
            f"{place}: {self.reason}; {self.remedy}" if place else f"{self.reason}; {self.remedy}"
        )


class DataError(ValueError):
    """The user's files cannot be used as they are; ``faults`` holds every reason found.

    The message shows the first 20 faults and counts the rest. Raised again from a DataLoader
    worker, the error keeps its words only, and ``faults`` is empty.
    """

    def __init__(self, source: object, faults: Sequence[Fault] = ()) -> None:
        """Tell of ``faults`` in ``source``, a file or folder; without faults, ``source`` is all."""
        self.source = str(source)
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults[:_SHOWN]]
        if not lines:
            super().__init__(self.source)
            return
        if len(self.faults) > _SHOWN:
            lines.append(f"... and {len(self.faults) - _SHOWN} more faults")
        if len(lines) == 1:
            message = f"{self.source}: {lines[0]}"
        else:
            message = f"{self.source}: {len(self.faults)} faults\n  " + "\n  ".join(lines)
        super().__init__(message)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, tuple[Fault, ...]]]:
        """Pickle by arguments, so that the error crosses from a DataLoader worker."""
        return DataError, (self.source, self.faults)


def limited(faults: Iterable[Fault], column: str | None = None) -> list[Fault]:
    """Return the first 1,000 faults, and one that counts the rest."""
    remaining = iter(faults)
    shown = list(itertools.islice(remaining, _MAX_FAULTS))
    if rest := sum(1 for _ in remaining):
        reason = f"has {rest:,} more such faults"
        shown.append(Fault(reason, "mend the first and look again", column=column))
    return shown
