"""From predictions to one answer: votes, selection on out-of-fold predictions, submissions."""

from lowres_vision.ensemble._calibrate import Calibration, Temperature, assess_temperature
from lowres_vision.ensemble._compare import McNemar, bootstrap_interval, mcnemar_test
from lowres_vision.ensemble._embeddings import concat_embeddings
from lowres_vision.ensemble._ledger import Member, OutOfFold
from lowres_vision.ensemble._scores import (
    accuracy,
    expected_calibration_error,
    log_loss,
    macro_f1,
)
from lowres_vision.ensemble._select import Selection, select_ensemble
from lowres_vision.ensemble._submission import write_submission
from lowres_vision.ensemble._vote import (
    geometric_mean_vote,
    hard_vote,
    rank_mean_vote,
    soft_vote,
    tied_rows,
)
from lowres_vision.ensemble._voting import VotingEnsemble

__all__ = [
    "Calibration",
    "McNemar",
    "Member",
    "OutOfFold",
    "Selection",
    "Temperature",
    "VotingEnsemble",
    "accuracy",
    "assess_temperature",
    "bootstrap_interval",
    "concat_embeddings",
    "expected_calibration_error",
    "geometric_mean_vote",
    "hard_vote",
    "log_loss",
    "macro_f1",
    "mcnemar_test",
    "rank_mean_vote",
    "select_ensemble",
    "soft_vote",
    "tied_rows",
    "write_submission",
]
