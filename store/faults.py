"""Named failpoints: a file system that fails where a test says so.

Owns: the list of points and the wrapper that consults it. A broker runs on the plain ``FileSystem``, so a
point that is off costs nothing; a test opens the store on ``FaultyFiles`` and arms points:

    faults = Failpoints()
    faults.arm("flush", OSError(errno.EIO, "injected"))    # the next fdatasync fails
    faults.arm("write", torn=100)                          # the next write fails after 100 bytes
    MessageStore.open(options, fs=FaultyFiles(FileSystem(), faults), ...)
"""

from __future__ import annotations

import errno
from typing import Literal

from store.files import DiskUsage, FileIdentity, FileStatus, FileSystem, StrPath

Point = Literal["open", "read", "write", "flush", "reserve", "rename", "truncate", "delete"]


class _Armed:
    __slots__ = ("error", "skip", "times", "torn")

    def __init__(self, error: OSError, skip: int, times: int, torn: int | None) -> None:
        self.error = error
        self.skip = skip
        self.times = times
        self.torn = torn


class Failpoints:
    """Which points fail, and how often they were passed."""

    def __init__(self) -> None:
        self._armed: dict[Point, _Armed] = {}
        self.passed: dict[Point, int] = {}

    def arm(
        self,
        point: Point,
        error: OSError | None = None,
        *,
        skip: int = 0,
        times: int = 1,
        torn: int | None = None,
    ) -> None:
        """Let the point fail ``times`` times after ``skip`` good passes.

        ``torn``: a write first writes that many bytes of its data (a disk that filled up in the middle).
        """
        self._armed[point] = _Armed(error or OSError(errno.EIO, f"injected at {point}"), skip, times, torn)

    def disarm(self, point: Point) -> None:
        self._armed.pop(point, None)

    def check(self, point: Point) -> int | None:
        """Pass the point: None to go on, a count of bytes to write before failing, or the armed error."""
        self.passed[point] = self.passed.get(point, 0) + 1
        armed = self._armed.get(point)
        if armed is None:
            return None
        if armed.skip:
            armed.skip -= 1
            return None
        armed.times -= 1
        if armed.times <= 0:
            del self._armed[point]
        if armed.torn is not None and point == "write":
            return armed.torn
        raise armed.error


class FaultyFiles(FileSystem):
    """Another file system, with failpoints before its calls."""

    def __init__(self, inner: FileSystem, faults: Failpoints) -> None:
        self._inner = inner
        self._faults = faults

    def open(self, path: StrPath, *, create: bool = False, readonly: bool = False) -> int:
        self._faults.check("open")
        return self._inner.open(path, create=create, readonly=readonly)

    def create(self, path: StrPath, size: int) -> int:
        self._faults.check("open")
        return self._inner.create(path, size)

    def close(self, fd: int) -> None:
        self._inner.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._faults.check("read")
        return self._inner.pread(fd, length, offset)

    def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
        self._faults.check("read")
        return self._inner.pread_cached(fd, length, offset)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        torn = self._faults.check("write")
        if torn is None:
            return self._inner.pwrite(fd, data, offset)
        self._inner.write_all(fd, memoryview(data)[:torn], offset)
        raise OSError(errno.EIO, "injected in the middle of a write")

    def fdatasync(self, fd: int) -> None:
        self._faults.check("flush")
        self._inner.fdatasync(fd)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._faults.check("reserve")
        self._inner.reserve(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        self._faults.check("truncate")
        self._inner.truncate(fd, size)

    def rename(self, source: StrPath, target: StrPath) -> None:
        self._faults.check("rename")
        self._inner.rename(source, target)

    def unlink(self, path: StrPath) -> None:
        self._faults.check("delete")
        self._inner.unlink(path)

    def rmdir(self, path: StrPath) -> None:
        self._faults.check("delete")
        self._inner.rmdir(path)

    def makedirs(self, path: StrPath, *, sync: bool = True) -> None:
        self._inner.makedirs(path, sync=sync)

    def listdir(self, path: StrPath) -> list[str]:
        return self._inner.listdir(path)

    def stat(self, path: StrPath) -> FileStatus | None:
        return self._inner.stat(path)

    def size(self, fd: int) -> int:
        return self._inner.size(fd)

    def next_data(self, fd: int, offset: int) -> int | None:
        return self._inner.next_data(fd, offset)

    def set_mtime(self, path: StrPath, mtime_ns: int) -> None:
        self._inner.set_mtime(path, mtime_ns)

    def sync_directory(self, path: StrPath) -> None:
        self._faults.check("flush")
        self._inner.sync_directory(path)

    def identity(self, path: StrPath) -> FileIdentity:
        return self._inner.identity(path)

    def boot_id(self) -> str:
        return self._inner.boot_id()

    def usage(self, path: StrPath) -> DiskUsage:
        return self._inner.usage(path)

    def lock(self, path: StrPath) -> int | None:
        return self._inner.lock(path)

    def lock_directory(self, path: StrPath) -> int | None:
        return self._inner.lock_directory(path)

    def unlock(self, path: StrPath, fd: int) -> None:
        self._inner.unlock(path, fd)
