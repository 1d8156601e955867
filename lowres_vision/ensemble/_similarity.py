"""Drop images that look like none of the classes, at a threshold that the classes choose."""

import math
from typing import NamedTuple, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32, unit_vectors
from lowres_vision.ensemble._embeddings import check_features, checked_rows, class_sums


class Filtered(NamedTuple):
    """Which images a :class:`SimilarityFilter` keeps.

    Attributes:
        keep: ``(B,)`` bool.
        similarity: ``(B,)`` highest cosine to a class.
        dropped: How many are not kept.
    """

    keep: Tensor
    similarity: Tensor
    dropped: int


class SimilarityFilter(nn.Module):
    """Tell images that are far from every class by the cosine of their embeddings.

    An image's similarity is its highest cosine to the mean direction of a class. The threshold is
    a low quantile of the similarities that images of the classes have, each to classes taken
    without itself, so that about ``false_drop`` of the good images fall below it. How many bad
    ones do is up to the embedding; try it on some.

    Args:
        centroids: ``(K, D)``; scaled to length 1.
        threshold: Cosine below which an image is dropped, in [-1, 1].

    Raises:
        ValueError: If ``centroids`` are no finite ``(K, D)`` or ``threshold`` is no cosine.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> classes = torch.eye(3, 8).repeat_interleave(40, dim=0)
        >>> images = classes + 0.1 * torch.randn(120, 8, generator=generator)
        >>> labels = torch.arange(3).repeat_interleave(40)
        >>> drop_strangers = SimilarityFilter.fit(images, labels, false_drop=0.05)
        >>> drop_strangers.apply_to(torch.randn(50, 8, generator=generator)).dropped > 40
        True

    References:
        The rank of the threshold is that of split conformal prediction, Vovk et al., "Algorithmic
        Learning in a Random World", 2005; leaving each image out of its own class's mean in place
        of splitting makes the false-drop rate approximate.
    """

    centroids: Tensor
    threshold: Tensor

    def __init__(self, centroids: Tensor, threshold: float) -> None:
        super().__init__()
        check_range("threshold", threshold, -1, 1)
        checked = check_features("centroids", centroids)
        self.register_buffer("centroids", unit_vectors(checked).float())
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to the highest cosine to a class ``(B,)``."""
        x = unit_vectors(at_least_float32(embeddings))
        return (x @ self.centroids.to(x.dtype).T).amax(dim=1)

    def apply_to(self, embeddings: Tensor) -> Filtered:
        """Return which of the images ``(B, D)`` to keep, their similarities and the count."""
        similarity = self(embeddings)
        keep = similarity >= self.threshold
        return Filtered(keep, similarity, int((~keep).sum()))

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: npt.ArrayLike,
        *,
        false_drop: float = 0.01,
        num_classes: int | None = None,
    ) -> Self:
        """Return the filter that drops about ``false_drop`` of such images.

        Args:
            embeddings: ``(N, D)`` of images of the classes, best of models that were not trained
                on them: training images lie closer to their class than new ones.
            labels: ``(N,)`` class indices; each class needs two rows.
            false_drop: Share of good images that may be dropped, in [0, 1]; less than
                1 / (N + 1) drops none of these.
            num_classes: K; default the largest label and one.

        Raises:
            ValueError: If shapes or values do not fit, or a class has fewer than two rows.
        """
        check_range("false_drop", false_drop, 0, 1)
        rows, truth, K = checked_rows(embeddings, labels, num_classes)
        if (counts := torch.bincount(truth, minlength=K)).min() < 2:
            alone = (counts < 2).nonzero().flatten().tolist()
            raise ValueError(f"`labels` must have two rows of each class, one of {alone[:10]}")
        sums = class_sums(rows, truth, K)
        directions = unit_vectors(rows)
        cosines = directions @ unit_vectors(sums).T  # (N, K)
        own = (directions * unit_vectors(sums[truth] - directions)).sum(dim=1)
        cosines[torch.arange(len(rows), device=rows.device), truth] = own
        similarity = cosines.amax(dim=1).sort().values
        rank = math.floor(false_drop * (len(rows) + 1))
        threshold = float(similarity[min(rank, len(rows)) - 1]) if rank else -1.0
        return cls(sums, min(max(threshold, -1.0), 1.0))

    def extra_repr(self) -> str:
        """Name the threshold."""
        return f"threshold={float(self.threshold):.4g}"
