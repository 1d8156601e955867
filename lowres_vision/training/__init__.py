"""Fine-tuning with Lightning: what to train, on what, over which folds."""

from lowres_vision._optional import require

require("lightning", extra="train")
require("sklearn", extra="train")

from lowres_vision.training._classifier import Classifier  # noqa: E402
from lowres_vision.training._cross_validate import CrossValidation, cross_validate  # noqa: E402
from lowres_vision.training._data import PairsDataModule  # noqa: E402
from lowres_vision.training._weights import load_weights, save_weights  # noqa: E402

__all__ = [
    "Classifier",
    "CrossValidation",
    "PairsDataModule",
    "cross_validate",
    "load_weights",
    "save_weights",
]
