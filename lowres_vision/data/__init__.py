"""Rows of images at one or two resolutions: read, checked, split and decoded."""

from lowres_vision._batch import Batch, Pair, PairBatch, Sample, collate
from lowres_vision.data._audit import AuditReport, audit
from lowres_vision.data._counts import count_by_class, count_values, format_table, image_sizes
from lowres_vision.data._dataset import MultiResolutionDataset
from lowres_vision.data._decode import decode_image
from lowres_vision.data._duplicates import near_duplicates, perceptual_hash
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._folds import StratifiedFolds
from lowres_vision.data._links import linked_rows
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._pair_transforms import RandomPairTransform
from lowres_vision.data._resident import ResidentLoader
from lowres_vision.data._samplers import BalancedSampler
from lowres_vision.data._shard_index import write_shards
from lowres_vision.data._shards import ShardDataset
from lowres_vision.data._statistics import ChannelStatistics, channel_statistics
from lowres_vision.data._table import read_table
from lowres_vision.data._toy import make_toy_folders, make_toy_pairs
from lowres_vision.data._weights import class_weights

__all__ = [
    "AuditReport",
    "BalancedSampler",
    "Batch",
    "ChannelStatistics",
    "DataError",
    "Fault",
    "Manifest",
    "MultiResolutionDataset",
    "Pair",
    "PairBatch",
    "RandomPairTransform",
    "ResidentLoader",
    "Sample",
    "ShardDataset",
    "StratifiedFolds",
    "audit",
    "channel_statistics",
    "class_weights",
    "collate",
    "count_by_class",
    "count_values",
    "decode_image",
    "format_table",
    "image_sizes",
    "linked_rows",
    "make_toy_folders",
    "make_toy_pairs",
    "near_duplicates",
    "perceptual_hash",
    "read_table",
    "write_shards",
]
