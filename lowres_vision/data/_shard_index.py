"""Shards on disk: tar files that WebDataset reads, and the index that says what must be in them."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lowres_vision._checks import check_range
from lowres_vision._files import write_whole
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._manifest import Manifest
from lowres_vision.data._rows import row_numbers

INDEX = "shards.json"
_FORMAT = "lowres-vision shards"
_VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds: class names by index, and samples by tar file."""

    classes: tuple[str, ...]
    samples: dict[str, int]

    def write(self, folder: Path, data_sha256: str) -> None:
        """Write the index to ``folder``."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "classes": self.classes,
            "samples": self.samples,
            "data_sha256": data_sha256,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        write_whole(folder / INDEX, f"{text}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the index of ``folder``.

        Raises:
            DataError: If there is none or it is no such index.
        """
        remedy = "write the shards anew with `write_shards`, or give the tar files and `classes=`"
        try:
            found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if (found["format"], found["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"it is {found['format']!r}, version {found['version']!r}")
            samples = {str(name): int(number) for name, number in found["samples"].items()}
            if strange := [name for name in samples if Path(name).name != name]:
                raise ValueError(f"{strange[0]!r} is no file name")
            return cls(tuple(map(str, found["classes"])), samples)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"has no index of shards ({type(error).__name__}: {error})"
            raise DataError(folder / INDEX, [Fault(reason, remedy)]) from None


def write_shards(
    manifest: Manifest,
    folder: str | os.PathLike[str],
    *,
    rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
    shards: int = 8,
    seed: int | None = 0,
) -> list[Path]:
    """Write rows as tar files that :class:`ShardDataset`, or WebDataset itself, reads in a stream.

    A sample is the row number in nine digits, with its files as they are, byte for byte, and what
    is known of the row::

        000000042.low.png   000000042.high.jpg   000000042.json {"id", "label", "row", "group"}

    The rows are dealt to the shards in random order, evenly to one row, so that each shard is a
    sample of the whole: give at least as many shards as there are devices times workers, or a
    multiple. An index, ``shards.json``, holds the class names and the number of samples of each
    shard. The same manifest and seed write the same bytes.

    Args:
        manifest: The rows.
        folder: Where to write; made if missing, and empty of shards.
        rows: Rows to write; default all. Those of one fold, say.
        shards: Number of tar files; fewer where there are fewer rows.
        seed: Of the order of the rows; None keeps their order.

    Returns:
        The tar files.

    Raises:
        FileExistsError: If the folder holds shards.
        DataError: If a file cannot be read.

    Example:
        >>> import tempfile
        >>> from lowres_vision.data import make_toy_pairs
        >>> toy = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=4)
        >>> manifest = Manifest.read_csv(toy / "train.csv")
        >>> [path.name for path in write_shards(manifest, toy / "shards", shards=2)]
        ['shard-00000.tar', 'shard-00001.tar']
    """
    folder = Path(folder)
    order = row_numbers(range(len(manifest)) if rows is None else rows, len(manifest))
    check_range("shards", shards, 1)
    if not len(order):
        raise ValueError("`rows` is empty; there is nothing to write")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists() or any(folder.glob("*.tar")):
        raise FileExistsError(f"{folder} holds shards; give an empty folder")
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    paths = []
    samples = {}
    for number, part in enumerate(np.array_split(order, min(shards, len(order)))):
        path = folder / f"shard-{number:05}.tar"
        partial = path.with_suffix(".part")
        try:
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for row in part.tolist():
                    _add_sample(tar, manifest, row)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        paths.append(path)
        samples[path.name] = len(part)
    ShardIndex(manifest.classes, samples).write(folder, manifest.digest())
    return paths


def _add_sample(tar: tarfile.TarFile, manifest: Manifest, row: int) -> None:
    key = f"{row:09}"
    for name, paths in (("low", manifest.low), ("high", manifest.high)):
        if paths is not None:
            suffix = PurePosixPath(paths[row]).suffix.lower() or ".image"
            try:
                data = (manifest.root / paths[row]).read_bytes()
            except OSError as error:
                remedy = "put the file back or drop its row"
                fault = Fault(
                    f"cannot be read ({error.strerror})", remedy, row + 1, None, paths[row]
                )
                raise DataError(manifest.source, [fault]) from None
            _add_file(tar, f"{key}.{name}{suffix}", data)
    label = int(manifest.labels[row])
    about: dict[str, Any] = {
        "id": manifest.ids[row],
        "label": manifest.classes[label] if label >= 0 else None,
        "row": row,
        "group": None if manifest.groups is None else manifest.groups[row],
    }
    _add_file(tar, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)  # without times and owners: the same bytes every time
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))
