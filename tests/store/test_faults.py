"""Failpoints: armed ones fail as told, the others cost nothing and change nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from store.faults import Failpoints, FaultyFiles, Point
from store.files import FileSystem


@pytest.fixture
def faults() -> Failpoints:
    return Failpoints()


@pytest.fixture
def fs(faults: Failpoints) -> FaultyFiles:
    return FaultyFiles(FileSystem(), faults)


def test_nothing_armed_is_the_plain_file_system(fs: FaultyFiles, faults: Failpoints, tmp_path: Path) -> None:
    """Every call passes through and is counted."""
    fs.makedirs(tmp_path / "d")
    path = tmp_path / "d" / "f"
    fd = fs.create(path, 10)
    fs.reserve(fd, 0, 10)
    fs.write_all(fd, b"abc", 0)
    fs.fdatasync(fd)
    assert fs.pread(fd, 3, 0) == fs.pread_cached(fd, 3, 0) == b"abc"
    fs.truncate(fd, 5)
    assert fs.size(fd) == 5
    fs.next_data(fd, 0)
    fs.close(fd)
    fs.set_mtime(path, 10**9)
    status = fs.stat(path)
    assert status is not None
    assert status.mtime_ns == 10**9
    fs.rename(path, tmp_path / "d" / "g")
    fs.sync_directory(tmp_path / "d")
    assert fs.listdir(tmp_path / "d") == ["g"]
    fs.unlink(tmp_path / "d" / "g")
    fs.rmdir(tmp_path / "d")
    fd = fs.lock(tmp_path / "lock") or 0
    assert fd
    fs.unlock(tmp_path / "lock", fd)
    assert fs.usage(tmp_path).used > 0
    expected: list[Point] = ["open", "reserve", "write", "flush", "read", "truncate", "rename", "delete"]
    assert set(faults.passed) == set(expected)


@pytest.mark.parametrize("point", ["open", "read", "write", "flush", "reserve", "rename", "truncate", "delete"])
def test_each_point_fails_once_and_then_works(
    fs: FaultyFiles, faults: Failpoints, tmp_path: Path, point: Point
) -> None:
    """After ``skip`` good passes the armed error comes, ``times`` times."""
    path = tmp_path / "f"

    def use() -> None:
        fd = fs.open(path, create=True)
        try:
            fs.write_all(fd, b"abc", 0)
            fs.reserve(fd, 0, 10)
            fs.fdatasync(fd)
            fs.truncate(fd, 3)
            fs.pread(fd, 1, 0)
        finally:
            fs.close(fd)
        fs.rename(path, tmp_path / "g")
        fs.unlink(tmp_path / "g")

    faults.arm(point, OSError(errno.ENOSPC, "armed"), skip=1)
    use()
    with pytest.raises(OSError, match="armed"):
        use()
    use()


def test_a_torn_write_leaves_its_first_bytes(fs: FaultyFiles, faults: Failpoints, tmp_path: Path) -> None:
    """Then it fails, as a disk that fills up in the middle."""
    fd = fs.create(tmp_path / "f", 10)
    faults.arm("write", torn=2)
    with pytest.raises(OSError, match="middle"):
        fs.write_all(fd, b"abcdef", 1)
    assert fs.pread(fd, 10, 0) == b"\0ab" + bytes(7)
    fs.close(fd)


def test_disarm(fs: FaultyFiles, faults: Failpoints, tmp_path: Path) -> None:
    """A disarmed point does not fail."""
    faults.arm("open")
    faults.disarm("open")
    fs.close(fs.create(tmp_path / "f", 1))
