"""One entry of a ledger: what a checkpoint said of the rows its fold held out."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import NamedTuple


class Member(NamedTuple):
    """One column of the ledger: a model with its seed, seen through one view of the images."""

    model: str
    seed: int
    view: str


@dataclass(frozen=True)
class Entry:
    """What stands beside the probabilities of one checkpoint."""

    model: str
    seed: int
    view: str
    fold: int
    checkpoint_hash: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.model!r}, seed {self.seed}, view {self.view!r}, fold {self.fold}"

    @property
    def member(self) -> Member:
        """Return the column that it is a part of."""
        return Member(self.model, self.seed, self.view)

    @property
    def name(self) -> str:
        """Return a file name that reads well and that no other entry has."""
        key = json.dumps([self.model, self.seed, self.view, self.fold])
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.model}-{self.seed}-{self.view}")[:80]
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return f"{words}-fold{self.fold}-{digest}"

    def refuse_weights_of(self, other: "Entry") -> None:
        """Raise ValueError if weights and name of two entries contradict each other."""
        same_weights = other.checkpoint_hash == self.checkpoint_hash
        same_model = (other.model, other.seed, other.fold) == (self.model, self.seed, self.fold)
        if same_weights and not same_model:
            raise ValueError(
                f"`checkpoint_hash` is in the ledger as {other}: the same weights cannot be "
                f"{self} too, one of the two folds would be leaked or a model counted twice"
            )
        if same_model and not same_weights:
            raise ValueError(
                f"`checkpoint_hash` is not that of {other}: all views of one model, seed and fold "
                f"must be of the same weights; give other weights another model name or seed"
            )
