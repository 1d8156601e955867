"""What a cross-validation learned, by model and seed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from lowres_vision.ensemble import Member

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a cross-validation learned.

    A member is a model trained with one seed. Where there is one, its scores and predictions are
    attributes here; where there are several, :meth:`of` gives each as if it were alone, and asking
    for the attributes of one is an error that says so.

    Attributes:
        members: Models and seeds, in the order of the arrays.
        labels: ``(N,)`` class of each row.
        fold_of: ``(N,)`` fold that held each row out, -1 where none did.
        stack: ``(members, N, K)`` prediction of each row by the run that had not seen it; NaN
            where no fold held it out.
        test_stack: ``(members, folds, M, K)`` predictions of the test rows, or None.
        epochs: For each member, the epoch whose weights each fold kept, from 0.
        seconds: Time that training took in all runs; of one that was interrupted, since then.
    """

    members: tuple[Member, ...]
    labels: npt.NDArray[np.int64]
    fold_of: npt.NDArray[np.int64]
    stack: Floats
    test_stack: Floats | None
    epochs: tuple[tuple[int, ...], ...]
    seconds: float

    def of(self, model: str, *, seed: int | None = None) -> "CrossValidation":
        """Return the member of that name, and seed where it has several.

        Raises:
            KeyError: If there is none, or more than one.
        """
        found = [
            index
            for index, member in enumerate(self.members)
            if member.model == model and seed in (None, member.seed)
        ]
        if len(found) != 1:
            known = ", ".join(f"{member.model!r} seed {member.seed}" for member in self.members)
            raise KeyError(f"{len(found)} members are {model!r}, seed {seed}; there are {known}")
        index = found[0]
        return CrossValidation(
            members=(self.members[index],),
            labels=self.labels,
            fold_of=self.fold_of,
            stack=self.stack[index : index + 1],
            test_stack=None if self.test_stack is None else self.test_stack[index : index + 1],
            epochs=(self.epochs[index],),
            seconds=self.seconds,
        )

    @property
    def probabilities(self) -> Floats:
        """``(N, K)`` prediction of each row by the run that had not seen it."""
        self._require_one("probabilities", "stack")
        first: Floats = self.stack[0]
        return first

    @property
    def test_probabilities(self) -> Floats | None:
        """``(folds, M, K)`` predictions of the test rows, or None."""
        self._require_one("test_probabilities", "test_stack")
        return None if self.test_stack is None else self.test_stack[0]

    @property
    def accuracy(self) -> float:
        """Share of the rows held out whose prediction is right."""
        self._require_one("accuracy", "stack")
        truth, predicted = self._scored()
        return float((predicted == truth).mean())

    @property
    def macro_f1(self) -> float:
        """Mean over classes of F1, on the predictions of all folds at once."""
        self._require_one("macro_f1", "stack")
        truth, predicted = self._scored()
        return float(f1_score(truth, predicted, average="macro"))

    @property
    def accuracy_by_fold(self) -> tuple[float, ...]:
        """Share of each fold's rows whose prediction is right."""
        self._require_one("accuracy_by_fold", "stack")
        correct = self.stack[0].argmax(axis=1) == self.labels
        folds = range(int(self.fold_of.max()) + 1)
        return tuple(float(correct[self.fold_of == fold].mean()) for fold in folds)

    @property
    def best_epochs(self) -> tuple[int, ...]:
        """Epoch whose weights each fold kept, from 0."""
        self._require_one("best_epochs", "epochs")
        return self.epochs[0]

    def _scored(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        scored = self.fold_of >= 0
        return self.labels[scored], self.stack[0][scored].argmax(axis=1)

    def _require_one(self, name: str, of_all: str) -> None:
        if len(self.members) != 1:
            raise ValueError(
                f"`{name}` is of one model and seed, and there are {len(self.members)} here; "
                f"take one with `.of(model, seed=...)`, or `{of_all}` of all"
            )
