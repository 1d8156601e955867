"""Weights against imbalance: how much a class counts, from how often it occurs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowres_vision._checks import check_choice, check_range

Scheme = Literal["inverse", "sqrt", "log", "effective"]


def class_weights(
    counts: Mapping[str, int] | Sequence[int] | npt.NDArray[np.int64] | Tensor,
    *,
    scheme: Scheme = "inverse",
    beta: float = 0.999,
) -> Tensor:
    """Return one weight per class, for the ``weight`` of a loss.

    With ``n`` the number of images of a class, its weight is proportional to

    =============  ======================================================
    ``inverse``    ``1 / n``
    ``sqrt``       ``1 / sqrt(n)``
    ``log``        ``1 / log(1 + n)``: finite at one image, unlike 1 / log n
    ``effective``  ``(1 - beta) / (1 - beta^n)``, the effective number
    =============  ======================================================

    and the weights of the K classes sum to K. A class without images weighs 0: nothing was
    counted that could say what it is worth. The others then sum to the number of classes that
    have images, as if the empty ones were not there.

    Weighting the loss and drawing with :class:`BalancedSampler` correct the same thing: together
    they correct it twice.

    Args:
        counts: Images of each class, in class order: ``manifest.class_counts()`` of the whole set,
            or for the rows trained on, ``np.bincount(manifest.labels[rows], minlength=K)``.
        scheme: How weight falls with count, as above.
        beta: For ``effective``, in [0, 1): 0 weighs all classes alike, towards 1 it nears
            ``inverse``. With ``m`` images in the rarest class, ``beta`` below ``1 - 1 / m``
            changes little.

    Returns:
        ``(K,)`` float32.

    Raises:
        ValueError: If a count is negative or no whole number, or all are 0.

    Example:
        >>> class_weights({"tit": 30, "rail": 10})
        tensor([0.5000, 1.5000])
        >>> class_weights([30, 10, 0], scheme="sqrt")
        tensor([0.7321, 1.2679, 0.0000])

    References:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019,
        https://arxiv.org/abs/1901.05555, equations 2 and 6. ``1 - beta^n`` is computed as
        ``-expm1(n log beta)``, which keeps its digits where beta is near 1 and n is small.
    """
    found = list(counts.values()) if isinstance(counts, Mapping) else counts
    return torch.from_numpy(weigh(np.asarray(found), scheme=scheme, beta=beta)).float()


def weigh(counts: npt.NDArray[Any], *, scheme: Scheme, beta: float) -> npt.NDArray[np.float64]:
    """Return :func:`class_weights` in float64."""
    check_choice("scheme", scheme, get_args(Scheme))
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`counts` must be (K,) whole numbers, got {counts.dtype} of shape {counts.shape}"
        )
    if counts.size and counts.min() < 0:
        raise ValueError(f"`counts` must be >= 0, got {counts.min()}")
    n = counts[counts > 0].astype(np.float64)
    if not n.size:
        raise ValueError("`counts` must have a class with images, got none")
    if scheme == "inverse":
        weights = 1 / n
    elif scheme == "sqrt":
        weights = 1 / np.sqrt(n)
    elif scheme == "log":
        weights = 1 / np.log1p(n)
    else:
        check_range("beta", beta, 0)
        if beta >= 1:
            raise ValueError(f"`beta` must be < 1, got {beta}; its limit is scheme='inverse'")
        weights = -1 / np.expm1(n * np.log(beta)) if beta else np.ones_like(n)
    result = np.zeros(len(counts))
    result[counts > 0] = weights * (n.size / weights.sum())
    return result
