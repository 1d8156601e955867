"""Transforms of whole batches, and images made from images."""

from lowres_vision.augment._batch_transform import BatchTransform, Crops
from lowres_vision.augment._degradation import Degradation, degrade
from lowres_vision.augment._degrade import Degrade
from lowres_vision.augment._degrade_fit import DegradationFit
from lowres_vision.augment._per_image import PerImage
from lowres_vision.augment._seeded import QuarterCrop, Seeded, painters_augmentation
from lowres_vision.augment._srcnn import SRCNN, psnr, train_srcnn
from lowres_vision.augment._style import StyleTransfer
from lowres_vision.augment._style_loss import (
    content_loss,
    gram_matrix,
    style_loss,
    total_variation,
)
from lowres_vision.augment._style_pairs import StylePair, draw_style_pairs
from lowres_vision.augment._super_resolution import SuperResolution

__all__ = [  # noqa: RUF022
    "BatchTransform",
    "Crops",
    "Degradation",
    "DegradationFit",
    "Degrade",
    "PerImage",
    "QuarterCrop",
    "SRCNN",
    "Seeded",
    "StylePair",
    "StyleTransfer",
    "SuperResolution",
    "content_loss",
    "degrade",
    "draw_style_pairs",
    "gram_matrix",
    "painters_augmentation",
    "psnr",
    "style_loss",
    "total_variation",
    "train_srcnn",
]
