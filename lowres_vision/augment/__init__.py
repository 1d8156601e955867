"""Transforms of whole batches, and images made from images."""

from lowres_vision.augment._batch_transform import BatchTransform, Crops
from lowres_vision.augment._degradation import Degradation, degrade
from lowres_vision.augment._degrade import Degrade
from lowres_vision.augment._degrade_fit import DegradationFit
from lowres_vision.augment._per_image import PerImage
from lowres_vision.augment._srcnn import SRCNN, psnr, train_srcnn
from lowres_vision.augment._super_resolution import SuperResolution

__all__ = [  # noqa: RUF022
    "BatchTransform",
    "Crops",
    "Degradation",
    "DegradationFit",
    "Degrade",
    "PerImage",
    "SRCNN",
    "SuperResolution",
    "degrade",
    "psnr",
    "train_srcnn",
]
