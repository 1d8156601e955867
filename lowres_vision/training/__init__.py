"""Fine-tuning with Lightning: what to train, on what, over which folds."""

from lowres_vision._optional import require

require("lightning", extra="train")
require("sklearn", extra="train")

from lowres_vision.training._classifier import Classifier  # noqa: E402
from lowres_vision.training._cross_validate import cross_validate  # noqa: E402
from lowres_vision.training._data import PairsDataModule  # noqa: E402
from lowres_vision.training._diagnosis import Diagnosis, replay  # noqa: E402
from lowres_vision.training._groups import parameter_groups  # noqa: E402
from lowres_vision.training._guard import NonFiniteGuard  # noqa: E402
from lowres_vision.training._loggers import make_loggers  # noqa: E402
from lowres_vision.training._pairing import Consistency, Distillation  # noqa: E402
from lowres_vision.training._predict_views import predict_views  # noqa: E402
from lowres_vision.training._pseudo_labels import PseudoLabels  # noqa: E402
from lowres_vision.training._report import write_report  # noqa: E402
from lowres_vision.training._result import CrossValidation  # noqa: E402
from lowres_vision.training._retuning import retune_head  # noqa: E402
from lowres_vision.training._teacher import Fold, load_fold_weights, load_teacher  # noqa: E402
from lowres_vision.training._usage import UsageRecord  # noqa: E402
from lowres_vision.training._weights import load_weights, save_weights  # noqa: E402

__all__ = [
    "Classifier",
    "Consistency",
    "CrossValidation",
    "Diagnosis",
    "Distillation",
    "Fold",
    "NonFiniteGuard",
    "PairsDataModule",
    "PseudoLabels",
    "UsageRecord",
    "cross_validate",
    "load_fold_weights",
    "load_teacher",
    "load_weights",
    "make_loggers",
    "parameter_groups",
    "predict_views",
    "replay",
    "retune_head",
    "save_weights",
    "write_report",
]
