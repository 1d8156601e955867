"""Enlarged images on disk, named by the content of what they were made from."""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lowres_vision._files import write_whole
from lowres_vision.data import DataError, Manifest, decode_image


def enlarge_files(
    manifest: Manifest,
    directory: Path,
    enlarge: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    callback: Callable[[int, int], None] | None,
) -> Manifest:
    """Fill ``directory`` with what is missing there; see ``SuperResolution.apply_to``."""
    files: list[Path] = []
    missing: dict[Path, tuple[str, tuple[int, ...]]] = {}
    faults = []
    for row, path in enumerate(manifest.low):
        try:
            image = decode_image(manifest.root / path)
        except DataError as error:
            faults += [replace(fault, row=row + 1, path=path) for fault in error.faults]
            continue
        files.append(directory / f"{_content(image)}.png")
        if not files[-1].exists():
            missing[files[-1]] = path, tuple(image.shape)
    if faults:
        raise DataError(manifest.source, faults)

    done = 0
    for batch in _batches(missing, batch_size):
        images = [decode_image(manifest.root / missing[file][0]) for file in batch]
        for file, result in zip(batch, enlarge(torch.stack(images)), strict=True):
            write_whole(file, _png(result))
        done += len(batch)
        if callback is not None:
            callback(done, len(missing))
    return replace(manifest, high=tuple(_relative(file, manifest.root) for file in files))


def _content(image: Tensor) -> str:
    """Return a hash of an image's pixels and shape."""
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + image.numpy().tobytes()).hexdigest()


def _batches(missing: dict[Path, tuple[str, tuple[int, ...]]], batch_size: int) -> list[list[Path]]:
    """Return the files in batches whose images have one shape."""
    by_shape: dict[tuple[int, ...], list[Path]] = {}
    for file, (_, shape) in missing.items():
        by_shape.setdefault(shape, []).append(file)
    return [
        files[start : start + batch_size]
        for files in by_shape.values()
        for start in range(0, len(files), batch_size)
    ]


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def _relative(file: Path, root: Path) -> str:
    try:
        return Path(os.path.relpath(file, root)).as_posix()
    except ValueError:  # another drive
        return file.resolve().as_posix()
