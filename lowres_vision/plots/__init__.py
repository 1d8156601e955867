"""Pictures of a run; needs matplotlib, the ``plot`` extra."""

from lowres_vision._optional import require

require("matplotlib", extra="plot")

from lowres_vision.plots._curves import learning_curves  # noqa: E402

__all__ = ["learning_curves"]
