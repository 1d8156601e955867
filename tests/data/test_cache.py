import errno
import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lowres_vision.data import DataError, Manifest, MultiResolutionDataset, decode_image
from lowres_vision.data import _cache_file as cache_file
from lowres_vision.data._cache import open_cache
from lowres_vision.data._cache_file import CacheFile
from lowres_vision.data._decode_files import Decoded, decode_files

SIZES = [(5, 7), (8, 8), (5, 7), (3, 2)]

FORK = multiprocessing.get_context("fork") if os.name == "posix" else None
needs_fork = pytest.mark.skipif(FORK is None, reason="needs fork and file locks")
# Python 3.12 warns of every fork beside threads; these children touch no lock of theirs.
may_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four images of three sizes, an hour old: too old to change within a tick of the clock."""
    (tmp_path / "images").mkdir()
    levels = np.random.default_rng(0)
    paths = []
    for number, size in enumerate(SIZES):
        path = tmp_path / "images" / f"{number}.png"
        Image.fromarray(levels.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are taken for older than a tick."""
    monkeypatch.setattr("lowres_vision.data._cache._TICK_NS", -(10**9))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of files each time a cache is made."""
    found: list[int] = []

    def write(path: Path, images: Iterable[Decoded], count: int, key: Any) -> None:
        found.append(count)
        cache_file.write_images(path, images, count, key)

    monkeypatch.setattr("lowres_vision.data._cache.write_images", write)
    return found


def assert_holds(cache: CacheFile, files: list[Path]) -> None:
    for number, path in enumerate(files):
        assert torch.equal(cache.read(np.array([number]))[0], decode_image(path))


def image_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".images", ".part"))


def test_images_are_those_of_the_files_in_any_order(files: list[Path], tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", files, "images")
    assert_holds(cache, files)
    numbers = np.array([3, 0, 0, 2, 1])
    for number, image in zip(numbers, cache.read(numbers), strict=True):
        assert torch.equal(image, decode_image(files[number]))
    one_size = cache.read(np.array([2, 0]))
    assert isinstance(one_size, torch.Tensor)
    assert one_size.shape == (2, 3, 5, 7)


def test_images_of_one_size_are_one_tensor(files: list[Path], tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", [files[0], files[2]], "images")
    batch = cache.read(np.array([1, 0, 1]))
    assert torch.equal(batch, torch.stack([decode_image(files[i]) for i in (2, 0, 2)]))  # type: ignore[arg-type]
    assert cache.read(np.array([], dtype=np.int64)).shape == (0, 3, 5, 7)  # type: ignore[union-attr]


def test_what_was_read_may_be_written_to(files: list[Path], tmp_path: Path) -> None:
    for chosen in ([0, 2], [0, 1]):
        cache = open_cache(tmp_path / "cache", [files[i] for i in chosen], "images")
        for image in cache.read(np.array([0, 1])):
            image.zero_()
        assert_holds(cache, [files[i] for i in chosen])


@pytest.mark.usefixtures("settled")
def test_a_second_run_decodes_and_reads_nothing(
    files: list[Path], tmp_path: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cache(tmp_path / "cache", files, "images")
    monkeypatch.setattr("lowres_vision.data._cache.digest_files", None)  # a call would raise
    assert_holds(open_cache(tmp_path / "cache", files, "images"), files)
    assert builds == [4]


@pytest.mark.usefixtures("settled")
def test_new_times_or_names_cost_a_read_but_no_decoding(
    files: list[Path], tmp_path: Path, builds: list[int]
) -> None:
    open_cache(tmp_path / "cache", files, "images")
    os.utime(files[1], (1, 1))
    open_cache(tmp_path / "cache", files, "images")
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in files]
    assert_holds(open_cache(tmp_path / "cache", moved, "images"), moved)
    assert builds == [4]


@pytest.mark.usefixtures("settled")
def test_content_number_order_and_decoder_are_the_key(
    files: list[Path], tmp_path: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    open_cache(folder, files, "images")
    stat = files[1].stat()
    pixels = np.array(Image.open(files[1]))
    bitmap = io.BytesIO()
    Image.fromarray(255 - pixels).save(bitmap, "BMP")
    files[1].write_bytes(bitmap.getvalue())
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # ctime still tells
    assert_holds(open_cache(folder, files, "images"), files)
    assert_holds(open_cache(folder, files[::-1], "images"), files[::-1])
    assert_holds(open_cache(folder, files[:3], "images"), files[:3])
    monkeypatch.setattr("lowres_vision.data._cache._DECODER", 0)
    assert_holds(open_cache(folder, files, "images"), files)
    assert builds == [4, 4, 4, 3, 4]
    assert len(image_files(folder)) == 5


def test_times_of_young_files_are_not_trusted(
    files: list[Path], tmp_path: Path, builds: list[int]
) -> None:
    folder = tmp_path / "cache"
    open_cache(folder, files, "images")
    assert not list(folder.glob("*.key"))
    stat = files[0].stat()
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1  # past the pixels: the same image, yet another content
    files[0].write_bytes(data)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    open_cache(folder, files, "images")
    assert builds == [4, 4]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("where", ["head", "table", "end", "all", "magic"])
def test_a_damaged_file_is_never_read_but_made_anew(
    files: list[Path], tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    path = open_cache(folder, files, "images").path
    whole = path.read_bytes()
    data = bytearray(whole)
    if where in ("end", "all"):
        data = data[: -1 if where == "end" else 0]
    else:
        data[{"magic": 3, "head": 30, "table": 90}[where]] ^= 16
    path.unlink()  # the old one is still mapped
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"\.images: (is|has) .*; delete it"):
        CacheFile(path)
    with caplog.at_level(logging.WARNING, "lowres_vision"):
        assert_holds(open_cache(folder, files, "images"), files)
    assert "a damaged cache is made anew" in caplog.text
    assert path.read_bytes() == whole


def test_every_flipped_bit_of_an_image_is_found(files: list[Path], tmp_path: Path) -> None:
    path = open_cache(tmp_path / "cache", files, "images").path
    whole = path.read_bytes()
    first = len(whole) - sum(3 * height * width for height, width in SIZES)
    for byte in (first, first + 3 * 5 * 7 - 1):
        for bit in range(8):
            data = bytearray(whole)
            data[byte] ^= 1 << bit
            path.unlink()
            path.write_bytes(data)
            cache = CacheFile(path)
            with pytest.raises(DataError, match=r"row 1: holds a damaged image; delete it"):
                cache.read(np.array([1, 0]))
            assert torch.equal(cache.read(np.array([1]))[0], decode_image(files[1]))


def test_an_image_that_is_not_there_is_no_other(files: list[Path], tmp_path: Path) -> None:
    files[2].write_bytes(files[2].read_bytes()[:60])
    files[0].unlink()
    cache = open_cache(tmp_path / "cache", files, "images")
    assert cache.missing(np.arange(4)).tolist() == [0, 2]
    assert torch.equal(cache.read(np.array([1, 3]))[1], decode_image(files[3]))
    for number in (0, 2):
        with pytest.raises(DataError, match=f"row {number + 1}"):
            cache.read(np.array([1, number, 3]))


def test_it_pickles_as_its_path(files: list[Path], tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", files, "images")
    data = pickle.dumps(cache)
    assert len(data) < 1000
    assert_holds(pickle.loads(data), files)


@needs_fork
@may_fork
def test_what_one_process_has_checked_its_siblings_have(files: list[Path], tmp_path: Path) -> None:
    assert FORK is not None
    cache = open_cache(tmp_path / "cache", files, "images")
    process = FORK.Process(target=cache.read, args=(np.array([1, 2]),))
    process.start()
    process.join()
    assert cache._checked.tolist() == [False, True, True, False]


def test_a_full_disk_is_an_error_that_leaves_nothing(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left.*free") as caught:
        open_cache(folder, files, "images")
    assert caught.value.errno == errno.ENOSPC
    assert image_files(folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_pixels_are_written(files: list[Path]) -> None:
    decoded = list(decode_files(files, "")) * 4000  # more than one write buffer
    with pytest.raises(OSError, match="No space left"):
        cache_file.write_images(Path("/dev/full"), decoded, len(decoded), hashlib.sha256())


def test_a_folder_that_cannot_be_made_is_named(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"another folder as `cache`.*file"):
        open_cache(tmp_path / "file" / "cache", files, "images")


@pytest.mark.usefixtures("settled")
@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_folder_that_is_only_read_serves(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    open_cache(folder, files, "images")
    os.utime(files[0], (1, 1))  # so that it would write, if it could
    (folder / "lock").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("lowres_vision.data._cache.write_whole", refuse)
    monkeypatch.setattr("lowres_vision.data._cache.fcntl.flock", refuse)
    assert_holds(open_cache(folder, files, "images"), files)


def write_slowly(folder: Path, pause: float, said: "multiprocessing.Queue[str]") -> None:
    """Make the cache, telling of each image and pausing after it."""
    write = cache_file.write_images

    def slow(path: Path, images: Iterable[Decoded], count: int, key: Any) -> None:
        def slowly() -> Iterator[Decoded]:
            for image in images:
                said.put("image")
                time.sleep(pause)
                yield image

        write(path, slowly(), count, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowres_vision.data._cache.write_images", slow)
        cache = open_cache(folder / "cache", sorted((folder / "images").iterdir()), "images")
    said.put(cache.path.name)


@needs_fork
@may_fork
def test_of_two_writers_one_writes_and_one_waits(files: list[Path], tmp_path: Path) -> None:
    assert FORK is not None
    said = [FORK.Queue(), FORK.Queue()]
    writers = [FORK.Process(target=write_slowly, args=(tmp_path, 0.1, q)) for q in said]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    words = [[queue.get(timeout=5)] for queue in said]
    for queue, found in zip(said, words, strict=True):
        while found[-1] == "image":
            found.append(queue.get(timeout=5))
    assert sorted(word.count("image") for word in words) == [0, 4]
    assert image_files(tmp_path / "cache") == [words[0][-1]] == [words[1][-1]]
    assert_holds(CacheFile(tmp_path / "cache" / words[0][-1]), files)


def test_writers_without_locks_agree_on_the_file(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowres_vision.data._cache.fcntl", None)
    folder = tmp_path / "cache"
    write = cache_file.write_images
    started: list[bool] = []
    inner: list[CacheFile] = []

    def interrupted(path: Path, images: Iterable[Decoded], count: int, key: Any) -> None:
        if not started:  # a second writer comes and goes while the first is at work
            started.append(True)
            inner.append(open_cache(folder, files, "images"))
        write(path, images, count, key)

    monkeypatch.setattr("lowres_vision.data._cache.write_images", interrupted)
    outer = open_cache(folder, files, "images")
    assert outer.path == inner[0].path
    assert image_files(folder) == [outer.path.name]
    assert_holds(outer, files)
    assert_holds(inner[0], files)  # though its file was replaced


@needs_fork
@may_fork
def test_what_a_killed_writer_leaves_is_never_read(files: list[Path], tmp_path: Path) -> None:
    assert FORK is not None
    said = FORK.Queue()
    writer = FORK.Process(target=write_slowly, args=(tmp_path, 60, said))
    writer.start()
    assert said.get(timeout=60) == "image"
    writer.kill()
    writer.join()
    assert [Path(name).suffix for name in image_files(tmp_path / "cache")] == [".part"]
    cache = open_cache(tmp_path / "cache", files, "images")
    assert image_files(tmp_path / "cache") == [cache.path.name]
    assert_holds(cache, files)


def test_progress_is_told_of_long_work_only(
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_cache(tmp_path / "cache", files, "images")
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("lowres_vision.data._decode_files._AT_ONCE", 1)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    open_cache(tmp_path / "other", files, "low images")
    assert capsys.readouterr().err.splitlines() == [
        "caching low images: 0 of 4 (0/s)",
        "caching low images: 2 of 4 (0/s)",
        "caching low images: 4 of 4 in 100 s",
    ]


def test_the_data_set_names_every_damaged_file_at_once(toy: Path, tmp_path: Path) -> None:
    lines = ["img_path,label"]
    for number in range(5):
        data = (toy / "train" / f"TRAIN_{number:05}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(data[:500] if number in (1, 3) else data)
        lines.append(f"{number}.png,a")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    manifest = Manifest.read_csv(tmp_path / "train.csv")
    with pytest.raises(DataError) as caught:
        MultiResolutionDataset(manifest, cache=tmp_path / "cache")
    assert [(fault.row, fault.path) for fault in caught.value.faults] == [
        (2, "1.png"),
        (4, "3.png"),
    ]
    assert "cannot be decoded" in caught.value.faults[0].reason
    sound = MultiResolutionDataset(manifest, rows=[4, 0, 2], cache=tmp_path / "cache")
    assert [int(sample.row) for sample in sound.__getitems__([0, 1, 2])] == [4, 0, 2]
    assert torch.equal(sound[0].image, decode_image(tmp_path / "4.png"))  # type: ignore[union-attr]
