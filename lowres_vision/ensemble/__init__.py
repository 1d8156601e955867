"""From predictions to one answer: votes and checked submissions."""

from lowres_vision.ensemble._submission import write_submission
from lowres_vision.ensemble._vote import soft_vote

__all__ = ["soft_vote", "write_submission"]
