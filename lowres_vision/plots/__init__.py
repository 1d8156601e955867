"""Pictures of a run; needs matplotlib, the ``plot`` extra."""

from lowres_vision._optional import require

require("matplotlib", extra="plot")

from lowres_vision.plots._curves import learning_curves  # noqa: E402
from lowres_vision.plots._ensemble import ensemble_table  # noqa: E402

__all__ = ["ensemble_table", "learning_curves"]
