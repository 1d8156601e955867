"""From predictions to one answer: votes, selection on out-of-fold predictions, submissions."""

from lowres_vision.ensemble._bootstrap import (
    PairedDifference,
    bootstrap_interval,
    paired_bootstrap,
)
from lowres_vision.ensemble._calibrate import Calibration, Temperature, assess_temperature
from lowres_vision.ensemble._class_bias import BiasEstimate, ClassBias, assess_class_bias
from lowres_vision.ensemble._cross_fit import cross_fit
from lowres_vision.ensemble._embeddings import (
    LinearClassifier,
    NearestCentroid,
    concat_embeddings,
)
from lowres_vision.ensemble._ledger import OutOfFold
from lowres_vision.ensemble._ledger_entry import Member
from lowres_vision.ensemble._mcnemar import McNemar, mcnemar_test
from lowres_vision.ensemble._scores import (
    accuracy,
    expected_calibration_error,
    log_loss,
    macro_f1,
)
from lowres_vision.ensemble._select import Selection, select_ensemble
from lowres_vision.ensemble._select_views import ViewReport, ViewSelection, select_views
from lowres_vision.ensemble._similarity import Filtered, SimilarityFilter
from lowres_vision.ensemble._stacking import Stacking
from lowres_vision.ensemble._submission import check_sample, write_submission
from lowres_vision.ensemble._summarise import summarise
from lowres_vision.ensemble._summary import Summary, SummaryRow
from lowres_vision.ensemble._views import TestTimeAugmentation, View, make_views
from lowres_vision.ensemble._vote import (
    geometric_mean_vote,
    hard_vote,
    rank_mean_vote,
    soft_vote,
    tied_rows,
)
from lowres_vision.ensemble._voting import VotingEnsemble

__all__ = [
    "BiasEstimate",
    "Calibration",
    "ClassBias",
    "Filtered",
    "LinearClassifier",
    "McNemar",
    "Member",
    "NearestCentroid",
    "OutOfFold",
    "PairedDifference",
    "Selection",
    "SimilarityFilter",
    "Stacking",
    "Summary",
    "SummaryRow",
    "Temperature",
    "TestTimeAugmentation",
    "View",
    "ViewReport",
    "ViewSelection",
    "VotingEnsemble",
    "accuracy",
    "assess_class_bias",
    "assess_temperature",
    "bootstrap_interval",
    "check_sample",
    "concat_embeddings",
    "cross_fit",
    "expected_calibration_error",
    "geometric_mean_vote",
    "hard_vote",
    "log_loss",
    "macro_f1",
    "make_views",
    "mcnemar_test",
    "paired_bootstrap",
    "rank_mean_vote",
    "select_ensemble",
    "select_views",
    "soft_vote",
    "summarise",
    "tied_rows",
    "write_submission",
]
