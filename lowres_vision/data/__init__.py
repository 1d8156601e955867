"""Rows of images at one or two resolutions: read, checked, split and decoded."""

from lowres_vision._batch import Batch, Pair, PairBatch, Sample, collate
from lowres_vision.data._dataset import MultiResolutionDataset
from lowres_vision.data._decode import decode_image
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._folds import StratifiedFolds
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._toy import make_toy_pairs

__all__ = [
    "Batch",
    "DataError",
    "Fault",
    "Manifest",
    "MultiResolutionDataset",
    "Pair",
    "PairBatch",
    "Sample",
    "StratifiedFolds",
    "collate",
    "decode_image",
    "make_toy_pairs",
]
