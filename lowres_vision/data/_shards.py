"""Samples streamed from tar files, for data that no single machine holds as files.

WebDataset opens the tar files, groups their members and shares them out. Its decoders, some of
which unpickle what they are given, are not used: images go through :func:`decode_image`, the
rest is JSON.
"""

import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lowres_vision._batch import Pair, Sample
from lowres_vision._checks import check_choice, check_range
from lowres_vision._optional import require
from lowres_vision._random import stream
from lowres_vision.data._cells import check_classes, unknown_class
from lowres_vision.data._dataset import Resolution, takes_generator
from lowres_vision.data._decode import decode_image
from lowres_vision.data._errors import DataError, Fault
from lowres_vision.data._shard_index import ShardIndex

_MEND = "mend the sample and write the shard anew"
_IMAGE = re.compile(r"(avif|bmp|gif|jp2|jpe?g|png|ppm|tiff?|webp)")


class ShardDataset(IterableDataset[Sample | Pair]):
    """A stream of samples from shards, the same samples as of a :class:`MultiResolutionDataset`.

    With :func:`collate` they make the same batches: uint8 images, targets, rows. Needs the extra
    ``shards``.

    The shards of an epoch are shared out to devices and workers; within a worker, samples go
    through a buffer of ``shuffle`` samples from which one is drawn at a time. The order is a
    function of ``(seed, epoch)`` and of the number of devices and workers. What a transform draws
    for a sample is a function of ``(seed, epoch, row)`` alone, as by the keys ``(index, epoch)``
    of a :class:`MultiResolutionDataset`. **Call** :meth:`set_epoch` **before every epoch**, or
    each is the same; workers that persist hear of it too.

    Devices with one shard more than others have more batches; give each as many, or a step of
    all devices together waits for ever. :func:`write_shards` fills shards evenly.

    Args:
        shards: A folder of :func:`write_shards`, or tar files: paths and ``https:`` addresses.
        classes: Class names by index; default those in the folder's index.
        resolution: ``low``, ``high``, ``both`` (a row's two images one after the other) or
            ``pair``. In tar files of others an image that is just ``KEY.jpg`` is the low one.
        transform: As for :class:`MultiResolutionDataset`.
        shuffle: Samples in the buffer; 0 gives shards and samples as they stand.
        seed: Of the order and of what transforms draw.

    Raises:
        ModuleNotFoundError: Without ``webdataset``, naming the extra.
        DataError: If there is no shard; in the stream, naming shard and key, if a shard is cut
            off, holds fewer or more samples than its index says, or a sample lacks its image or
            has one that does not decode, a label that is no class, or no JSON that can be read.
        ValueError: In the stream, if there are fewer shards than devices.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> from lowres_vision.data import Manifest, collate, make_toy_pairs, write_shards
        >>> toy = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=4)
        >>> files = write_shards(Manifest.read_csv(toy / "train.csv"), toy / "shards", shards=2)
        >>> dataset = ShardDataset(toy / "shards", resolution="pair", shuffle=100)
        >>> dataset.set_epoch(3)
        >>> batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate)))
        >>> batch.low.shape, batch.high.shape, batch.targets.shape
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 3, 256, 256]), torch.Size([4]))
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        classes: Sequence[str] | None = None,
        resolution: Resolution = "low",
        transform: Callable[..., Any] | None = None,
        shuffle: int = 1000,
        seed: int = 0,
    ) -> None:
        check_choice("resolution", resolution, get_args(Resolution))
        check_range("shuffle", shuffle, 0)
        check_range("seed", seed, 0)
        require("webdataset", extra="shards")
        self._counts: dict[str, int] = {}
        if isinstance(shards, str | os.PathLike) and Path(shards).is_dir():
            index = ShardIndex.read(Path(shards))
            classes = index.classes if classes is None else classes
            self._counts = {str(Path(shards) / name): n for name, n in index.samples.items()}
            shards = [*self._counts]
        elif isinstance(shards, str | os.PathLike):
            shards = [shards]
        self.shards = tuple(_check_address(os.fspath(shard)) for shard in shards)
        if not self.shards:
            raise DataError("shards", [Fault("are none", "give a folder of shards or tar files")])
        self.classes = check_classes(classes or ())
        self.resolution = resolution
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self._index = {name: number for number, name in enumerate(self.classes)}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def samples(self) -> int | None:
        """Number of rows in all shards; None without an index."""
        return sum(self._counts.values()) if self._counts else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and draws the next iteration has."""
        check_range("epoch", epoch, 0)
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample | Pair]:
        """Stream this worker's samples of the epoch."""
        wds = require("webdataset", extra="shards")
        epoch = int(self._epoch)
        rank, devices, *_ = wds.utils.pytorch_worker_info()
        if devices > len(self.shards):
            raise ValueError(
                f"`shards` must be at least one per device: {len(self.shards)} for {devices}"
            )
        order = [*self.shards]
        if self.shuffle:
            random.Random(self._draw(epoch)).shuffle(order)
        mine = wds.split_by_worker(wds.split_by_node(order))
        samples = self._read(mine)
        if self.shuffle:
            worker = get_worker_info()
            draws = random.Random(self._draw(epoch, rank, worker.id if worker else 0))
            samples = wds.shuffle(self.shuffle, initial=self.shuffle, rng=draws)(samples)
        for raw in samples:
            yield from self._samples(raw, epoch)

    def _draw(self, *keys: int) -> int:
        return int(torch.randint(2**62, (), generator=stream(self.seed, *keys)))

    def _read(self, shards: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the members of each sample of each shard, as bytes by name."""
        wds = require("webdataset", extra="shards")
        for shard in shards:
            number = 0
            try:
                with open(shard, "rb") if _is_path(shard) else wds.gopen(shard) as file:  # noqa: PTH123
                    members = wds.tariterators.tar_file_expander([{"url": shard, "stream": file}])
                    for raw in wds.tariterators.group_by_keys(members):
                        number += 1
                        yield raw
            except Exception as error:  # tarfile, zlib, the network: whatever ends the shard early
                what = f"{type(error).__name__}: {error.args[0] if error.args else ''}"
                reason = f"cannot be read after {number} samples ({what})"
                raise DataError(shard, [Fault(reason, "copy or write the shard anew")]) from error
            expected = self._counts.get(shard, number)
            if number != expected:
                reason = f"holds {number} samples, its index says {expected}"
                raise DataError(shard, [Fault(reason, "copy or write the shard anew")])

    def _samples(self, raw: Mapping[str, Any], epoch: int) -> Iterator[Sample | Pair]:
        """Yield the samples of a row: one, or two at resolution "both"."""
        about = _about(raw)
        target, row = self._target(raw, about), _row(raw, about)
        keyed = self.transform is not None and takes_generator(self.transform)

        def options(second: int) -> dict[str, Any]:
            return {"generator": stream(self.seed, epoch, row, second)} if keyed else {}

        if self.resolution == "pair":
            low, high = _image(raw, "low"), _image(raw, "high")
            if self.transform is not None:
                low, high = self.transform(low, high, **options(0))
            yield Pair(low, high, target, row)
            return
        names = ("low", "high") if self.resolution == "both" else (self.resolution,)
        for second, name in enumerate(names):
            image = _image(raw, name)
            if self.transform is not None:
                image = self.transform(image, **options(second))
            yield Sample(image, target, row)

    def _target(self, raw: Mapping[str, Any], about: Mapping[str, Any]) -> int:
        label = about.get("label")
        if label is None and "cls" in raw:
            text = bytes(raw["cls"]).strip()
            number = int(text) if text.isdigit() and len(text) < 10 else -1
            if not 0 <= number < (len(self.classes) or 2**31):
                reason = f"has class number {text[:20]!r}, not one of {len(self.classes)}"
                raise _error(raw, reason, "mend it or the class list")
            return number
        if label is None:
            return -1
        if label not in self._index:
            raise _error(raw, unknown_class(str(label), self.classes), "mend it or the class list")
        return self._index[label]


def _about(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if "json" not in raw:
        return {}
    try:
        about = json.loads(raw["json"])
    except ValueError as error:
        raise _error(raw, f"has JSON that cannot be read ({error})", _MEND) from None
    if not isinstance(about, dict) or not isinstance(about.get("label"), str | None):
        raise _error(raw, "has JSON that is no object with a text as its `label`", _MEND)
    return about


def _row(raw: Mapping[str, Any], about: Mapping[str, Any]) -> int:
    """Return the row: as written, or the key as a number, or one made from the key's letters."""
    row = about.get("row")
    if row is None:
        key = str(raw["__key__"])
        if re.fullmatch(r"[0-9]{1,18}", key):
            return int(key)
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < 2**63:
        raise _error(raw, f"has `row` {row!r}, no number of a row", _MEND)
    return row


def _image(raw: Mapping[str, Any], name: str) -> torch.Tensor:
    fields = [field for field in raw if field.startswith(f"{name}.")]
    if not fields and name == "low":
        fields = [field for field in raw if _IMAGE.fullmatch(field)]
    if len(fields) != 1:
        found = " and ".join(fields) or "none"
        raise _error(raw, f"must have one {name}-resolution image, has {found}", _MEND)
    try:
        return decode_image(io.BytesIO(raw[fields[0]]))
    except DataError as error:
        fault = error.faults[0]
        raise _error(raw, fault.reason, fault.remedy, field=fields[0]) from None


def _error(raw: Mapping[str, Any], reason: str, remedy: str, *, field: str = "") -> DataError:
    key = f"{raw['__key__']}.{field}" if field else str(raw["__key__"])
    return DataError(raw["__url__"], [Fault(reason, remedy, path=key)])


def _is_path(shard: str) -> bool:
    return not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", shard)


def _check_address(shard: str) -> str:
    """Refuse what WebDataset would run as a command, and schemes that it runs programs for."""
    if not _is_path(shard) and not shard.lower().startswith(("https://", "http://")):
        raise ValueError(f"`shards` must be paths or https: addresses, got {shard!r}")
    return shard
