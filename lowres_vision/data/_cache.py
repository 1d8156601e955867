"""Decoded images kept on disk, found again by what their files hold."""

import contextlib
import hashlib
import logging
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL
from PIL import features

from lowres_vision._files import write_whole
from lowres_vision.data._cache_file import CacheFile, write_images
from lowres_vision.data._decode_files import decode_files, digest_files
from lowres_vision.data._errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DECODER = 2  # to be raised when decode_image gives other pixels for the same file
_TICK_NS = 2 * 10**9  # the coarsest clock of a file system in use, FAT's
_log = logging.getLogger("lowres_vision")


def open_cache(folder: str | os.PathLike[str], paths: Sequence[Path], what: str) -> CacheFile:
    """Return the decoded images of ``paths``, decoding them if the folder does not hold them.

    A cache file is named by a SHA-256 over the bytes of the image files in their order and the
    version of the decoder. So that the files need not be read for it each time, a second, small
    file is named by their paths, lengths and times, and holds that name. It is not written while
    a file is so young that it could change again within the same tick of the clock.

    One process at a time makes a cache in a folder, where the system has file locks; where it has
    none, several may make the same one, and the last renames its own into place. What a killed
    process left is never read, and removed by the next on the same host.

    Args:
        folder: Made if it is not there.
        paths: The image files.
        what: What to call them while they are decoded.

    Raises:
        OSError: If the folder cannot be written to, a full disk for instance.
    """
    folder = Path(folder)
    _make(folder)
    stamp, settled = _stamp(paths)
    alias = folder / f"{stamp}.key"
    if found := _find(folder, alias):
        return found
    with _lock(folder) as locked:
        if found := _find(folder, alias):  # another process made it meanwhile
            return found
        if any(folder.glob("*.images")):
            found = _load(_path(folder, _key(paths)))
        if found is None:
            found = CacheFile(_build(folder, paths, what, clean=locked))
        if settled:
            with contextlib.suppress(OSError):  # a folder that others share may be read-only
                write_whole(alias, found.key.hex().encode())
    return found


def _new_key() -> "hashlib._Hash":
    """Return the hash that names a content; it grows by one file's SHA-256 at a time."""
    versions = (_DECODER, PIL.__version__, features.version("jpg"), features.version("webp"))
    return hashlib.sha256(repr(versions).encode())


def _key(paths: Sequence[Path]) -> bytes:
    key = _new_key()
    for digest in digest_files(paths):
        key.update(digest)
    return key.digest()


def _path(folder: Path, key: bytes) -> Path:
    return folder / f"{key.hex()[:32]}.images"


def _stamp(paths: Sequence[Path]) -> tuple[str, bool]:
    """Return a hash of paths, lengths and times, and whether they can be trusted."""
    stamp = _new_key()
    now, newest = time.time_ns(), 0
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 - of a million paths, Path.stat adds a second
        except OSError:
            stamp.update(f"{path}\0-\0".encode())
            continue
        # A file can be changed and its mtime set back; its ctime cannot.
        newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
        times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        stamp.update(f"{path}\0{times}\0".encode(errors="surrogatepass"))
    return stamp.hexdigest()[:32], newest < now - _TICK_NS


def _find(folder: Path, alias: Path) -> CacheFile | None:
    """Return the cache that ``alias`` leads to, or None where there is no sound one."""
    try:
        key = alias.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return _load(_path(folder, bytes.fromhex(key))) if re.fullmatch("[0-9a-f]{64}", key) else None


def _load(path: Path) -> CacheFile | None:
    try:
        cache = CacheFile(path)
    except FileNotFoundError:
        return None
    except DataError as error:
        _log.warning("a damaged cache is made anew: %s", error)
        return None
    if _path(path.parent, cache.key) != path:
        _log.warning("a cache that was renamed is made anew: %s", path)
        return None
    return cache


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


def _build(folder: Path, paths: Sequence[Path], what: str, *, clean: bool) -> Path:
    """Decode the files into a new cache and return its path."""
    host = re.sub(r"[^\w.]", "_", platform.node())
    if clean:  # whoever holds the lock is the only one on this host who writes here
        for left in folder.glob(f"{host}-*.part"):
            left.unlink(missing_ok=True)
    part = folder / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.part"
    key = _new_key()
    try:
        write_images(part, decode_files(paths, f"caching {what}"), len(paths), key)
        path = _path(folder, key.digest())
        part.replace(path)
    except OSError as error:
        raise _refused(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, if there is one to be had; it ends with the process that holds it."""
    with contextlib.ExitStack() as stack:
        locked = False
        if fcntl is not None:
            with contextlib.suppress(OSError):  # read-only, or a file system without locks
                file = stack.enter_context((folder / "lock").open("wb"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.warning("waiting for another process that writes to the cache %s", folder)
                    fcntl.flock(file, fcntl.LOCK_EX)
                locked = True
        yield locked


def _refused(folder: Path, error: OSError) -> OSError:
    remedy = "free space, or give another folder as `cache`"
    return OSError(error.errno, f"the cache cannot be written: {error.strerror}; {remedy}", folder)
