import errno
import os
import stat
from pathlib import Path

import pytest

from lowres_vision._files import write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for data in (b"first", b"second"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"first")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls that decide what a power failure leaves, as they are made."""
    made: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        about = os.fstat(handle)
        made.append("sync folder" if stat.S_ISDIR(about.st_mode) else f"sync {about.st_size} bytes")
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        made.append(f"rename to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return made


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    calls: list[str], tmp_path: Path
) -> None:
    write_whole(tmp_path / "a.bin", b"first")
    assert calls == ["sync 5 bytes", "rename to a.bin", "sync folder"]


def test_windows_has_no_sync_of_folders(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    monkeypatch.setattr("lowres_vision._files.os.name", "nt")
    write_whole(path, b"first")
    monkeypatch.undo()
    assert calls == ["sync 5 bytes", "rename to a.bin"]
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_only_a_file_system_that_cannot_sync_a_folder_is_excused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refusing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    path = tmp_path / "a.bin"
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            write_whole(path, b"first")
    else:
        write_whole(path, b"first")
    assert path.read_bytes() == b"first"


def test_a_folder_that_cannot_be_read_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop the root user, who may run this."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    write_whole(tmp_path / "a.bin", b"first")
    assert (tmp_path / "a.bin").read_bytes() == b"first"
