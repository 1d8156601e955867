"""Heads between a pooled embedding and a loss.

``CosineClassifier`` gives cosines for ``losses.ArcFaceLoss``; ``CosineHead`` gives the logits of
the cosine loss's second, cross-entropy term; ``EmbeddingNeck`` goes in front of a classifier. A
head's ``outputs`` says what it gives, and ``losses.check_outputs`` refuses a loss that reads
something else.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32, unit_vectors

__all__ = ["CosineClassifier", "CosineHead", "EmbeddingNeck"]


class EmbeddingNeck(nn.Module):
    """Linear layer, batch norm and PReLU: pooled features to an embedding.

    Args:
        in_features: Length of the pooled features.
        out_features: Length of the embedding.

    Example:
        >>> EmbeddingNeck(2048)(torch.zeros(4, 2048)).shape
        torch.Size([4, 512])

    References:
        "Option D" of Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, as the first place
        of Google Landmark Recognition 2020 used it, https://arxiv.org/abs/2010.01650.
    """

    def __init__(self, in_features: int, out_features: int = 512) -> None:
        super().__init__()
        check_range("in_features", in_features, 1)
        check_range("out_features", out_features, 1)
        self.in_features = in_features
        self.out_features = out_features
        self.linear = nn.Linear(in_features, out_features)
        self.norm = nn.BatchNorm1d(out_features)
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(B, in_features)`` to embeddings ``(B, out_features)``."""
        embedding: Tensor = self.activation(self.norm(self.linear(x)))
        return embedding


class CosineClassifier(nn.Module):
    """Cosines between an embedding and a learned direction of each class.

    ``c_j = <x / |x|, w_j / |w_j|>``, or with sub-centres the largest cosine of the class's
    ``subcenters`` directions, so that a class with several looks, or with mislabelled images, is
    not pulled to one mean. Computed in float32 under autocast too: half precision puts an error of
    1e-3 on a cosine that the loss multiplies by 30 and more. (So does TF32: on CUDA leave
    ``torch.set_float32_matmul_precision`` at "highest" for this product.)

    ``weight`` is ``(num_classes * subcenters, in_features)``, xavier-uniform; row
    ``class * subcenters + k`` is direction k of a class. There is no bias. The rows are normalised
    in each forward pass, so their length does not matter; keep them out of weight decay or not, the
    cosines are the same.

    Args:
        in_features: Length D of the embedding.
        num_classes: Number K of classes.
        subcenters: Directions per class; 3 is usual where labels are noisy.

    Example:
        >>> CosineClassifier(512, 6, subcenters=3)(torch.randn(4, 512)).shape
        torch.Size([4, 6])

    References:
        Deng et al., "Sub-center ArcFace", ECCV 2020,
        https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123560715.pdf
    """

    outputs: ClassVar[Literal["logits", "cosines"]] = "cosines"

    def __init__(self, in_features: int, num_classes: int, *, subcenters: int = 1) -> None:
        super().__init__()
        check_range("in_features", in_features, 1)
        check_range("num_classes", num_classes, 1)
        check_range("subcenters", subcenters, 1)
        self.in_features = in_features
        self.num_classes = num_classes
        self.subcenters = subcenters
        self.weight = nn.Parameter(torch.empty(num_classes * subcenters, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions anew."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to cosines ``(B, K)``, float64 for float64 and else float32."""
        x = at_least_float32(x)
        with torch.autocast(x.device.type, enabled=False):
            cosines = F.linear(unit_vectors(x), unit_vectors(self.weight.to(x.dtype)))
        if self.subcenters == 1:
            return cosines
        each = torch.unflatten(cosines, -1, (self.num_classes, self.subcenters))  # (B, K, centres)
        return each.amax(-1)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{self.in_features}, {self.num_classes}, subcenters={self.subcenters}"


class CosineHead(nn.Module):
    """The second head of the cosine loss's combined form: unit length, ReLU, batch norm, linear.

    The model's outputs ``z`` go into the cosine loss as they are and through this head into the
    cross-entropy, 0.1 of which is added. The prediction stays the argmax of ``z``. Train the head's
    parameters with the model's; the authors' code puts an L2 penalty of 5e-4 on its linear weight.

    Args:
        in_features: Length of ``z``; the number of classes where the targets are one-hot.
        num_classes: Number K of classes.

    Example:
        >>> from lowres_vision.losses import cosine_loss, cross_entropy
        >>> model, head = nn.Linear(8, 3), CosineHead(3, 3)
        >>> z, targets = model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 1])
        >>> loss = cosine_loss(z, targets) + 0.1 * cross_entropy(head(z), targets)

    References:
        Barz and Denzler, WACV 2020, https://arxiv.org/abs/1901.09054, and the authors' code,
        https://github.com/cvjena/semantic-embeddings. The form without a second head is
        ``losses.CosineLoss(cross_entropy=0.1)``.
    """

    outputs: ClassVar[Literal["logits", "cosines"]] = "logits"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_range("in_features", in_features, 1)
        check_range("num_classes", num_classes, 1)
        self.in_features = in_features
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Map the model's outputs ``(B, in_features)`` to logits ``(B, K)``."""
        direction = unit_vectors(at_least_float32(z)).to(self.linear.weight.dtype)
        logits: Tensor = self.linear(self.norm(direction.relu()))
        return logits
