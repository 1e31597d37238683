"""Every system call that the store makes on files, behind one object.

Owns: the ``FileSystem`` seam, the cache of open descriptors and the directory lock. Nothing else in
``store/`` may touch ``os`` for I/O: the power-loss model and the failpoints of the tests replace this
object, and a call that went around it would be a promise nobody has tested.

Why pread/pwrite and no mmap: a full disk is then ENOSPC, an error with an answer, instead of a SIGBUS;
and the pages belong to the page cache, not to this process's resident memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from store.errors import StoreLocked
from store.memory import physical_memory

StrPath = str | os.PathLike[str]

_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EXDEV, errno.EPERM})
# Names of lock files that this process holds.
_locked_here: set[str] = set()
_NO_NOWAIT = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class FileStatus(NamedTuple):
    """What ``stat`` says: size in bytes, modification time in nanoseconds, kind."""

    size: int
    mtime_ns: int
    is_directory: bool


class FileIdentity(NamedTuple):
    """Which file it is, and when its content or attributes were last changed; nobody can set that time."""

    device: int
    inode: int
    changed_ns: int


class DiskUsage(NamedTuple):
    """Bytes used by anybody, and bytes an ordinary user could still write, on the file system of a path."""

    used: int
    usable: int

    @property
    def percent(self) -> int:
        """Used part in percent, rounded up, as ``df`` and the official broker compute it."""
        total = self.used + self.usable
        return -(-self.used * 100 // total) if total else 100

    @property
    def share(self) -> float | None:
        """Used part of what could be used, not rounded; None if the file system does not tell."""
        total = self.used + self.usable
        return self.used / total if total else None


class FileSystem:
    """The real operating system. Errors are the ``OSError`` of the call.

    All methods may be called from any thread; which calls on one file may overlap is the caller's business.
    """

    def open(self, path: StrPath, *, create: bool = False, readonly: bool = False) -> int:
        """Open an existing file for reading and writing (``create``: make an empty one if it is missing)."""
        flags = os.O_RDONLY if readonly else os.O_RDWR
        return os.open(path, flags | (os.O_CREAT if create else 0), 0o644)

    def create(self, path: StrPath, size: int) -> int:
        """Make a new file of ``size`` zero bytes and open it; FileExistsError if the name is taken.

        The name appears together with the full size where the file system allows it (O_TMPFILE), because an
        official broker refuses to start on a commitlog or queue file of any other size.
        """
        directory = os.path.dirname(path) or "."
        try:
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o644)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        else:
            try:
                os.ftruncate(fd, size)
                os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
            except OSError as error:
                os.close(fd)
                if error.errno not in _NO_TMPFILE:
                    raise
            else:
                return fd
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
        """Like ``pread``, but None instead of waiting when a page must come from the disk.

        Where the file system cannot tell, it reads and perhaps waits.
        """
        buffer = bytearray(length)
        try:
            count = os.preadv(fd, (buffer,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            return os.pread(fd, length, offset)
        if count == length:
            return buffer
        # Short: either the end of the file, or the first page that is not in memory.
        return buffer[:count] if offset + count >= os.fstat(fd).st_size else None

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """One write, which may be short."""
        return os.pwrite(fd, data, offset)

    def write_all(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write everything. After an error any part of the range may have been written."""
        count = self.pwrite(fd, data, offset)
        if count != len(data):
            view = memoryview(data)
            while count < len(view):
                step = self.pwrite(fd, view[count:], offset + count)
                if step == 0:
                    raise OSError(errno.EIO, "write made no progress")
                count += step

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        """Give the range real blocks, so that writing to it cannot fail for lack of space; contents stay.

        Where the file system has no such call, the C library touches every block, which is slower but
        reserves as well; it must then not overlap with a write to the same range.
        """
        os.posix_fallocate(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, source: StrPath, target: StrPath) -> None:
        os.rename(source, target)

    def unlink(self, path: StrPath) -> None:
        os.unlink(path)

    def rmdir(self, path: StrPath) -> None:
        os.rmdir(path)

    def makedirs(self, path: StrPath, *, sync: bool = True) -> None:
        """Make the directory and its parents; nothing happens if it is there.

        ``sync``: what was made survives power loss. Without it, syncing the parents is the caller's.
        """
        name = os.fspath(path)
        parents: list[str] = []
        while sync and not os.path.isdir(name):
            name = os.path.dirname(name) or "."
            parents.append(name)
        os.makedirs(path, exist_ok=True)
        for parent in parents:
            sync_if_allowed(self, parent)

    def listdir(self, path: StrPath) -> list[str]:
        """Names in the directory, sorted; an absent directory is an empty one."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def stat(self, path: StrPath) -> FileStatus | None:
        """None if there is no such entry."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        return FileStatus(status.st_size, status.st_mtime_ns, stat.S_ISDIR(status.st_mode))

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def next_data(self, fd: int, offset: int) -> int | None:
        """The first offset from ``offset`` on that is not in a hole; None if only a hole follows.

        Space that was reserved and never written counts as a hole where the file system knows; elsewhere the
        answer is ``offset`` itself. Either way everything skipped reads as zeros.
        """
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset
            raise

    def set_mtime(self, path: StrPath, mtime_ns: int) -> None:
        """Retention and search by time use modification times, so a copy must carry its original's."""
        os.utime(path, ns=(mtime_ns, mtime_ns))

    def sync_directory(self, path: StrPath) -> None:
        """Make names that were made, renamed or removed in the directory survive power loss."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def identity(self, path: StrPath) -> FileIdentity:
        status = os.stat(path)
        return FileIdentity(status.st_dev, status.st_ino, status.st_ctime_ns)

    def boot_id(self) -> str:
        """Another one after each start of the machine, and so of its page cache. OSError where that is not told."""
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY)
        try:
            return os.read(fd, 64).decode("ascii", "replace").strip()
        finally:
            os.close(fd)

    def usage(self, path: StrPath) -> DiskUsage:
        figures = os.statvfs(path)
        block = figures.f_frsize
        return DiskUsage((figures.f_blocks - figures.f_bfree) * block, figures.f_bavail * block)

    def physical_memory(self) -> int:
        """Bytes of memory of the machine or container, which decide what counts as being in memory."""
        return physical_memory()

    def lock(self, path: StrPath) -> int | None:
        """Open the file and take the lock that Java's FileLock takes: a POSIX record lock on byte 0.

        None if another process, or another store in this process, has it.
        """
        name = os.path.realpath(path)
        if name in _locked_here:
            return None  # POSIX locks do not exclude their own process, and closing a second fd would drop ours
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        _locked_here.add(name)
        return fd

    def unlock(self, path: StrPath, fd: int) -> None:
        _locked_here.discard(os.path.realpath(path))
        os.close(fd)

    def lock_directory(self, path: StrPath) -> int | None:
        """Open a directory and lock it as a whole (flock), until ``unlock``; None if anybody else has done so.

        Where directories cannot be locked, as on NFS, it is only opened.
        """
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                os.close(fd)
                return None
        return fd


def sync_if_allowed(fs: FileSystem, directory: str) -> None:
    """Sync a directory that may belong to somebody else, who lets us make names in it but not open it."""
    with suppress(PermissionError):
        fs.sync_directory(directory)


class OpenFile:
    """A descriptor that is closed when the last holder lets go of it.

    A reader in a thread holds one while the cache may drop it: with CPython's reference counts the descriptor
    then stays open exactly until that read is over, so that its number cannot be reused under the reader.
    """

    __slots__ = ("_close", "fd")

    def __init__(self, fd: int, close: Callable[[int], None]) -> None:
        self.fd = fd
        self._close = close

    def __del__(self) -> None:
        self._close(self.fd)


class OpenFiles:
    """At most ``limit`` descriptors of files opened on demand; the least recently used one is dropped first.

    10,000 queues share one of these under the usual limit of 1,024 open files. ``get`` may be called from
    any thread.
    """

    def __init__(self, fs: FileSystem, limit: int, *, readonly: bool = False) -> None:
        self._fs = fs
        self._limit = limit
        self._readonly = readonly
        self._open: OrderedDict[str, OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: str) -> OpenFile:
        """The open file of that path; hold the result while its ``fd`` is used. OSError as ``open``."""
        held = self._open.get(path)
        if held is None:
            held = OpenFile(self._fs.open(path, readonly=self._readonly), self._fs.close)
            self._open[path] = held
            if len(self._open) > self._limit:
                self._evict()
            return held
        try:
            self._open.move_to_end(path)
        except KeyError:  # dropped by another thread between the two lines
            self._open[path] = held
        return held

    def adopt(self, path: str, fd: int) -> OpenFile:
        """Take over a descriptor that the caller has just opened."""
        held = self._open[path] = OpenFile(fd, self._fs.close)
        if len(self._open) > self._limit:
            self._evict()
        return held

    def forget(self, path: str) -> None:
        """Drop the path, because the file is about to be deleted, renamed or cut."""
        self._open.pop(path, None)

    def clear(self) -> None:
        self._open.clear()

    def _evict(self) -> None:
        try:
            self._open.popitem(last=False)
        except KeyError:  # another thread emptied it
            return


class DirectoryLock:
    """The ``lock`` file of a store directory, held from before the first look at anything else until close.

    It keeps an official broker out as well as a second one of ours. A POSIX record lock is lost when the
    process closes any descriptor of the file, hence one holder and no cache.
    """

    def __init__(self, root: str, commit_log: str, fs: FileSystem) -> None:
        """``commit_log``: the directory of the commitlog, which may lie elsewhere. Both directories exist."""
        self._fs = fs
        self._path = os.path.join(root, "lock")
        fd = fs.lock(self._path)
        if fd is None:
            raise _held(self._path, root)
        self._fd = fd
        try:
            self._commit_log = CommitLogLock(commit_log, root, fs)
        except BaseException:
            fs.unlock(self._path, fd)
            raise
        if fs.size(fd) == 0:
            # Nothing was stored here yet. A process before may have made the directory and ended before it was safe.
            parent = os.path.dirname(os.path.abspath(root))
            while parent != os.path.dirname(parent):
                sync_if_allowed(fs, parent)
                parent = os.path.dirname(parent)
            sync_if_allowed(fs, parent)
            fs.write_all(fd, b"lock", 0)

    def release(self) -> None:
        self._commit_log.release()
        self._fs.unlock(self._path, self._fd)


class CommitLogLock:
    """Keeps two brokers with different roots off one commitlog directory, as where storePathCommitLog is copied.

    Nothing may be put into that directory, because an official broker would not start on it; so the directory itself
    is locked, which keeps out brokers of ours. The official one locks only its root: where that is the usual place,
    beside the commitlog, it is looked at.
    """

    def __init__(self, commit_log: str, root: str, fs: FileSystem) -> None:
        """``root``: the store directory whose lock is held already."""
        self._fs = fs
        self._neighbour: tuple[str, int] | None = None
        self._directory = directory = os.path.realpath(commit_log)
        parent, name = os.path.split(directory)
        path = os.path.join(parent, "lock")
        if parent != os.path.realpath(root) and name == "commitlog" and fs.stat(path) is not None:
            fd = fs.lock(path)
            if fd is None:
                raise _held(path, directory)
            self._neighbour = path, fd
        directory_fd = fs.lock_directory(directory)
        if directory_fd is None:
            self._release_neighbour()
            raise _held(directory, directory)
        self._directory_fd = directory_fd

    def release(self) -> None:
        self._fs.unlock(self._directory, self._directory_fd)
        self._release_neighbour()

    def _release_neighbour(self) -> None:
        if self._neighbour is not None:
            self._fs.unlock(*self._neighbour)


def _held(lock: str, directory: str) -> StoreLocked:
    return StoreLocked(f"{lock} is held: a broker is already running on {directory}")
