"""Pictures of data, runs and predictions; needs matplotlib, the ``plot`` extra.

Every function returns a matplotlib ``Figure``, which a notebook shows as it is, and writes it where
it is given a ``path``.
"""

from lowres_vision._optional import require

require("matplotlib", extra="plot")

from lowres_vision.plots._confusion import confusion_matrix  # noqa: E402
from lowres_vision.plots._counts import class_counts, column_counts, size_scatter  # noqa: E402
from lowres_vision.plots._curves import learning_curves  # noqa: E402
from lowres_vision.plots._ensemble import ensemble_table  # noqa: E402
from lowres_vision.plots._images import (  # noqa: E402
    mixed_batch,
    prediction_grid,
    resizer_panel,
    style_panel,
)
from lowres_vision.plots._overview import write_overview  # noqa: E402
from lowres_vision.plots._resolution import (  # noqa: E402
    resolution_curve,
    resolution_robustness,
)
from lowres_vision.plots._styled import styled_rows  # noqa: E402

__all__ = [
    "class_counts",
    "column_counts",
    "confusion_matrix",
    "ensemble_table",
    "learning_curves",
    "mixed_batch",
    "prediction_grid",
    "resizer_panel",
    "resolution_curve",
    "resolution_robustness",
    "size_scatter",
    "style_panel",
    "styled_rows",
    "write_overview",
]
