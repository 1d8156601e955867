"""Transforms of whole batches."""

from lowres_vision.augment._batch_transform import BatchTransform

__all__ = ["BatchTransform"]
