"""A file system in memory that can lose power, and a clock that stands still.

The model of what a disk may do (after ALICE and LazyFS). It takes POSIX at its word and no file system at its habits:

Contents
- A write goes to the page cache. Only ``fdatasync`` makes the bytes of a file safe. At the loss of power each
  512-byte sector that was written since keeps its old content or has any of the contents it had since, chosen for
  each sector on its own: writes are forgotten, torn and reordered, within a page and between pages and files.
- A sector is written whole or not at all; drives promise that. ``tear_inside_sectors`` takes it away: a page can be
  changed while the drive reads it out of memory, and then one sector has the begin of one content and the end of the
  one before.
- A reservation changes nothing that can be seen: its blocks read as zeros until they are written.

Sizes
- The size that a file has after ``fdatasync`` is safe. Changes since then (growing by a write or a reservation,
  cutting, also the size a file is made with) are lost or not, apart from the contents: a cut may come undone with
  the old bytes behind it, a file may have its name and be empty.
- The modification time is the one of the last ``fdatasync`` or the newest.

Names
- A name that is made, renamed or removed, of a file or a directory, is safe once the directory that holds it was
  synced; neither ``fdatasync`` of the file nor a sync of the directory above does it. So a file is lost with all its
  bytes when the name of any directory above it is, and an unlink may come undone.
- Before that the changes of one directory survive in part: any of them may be missing, not only the last ones. But
  those of one name stay in order, and a rename within a directory happens whole or not at all. A rename into another
  directory is two changes: the name may be in both, or in neither if only the old directory was synced.
- When the removal of a directory is safe, nothing comes back of what was in it.

Not in the model: contents that were safe and go bad, an fdatasync that lies, bytes of other files in blocks that
were never written (ext4 mounted with data=writeback). Failing calls are the business of ``store.faults``.

The file system counts its changes (``steps``); with ``crash_at`` set it loses power in the middle of that change.
``trace`` sums up what was done in which order: two runs with the same one did the same.
"""

from __future__ import annotations

import errno
import os
import random
from zlib import crc32

from store.files import DiskUsage, FileIdentity, FileStatus, FileSystem, StrPath

SECTOR = 512
PAGE = 4096


class PowerLost(BaseException):
    """The machine is gone. Not an Exception: nothing in the store may catch it."""


class _Inode:
    """One file: what the process sees, what is safe, and what each sector looked like since then."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.safe = bytearray(size)
        self.versions: dict[int, list[bytes]] = {}  # sector -> contents since the last flush, oldest first
        self.sizes = [0, size] if size else [0]
        self.mtime_ns = self.safe_mtime_ns = 0

    def sector(self, number: int) -> bytes:
        return bytes(self.data[number * SECTOR : (number + 1) * SECTOR])

    def touch(self, begin: int, end: int) -> None:
        for number in range(begin // SECTOR, -(-end // SECTOR)):
            self.versions.setdefault(number, []).append(self.sector(number))

    def flush(self) -> None:
        for number in self.versions:
            self.safe[number * SECTOR : (number + 1) * SECTOR] = self.sector(number)
        del self.safe[len(self.data) :]
        self.safe.extend(bytes(len(self.data) - len(self.safe)))
        self.versions.clear()
        self.sizes = [len(self.data)]
        self.safe_mtime_ns = self.mtime_ns

    def make_safe(self) -> None:
        self.safe[:] = self.data
        self.sizes = [len(self.data)]
        self.safe_mtime_ns = self.mtime_ns

    def after_power_loss(self, rng: random.Random, keep: float, tear: bool) -> _Inode:
        size = rng.choice(self.sizes)
        survivor = _Inode(size)
        survivor.data[:] = self.safe[:size].ljust(size, b"\0")
        for number, versions in self.versions.items():
            begin = number * SECTOR
            if begin < size and rng.random() < keep:
                at = rng.randrange(len(versions))
                content = versions[at]
                if tear and rng.random() < 0.3:
                    older = versions[at - 1] if at else bytes(self.safe[begin : begin + SECTOR])
                    cut = rng.randint(0, len(content))
                    content = content[:cut] + older[cut:]
                content = content[: size - begin]
                survivor.data[begin : begin + len(content)] = content
        survivor.mtime_ns = rng.choice((self.safe_mtime_ns, self.mtime_ns))
        survivor.make_safe()
        return survivor


class _Directory:
    """Names: those that the process sees, those that are safe, and the changes between the two, oldest first."""

    def __init__(self) -> None:
        self.names: dict[str, _Inode | _Directory] = {}
        self.safe: dict[str, _Inode | _Directory] = {}
        self.changes: list[dict[str, _Inode | _Directory | None]] = []

    def apply(self, change: dict[str, _Inode | _Directory | None]) -> None:
        _apply(self.names, change)
        self.changes.append(change)

    def sync(self) -> None:
        self.safe = dict(self.names)
        self.changes.clear()

    def surviving_names(self, rng: random.Random) -> dict[str, _Inode | _Directory]:
        names = dict(self.safe)
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        lost: set[str] = set()
        for change in self.changes:
            if lost.isdisjoint(change) and rng.random() < keep:
                _apply(names, change)
            else:
                lost.update(change)
        return names


def _apply(names: dict[str, _Inode | _Directory], change: dict[str, _Inode | _Directory | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class PowerLossFiles(FileSystem):
    """Directories and files in memory. Paths are absolute and in plain form; there is no working directory."""

    def __init__(self, *, capacity: int | None = None) -> None:
        self._directories: dict[str, _Directory] = {"/": _Directory()}
        self._fds: dict[int, tuple[_Inode, bool]] = {}  # with: only for reading
        self._next_fd = 1000
        self._locks: set[str] = set()
        self._clock_ns = 0
        self._life = 0  # of the page cache
        self.capacity = capacity
        self.tear_inside_sectors = False
        self.only_killed = False  # what ends the run at ``crash_at`` is the end of the process
        self.steps = 0
        self.trace = 0
        self.crash_at: int | None = None
        self.rng = random.Random(0)

    # --- the model -----------------------------------------------------------------------------------

    def _step(self, *what: object) -> bool:
        """Count a change. True: the power fails in the middle of it."""
        self.steps += 1
        self.trace = crc32(repr(what).encode(), self.trace)
        return self.crash_at is not None and self.steps >= self.crash_at

    def lose_power(self, rng: random.Random) -> PowerLossFiles:
        """The disk as the next start finds it."""
        keep = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        after = self._successor()
        survivors: dict[int, _Inode] = {}  # one file may have two names

        def survive(path: str, directory: _Directory) -> _Directory:
            twin = after._directories[path] = _Directory()
            for name, node in directory.surviving_names(rng).items():
                if isinstance(node, _Directory):
                    twin.names[name] = survive(os.path.join(path, name), node)
                    continue
                if id(node) not in survivors:
                    survivors[id(node)] = node.after_power_loss(rng, keep, self.tear_inside_sectors)
                twin.names[name] = survivors[id(node)]
            twin.sync()
            return twin

        survive("/", self._directories["/"])
        return after

    def copy(self) -> PowerLossFiles:
        """Another disk with the same files, all of it safe."""
        after = self._successor()

        def take_over(path: str, directory: _Directory) -> _Directory:
            twin = after._directories[path] = _Directory()
            for name, node in directory.names.items():
                if isinstance(node, _Directory):
                    twin.names[name] = take_over(os.path.join(path, name), node)
                else:
                    copied = twin.names[name] = _Inode(0)
                    copied.data[:] = node.data
                    copied.mtime_ns = node.mtime_ns
                    copied.make_safe()
            twin.sync()
            return twin

        take_over("/", self._directories["/"])
        return after

    def kill(self) -> PowerLossFiles:
        """The disk as the next process finds it when only this one ended."""
        after = self._successor()
        after._directories = self._directories
        after._life = self._life
        after.rng = self.rng
        return after

    def _successor(self) -> PowerLossFiles:
        after = PowerLossFiles(capacity=self.capacity)
        after.tear_inside_sectors = self.tear_inside_sectors
        after._life = self._life + 1
        after._clock_ns = self._clock_ns
        after.trace = self.trace
        return after

    def contents(self, path: str) -> bytearray:
        """The bytes of a file, to be changed behind the store's back."""
        return self._file(path).data

    def _node(self, name: str) -> _Inode | _Directory | None:
        if name in self._directories:
            return self._directories[name]
        parent = self._directories.get(os.path.dirname(name))
        return None if parent is None else parent.names.get(os.path.basename(name))

    def _file(self, name: str) -> _Inode:
        node = self._node(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, "is a directory", name)
        return node

    def _parent(self, name: str) -> _Directory:
        parent = os.path.dirname(name)
        if parent in self._directories:
            return self._directories[parent]
        if isinstance(self._node(parent), _Inode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", name)
        raise FileNotFoundError(errno.ENOENT, "no such directory", name)

    def _change(self, name: str, node: _Inode | _Directory | None) -> None:
        self._parent(name).apply({os.path.basename(name): node})

    def _tick(self, inode: _Inode) -> None:
        self._clock_ns += 1
        inode.mtime_ns = self._clock_ns

    def _used(self) -> int:
        nodes = [node for directory in self._directories.values() for node in directory.names.values()]
        return sum(_written(node) for node in nodes if isinstance(node, _Inode))

    # --- the calls -----------------------------------------------------------------------------------

    def open(self, path: StrPath, *, create: bool = False, readonly: bool = False) -> int:
        name = os.fspath(path)
        if create and self._node(name) is None:
            return self._make(name, 0, readonly)
        return self._give_fd(self._file(name), readonly)

    def create(self, path: StrPath, size: int) -> int:
        name = os.fspath(path)
        if self._node(name) is not None:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        return self._make(name, size, False)

    def _make(self, name: str, size: int, readonly: bool) -> int:
        self._parent(name)
        if self._step("create", name, size):
            raise PowerLost
        inode = _Inode(size)
        self._tick(inode)
        self._change(name, inode)
        return self._give_fd(inode, readonly)

    def _give_fd(self, inode: _Inode, readonly: bool) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = inode, readonly
        return self._next_fd

    def _writable(self, fd: int) -> _Inode:
        inode, readonly = self._fds[fd]
        if readonly:
            raise OSError(errno.EBADF, "opened for reading only")
        return inode

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._fds[fd][0].data[offset : offset + length])

    def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
        return self.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        inode = self._writable(fd)
        content = bytes(data)
        lost = self._step("write", offset, content)
        if lost:
            # How far the copying into the page cache came. Where a page stands half copied, the drive gets it only
            # with sectors that tear; the copying is done under the page's lock otherwise, and a killed process
            # finishes its page.
            unit = PAGE if self.only_killed else 1 if self.tear_inside_sectors else SECTOR
            cut = offset + self.rng.randint(0, len(content))
            if cut < offset + len(content):
                cut = max(offset, cut - cut % unit)
            content = content[: cut - offset]
        if self.capacity is not None and self._used() + len(content) > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on device")
        end = offset + len(content)
        if end > len(inode.data):
            inode.data.extend(bytes(end - len(inode.data)))
            inode.sizes.append(end)
        inode.data[offset:end] = content
        inode.touch(offset, end)
        self._tick(inode)
        if lost:
            raise PowerLost
        return len(content)

    def fdatasync(self, fd: int) -> None:
        inode = self._fds[fd][0]
        if self._step("fdatasync", sorted(inode.versions)):
            raise PowerLost
        inode.flush()

    def reserve(self, fd: int, offset: int, length: int) -> None:
        inode = self._writable(fd)
        if self._step("reserve", offset, length):
            raise PowerLost
        if offset + length > len(inode.data):
            inode.data.extend(bytes(offset + length - len(inode.data)))
            inode.sizes.append(offset + length)

    def identity(self, path: StrPath) -> FileIdentity:
        if self._node(os.fspath(path)) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return FileIdentity(0, crc32(os.fspath(path).encode()), 0)

    def boot_id(self) -> str:
        return str(self._life)

    def truncate(self, fd: int, size: int) -> None:
        inode = self._writable(fd)
        if self._step("truncate", size):
            raise PowerLost
        before = len(inode.data)
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        inode.touch(min(size, before), max(size, before))
        inode.sizes.append(size)
        self._tick(inode)

    def rename(self, source: StrPath, target: StrPath) -> None:
        old, new = os.fspath(source), os.fspath(target)
        inode = self._file(old)
        before, after = self._parent(old), self._parent(new)
        if self._step("rename", old, new):
            raise PowerLost
        if before is after:
            before.apply({os.path.basename(new): inode, os.path.basename(old): None})
        else:
            self._change(new, inode)
            self._change(old, None)

    def unlink(self, path: StrPath) -> None:
        name = os.fspath(path)
        self._file(name)
        if self._step("unlink", name):
            raise PowerLost
        self._change(name, None)

    def rmdir(self, path: StrPath) -> None:
        name = os.fspath(path)
        if self.listdir(name):
            raise OSError(errno.ENOTEMPTY, "directory not empty", name)
        if self._step("rmdir", name):
            raise PowerLost
        self._change(name, None)
        del self._directories[name]

    def makedirs(self, path: StrPath, *, sync: bool = True) -> None:
        name = os.fspath(path)
        if name in self._directories:
            return
        if self._node(name) is not None:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        parent = os.path.dirname(name)
        self.makedirs(parent, sync=sync)
        if self._step("mkdir", name):
            raise PowerLost
        directory = _Directory()
        self._change(name, directory)
        self._directories[name] = directory
        if sync:
            self.sync_directory(parent)

    def listdir(self, path: StrPath) -> list[str]:
        node = self._node(os.fspath(path))
        if isinstance(node, _Inode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        return [] if node is None else sorted(node.names)

    def stat(self, path: StrPath) -> FileStatus | None:
        node = self._node(os.fspath(path))
        if isinstance(node, _Directory):
            return FileStatus(0, 0, True)
        return None if node is None else FileStatus(len(node.data), node.mtime_ns, False)

    def size(self, fd: int) -> int:
        return len(self._fds[fd][0].data)

    def next_data(self, fd: int, offset: int) -> int | None:
        return offset if offset < self.size(fd) else None

    def set_mtime(self, path: StrPath, mtime_ns: int) -> None:
        self._file(os.fspath(path)).mtime_ns = mtime_ns

    def sync_directory(self, path: StrPath) -> None:
        name = os.fspath(path)
        if name not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", name)
        if self._step("sync", name):
            raise PowerLost
        self._directories[name].sync()

    def usage(self, path: StrPath) -> DiskUsage:
        used = self._used()
        return DiskUsage(used, max(0, (self.capacity or 1 << 40) - used))

    def physical_memory(self) -> int:
        return 1 << 30

    def lock(self, path: StrPath) -> int | None:
        name = os.fspath(path)
        if name in self._locks:
            return None
        fd = self.open(name, create=True)
        self._locks.add(name)
        return fd

    def lock_directory(self, path: StrPath) -> int | None:
        name = os.fspath(path)
        if name in self._locks:
            return None
        self._locks.add(name)
        return -1

    def unlock(self, path: StrPath, fd: int) -> None:
        self._locks.discard(os.fspath(path))
        self.close(fd)


def _written(inode: _Inode) -> int:
    """Bytes in sectors that are not zero."""
    data = bytes(inode.data)
    sectors = (data[at : at + SECTOR] for at in range(0, len(data), SECTOR))
    return sum(len(sector) for sector in sectors if any(sector))


class Clock:
    """Milliseconds that move only when told."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
