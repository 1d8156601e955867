"""Sharpness-aware minimisation and the cosine schedule with warm restarts.

Both are ordinary torch classes: :class:`SAM` is an ``Optimizer`` and
:class:`CosineWarmRestarts` an ``LRScheduler``, so loops, scalers and loggers take them as they are.
"""

from lowres_vision.optim._batch_norm import keep_batch_norm_statistics
from lowres_vision.optim._sam import SAM
from lowres_vision.optim._warm_restarts import CosineWarmRestarts

__all__ = ["CosineWarmRestarts", "SAM", "keep_batch_norm_statistics"]  # noqa: RUF022
