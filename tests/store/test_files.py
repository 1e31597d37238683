"""The system calls of the store: full-size creation, whole writes, descriptors, the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.errors import StoreLocked
from store.files import DirectoryLock, DiskUsage, FileSystem, OpenFiles

FS = FileSystem()


def test_create_gives_the_full_size_at_once(tmp_path: Path) -> None:
    """A new file has its size when its name appears; a taken name is refused and keeps its bytes."""
    path = tmp_path / "00000000000000000000"
    fd = FS.create(path, 5000)
    assert FS.size(fd) == 5000
    assert FS.pread(fd, 6000, 0) == bytes(5000)
    FS.close(fd)
    path.write_bytes(b"x")
    with pytest.raises(FileExistsError):
        FS.create(path, 10)
    assert path.read_bytes() == b"x"


def test_create_where_unnamed_files_are_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no O_TMPFILE; the file is then made under its name."""
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmpfile)
    fd = FS.create(tmp_path / "f", 100)
    assert FS.size(fd) == 100
    FS.close(fd)
    with pytest.raises(FileExistsError):
        FS.create(tmp_path / "f", 100)


class _ShortWrites(FileSystem):
    """Writes at most three bytes at a time, and nothing at all from the third call on if so told."""

    def __init__(self, stop: bool = False) -> None:
        self.calls = 0
        self.stop = stop

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        self.calls += 1
        if self.stop and self.calls > 2:
            return 0
        return super().pwrite(fd, memoryview(data)[:3], offset)


def test_write_all_goes_on_after_a_short_write(tmp_path: Path) -> None:
    """A write may take a part only; all bytes arrive, or an error is raised when nothing moves."""
    fs = _ShortWrites()
    fd = fs.create(tmp_path / "f", 20)
    fs.write_all(fd, b"0123456789", 5)
    assert fs.pread(fd, 20, 0) == b"\0" * 5 + b"0123456789" + b"\0" * 5
    with pytest.raises(OSError, match="no progress"):
        _ShortWrites(stop=True).write_all(fd, b"0123456789", 0)
    fs.close(fd)


def test_reading_what_is_in_memory(tmp_path: Path) -> None:
    """Just written bytes are in the page cache; the end of the file is not mistaken for a missing page."""
    fd = FS.create(tmp_path / "f", 100)
    FS.write_all(fd, b"abc", 97)
    assert FS.pread_cached(fd, 3, 97) == b"abc"
    assert FS.pread_cached(fd, 50, 97) == b"abc"
    assert FS.pread_cached(fd, 50, 100) == b""
    FS.close(fd)


def test_data_and_holes(tmp_path: Path) -> None:
    """Where nothing was written, nothing has to be read."""
    fd = FS.create(tmp_path / "f", 1 << 20)
    assert FS.next_data(fd, 0) in (None, 0)
    FS.write_all(fd, b"x", 1 << 19)
    found = FS.next_data(fd, 0)
    assert found is not None
    assert found <= 1 << 19
    FS.close(fd)


def test_names(tmp_path: Path) -> None:
    """Listing sorts, and an absent directory is an empty one; stat says None for what is not there."""
    assert FS.listdir(tmp_path / "none") == []
    assert FS.stat(tmp_path / "none") is None
    FS.makedirs(tmp_path / "a" / "b")
    FS.makedirs(tmp_path / "a" / "b")
    FS.close(FS.open(tmp_path / "a" / "z", create=True))
    assert FS.listdir(tmp_path / "a") == ["b", "z"]
    status = FS.stat(tmp_path / "a")
    assert status is not None
    assert status.is_directory
    FS.rename(tmp_path / "a" / "z", tmp_path / "a" / "y")
    FS.unlink(tmp_path / "a" / "y")
    FS.rmdir(tmp_path / "a" / "b")
    FS.sync_directory(tmp_path / "a")
    assert FS.listdir(tmp_path / "a") == []


def test_used_percent_is_rounded_up() -> None:
    """As df shows it."""
    assert DiskUsage(1, 999).percent == 1
    assert DiskUsage(75, 25).percent == 75
    assert DiskUsage(751, 249).percent == 76
    assert DiskUsage(0, 0).percent == 100
    assert FS.usage("/").used > 0


def test_open_files_are_bounded_and_stay_open_while_held(tmp_path: Path) -> None:
    """The least recently used descriptor is closed, but not while a reader holds it."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    files = OpenFiles(FS, 2)
    held = files.get(str(tmp_path / "a"))
    files.get(str(tmp_path / "b"))
    files.get(str(tmp_path / "a"))
    files.get(str(tmp_path / "c"))  # drops b
    assert len(files) == 2
    assert files.get(str(tmp_path / "a")) is held
    fd = held.fd
    files.clear()
    assert FS.pread(fd, 1, 0) == b"a"
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        FS.pread(fd, 1, 0)


def test_open_files_forget_and_adopt(tmp_path: Path) -> None:
    """A forgotten path is opened again; an adopted descriptor is used and closed like the others."""
    path = str(tmp_path / "f")
    files = OpenFiles(FS, 1)
    first = files.adopt(path, FS.create(path, 1))
    assert files.get(path) is first
    files.forget(path)
    assert files.get(path) is not first
    files.adopt(str(tmp_path / "g"), FS.create(tmp_path / "g", 1))
    assert len(files) == 1


OTHER_PROCESS = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError:
        print("held")
    else:
        print("free")
"""


def test_lock_keeps_other_processes_and_this_one_out(tmp_path: Path) -> None:
    """It is the POSIX record lock that Java takes, and it excludes a second store in the same process too."""

    def others_see() -> str:
        command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "lock")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    lock = DirectoryLock(str(tmp_path), str(tmp_path), FS)
    assert others_see() == "held"
    with pytest.raises(StoreLocked, match=str(tmp_path / "lock")):
        DirectoryLock(str(tmp_path), str(tmp_path), FS)
    assert others_see() == "held"  # the refused attempt has not dropped the lock
    lock.release()
    assert others_see() == "free"
    DirectoryLock(str(tmp_path), str(tmp_path), FS).release()
    assert (tmp_path / "lock").read_bytes() == b"lock"  # not earlier: closing any descriptor drops such a lock


def test_a_directory_is_locked_as_a_whole_where_that_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = FS.lock_directory(tmp_path)
    assert fd is not None
    assert FS.lock_directory(tmp_path) is None
    FS.unlock(tmp_path, fd)

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.EBADF, "as on NFS")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    fd = FS.lock_directory(tmp_path)
    assert fd is not None
    FS.unlock(tmp_path, fd)
