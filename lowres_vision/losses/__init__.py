"""Losses for classification that agree on targets, weights, smoothing, reduction and precision.

Each takes class indices ``(B,)`` or probabilities ``(B, K)``, is linear in the target (safe under
MixUp and CutMix), divides a weighted mean by ``sum(t * w)``, computes in float32 or better under
autocast, and stays finite at the extremes. Each Module says what it reads (``outputs``, "logits"
or "cosines") and turns it into what an ensemble averages (``probabilities``).
"""

from lowres_vision.losses._arcface import ArcFaceLoss, adaptive_margins, arcface_loss
from lowres_vision.losses._contract import check_outputs
from lowres_vision.losses._cosine import CosineLoss, cosine_loss
from lowres_vision.losses._cross_entropy import CrossEntropyLoss, cross_entropy
from lowres_vision.losses._focal import FocalLoss, focal_loss
from lowres_vision.losses._pairs import consistency_loss, distillation_loss, feature_loss

__all__ = [
    "ArcFaceLoss",
    "CosineLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "adaptive_margins",
    "arcface_loss",
    "check_outputs",
    "consistency_loss",
    "cosine_loss",
    "cross_entropy",
    "distillation_loss",
    "feature_loss",
    "focal_loss",
]
