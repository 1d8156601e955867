"""Embeddings of several models as one, and two classifiers on them."""

from collections.abc import Sequence
from typing import Self

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32, unit_vectors
from lowres_vision.ensemble._inputs import check_labels
from lowres_vision.ensemble._logistic import fit_logistic


def concat_embeddings(embeddings: Sequence[Tensor]) -> Tensor:
    """Scale each model's embedding to length 1 and set them side by side.

    Without the scaling, the model with the longest vectors would decide alone. The cosine of two
    results is the mean of the models' cosines, as each result has length ``sqrt(M)``. A vector
    shorter than 1e-6 has no direction and stays as it is.

    Fine-tuned models of different folds have different spaces: concatenate models of one fold, fit
    a classifier on rows they were trained on, and predict the rows that fold held out. Embeddings
    of frozen models are the same in all folds and can be cross-fitted, see :func:`cross_fit`.

    Args:
        embeddings: M tensors ``(N, D_m)`` on one device.

    Returns:
        ``(N, sum of D_m)``, float32 or better.

    Raises:
        ValueError: If there is none, or shapes or devices do not fit.

    Example:
        >>> concat_embeddings([torch.tensor([[30.0, 40.0]]), torch.tensor([[0.5]])])
        tensor([[0.6000, 0.8000, 1.0000]])
    """
    shapes = [tuple(embedding.shape) for embedding in embeddings]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"`embeddings` must be tensors (N, D) of the same N, got {shapes}")
    devices = {str(embedding.device) for embedding in embeddings}
    if len(devices) != 1:
        raise ValueError(f"`embeddings` must be on one device, got {sorted(devices)}")
    return torch.cat([unit_vectors(at_least_float32(each)) for each in embeddings], dim=1)


class NearestCentroid(nn.Module):
    """Cosine between an embedding and the mean direction of each class.

    ``c_k = unit(sum_{n of k} unit(x_n))``, ``output_k = cos(x, c_k)``. Nothing is trained, so a
    few images per class are enough. :meth:`Temperature.fit <Temperature.fit>` on cross-fitted
    cosines makes probabilities of them for a vote.

    Args:
        centroids: ``(K, D)``; scaled to length 1.

    Raises:
        ValueError: If ``centroids`` are no finite ``(K, D)``.

    Example:
        >>> embeddings = torch.tensor([[2.0, 0.0], [1.0, 0.1], [0.0, 3.0]])
        >>> classify = NearestCentroid.fit(embeddings, [0, 0, 1])
        >>> classify(torch.tensor([[0.2, 0.1]])).argmax(1)
        tensor([0])
    """

    centroids: Tensor

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        checked = check_features("centroids", centroids)
        self.register_buffer("centroids", unit_vectors(checked).float())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to cosines ``(B, K)``, float32 or better."""
        x = unit_vectors(at_least_float32(embeddings))
        return x @ self.centroids.to(x.dtype).T

    @classmethod
    def fit(
        cls, embeddings: Tensor, labels: npt.ArrayLike, *, num_classes: int | None = None
    ) -> Self:
        """Return the classifier of these rows.

        Args:
            embeddings: ``(N, D)``.
            labels: ``(N,)`` class indices; each class needs a row.
            num_classes: K; default the largest label and one.

        Raises:
            ValueError: If shapes or values do not fit, or a class has no row.
        """
        rows, truth, K = checked_rows(embeddings, labels, num_classes)
        return cls(class_sums(rows, truth, K))


class LinearClassifier(nn.Module):
    """Multinomial logistic regression on embeddings.

    ``min mean_n -log softmax(W x_n + b)_label + l2 / 2 |W|^2``, convex, solved by L-BFGS in
    float64. ``l2`` is meant for embeddings about as long as :func:`concat_embeddings` makes them.

    Args:
        weight: ``(K, D)``.
        bias: ``(K,)``.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> embeddings = torch.tensor([[0.0], [0.4], [0.6], [1.0]])
        >>> classify = LinearClassifier.fit(embeddings, [0, 0, 1, 1])
        >>> classify(torch.tensor([[0.3], [0.8]])).argmax(1)
        tensor([0, 1])

    References:
        scikit-learn's ``LogisticRegression(C=1 / (N * l2))`` has the same minimum.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        checked = check_features("weight", weight)
        if tuple(bias.shape) != (len(checked),):
            raise ValueError(f"`bias` must be ({len(checked)},), got {tuple(bias.shape)}")
        self.register_buffer("weight", checked.float())
        self.register_buffer("bias", bias.detach().float())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to logits ``(B, K)``, float32 or better."""
        x = at_least_float32(embeddings)
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: npt.ArrayLike,
        *,
        num_classes: int | None = None,
        l2: float = 1e-4,
    ) -> Self:
        """Return the classifier with the lowest regularised log loss on these rows.

        Args:
            embeddings: ``(N, D)``.
            labels: ``(N,)`` class indices; each class needs a row.
            num_classes: K; default the largest label and one.
            l2: Weight of the penalty, > 0.

        Raises:
            ValueError: If shapes or values do not fit, or a class has no row.
        """
        check_range("l2", l2, 0, open_low=True)
        rows, truth, K = checked_rows(embeddings, labels, num_classes)
        return cls(*fit_logistic(rows, truth, offset=rows.new_zeros(len(rows), K), l2=l2))


def class_sums(rows: Tensor, truth: Tensor, K: int) -> Tensor:
    """Return the sum ``(K, D)`` of each class's directions."""
    return rows.new_zeros(K, rows.shape[1]).index_add_(0, truth, unit_vectors(rows))


def check_features(name: str, values: Tensor) -> Tensor:
    """Return ``values`` detached as float64, or raise ValueError unless it is a finite matrix."""
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"`{name}` must be (rows, features), got shape {tuple(values.shape)}")
    rows = values.detach().double()
    if not rows.isfinite().all():
        raise ValueError(f"`{name}` must be finite, found NaN or inf")
    return rows


def checked_rows(
    embeddings: Tensor, labels: npt.ArrayLike, num_classes: int | None
) -> tuple[Tensor, Tensor, int]:
    """Return embeddings in float64, labels and the number of classes, each of which has a row."""
    rows = check_features("embeddings", embeddings)
    given = labels.cpu() if isinstance(labels, Tensor) else labels
    truth = torch.from_numpy(check_labels(given, len(rows), num_classes or 2**31))
    counts = torch.bincount(truth, minlength=num_classes or 0)
    if (counts == 0).any():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"`labels` must have a row of each class, none of {missing[:10]}")
    return rows, truth.to(rows.device), len(counts)
