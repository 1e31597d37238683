"""A file system in memory that can lose power, and a clock that stands still.

The model of what a disk may do (after ALICE and LazyFS):
- A write goes to the page cache. Only ``fdatasync`` makes the bytes of a file safe. At the loss of power each
  512-byte sector that was written since keeps its old content or has any of the contents it had since, chosen for
  each sector on its own: writes are forgotten, torn and reordered.
- A new name, a rename or a removed name is safe once its directory was synced. Before that, the changes of a
  directory reach the disk in their order, but any number of the last ones may be missing.
- The size of a file changes with its metadata: a file whose name is there has the size of its last ``fdatasync``
  or a later one.
- A reservation changes nothing that can be seen.

The file system counts its changes (``steps``); with ``crash_at`` set it loses power in the middle of that change.
"""

from __future__ import annotations

import errno
import os
import random

from store.files import DiskUsage, FileStatus, FileSystem, StrPath

SECTOR = 512


class PowerLost(BaseException):
    """The machine is gone. Not an Exception: nothing in the store may catch it."""


class _Inode:
    """One file: what the process sees, what is safe, and what each sector looked like since then."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.safe = bytearray(size)
        self.versions: dict[int, list[bytes]] = {}  # sector -> contents since the last flush, oldest first
        self.sizes = [size]
        self.mtime_ns = 0

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

    def after_power_loss(self, rng: random.Random, keep: float) -> _Inode:
        size = rng.choice(self.sizes)
        survivor = _Inode(size)
        survivor.data[:] = self.safe[:size].ljust(size, b"\0")
        for number, versions in self.versions.items():
            begin = number * SECTOR
            if begin < size and rng.random() < keep:
                content = rng.choice(versions)[: size - begin]
                survivor.data[begin : begin + len(content)] = content
        survivor.safe[:] = survivor.data
        survivor.mtime_ns = self.mtime_ns
        return survivor


class PowerLossFiles(FileSystem):
    """Directories and files in memory. Paths are plain strings; there is no working directory."""

    def __init__(self, *, capacity: int | None = None) -> None:
        self._names: dict[str, _Inode] = {}
        self._directories: set[str] = {"/"}
        # Changes of names that are not safe yet, oldest first: (directory, name, inode or None)
        self._name_changes: list[tuple[str, str, _Inode | None]] = []
        self._safe_names: dict[str, _Inode] = {}
        self._fds: dict[int, _Inode] = {}
        self._next_fd = 1000
        self._locks: set[str] = set()
        self._clock_ns = 0
        self.capacity = capacity
        self.steps = 0
        self.crash_at: int | None = None
        self.rng = random.Random(0)

    # --- the model -----------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Count a change. True: the power fails in the middle of it."""
        self.steps += 1
        return self.crash_at is not None and self.steps >= self.crash_at

    def lose_power(self, rng: random.Random) -> PowerLossFiles:
        """The disk as the next start finds it."""
        keep = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        after = PowerLossFiles(capacity=self.capacity)
        after._directories = set(self._directories)
        after._clock_ns = self._clock_ns
        names = dict(self._safe_names)
        unsafe: dict[str, list[tuple[str, _Inode | None]]] = {}
        for directory, name, inode in self._name_changes:
            unsafe.setdefault(directory, []).append((name, inode))
        for changes in unsafe.values():
            for name, inode in changes[: rng.randint(0, len(changes))]:
                if inode is None:
                    names.pop(name, None)
                else:
                    names[name] = inode
        survivors = {id(inode): inode.after_power_loss(rng, keep) for inode in names.values()}
        after._names = {name: survivors[id(inode)] for name, inode in names.items()}
        after._safe_names = dict(after._names)
        for name in after._names:
            after.makedirs(os.path.dirname(name))  # a directory is not gone before what is in it
        return after

    def copy(self) -> PowerLossFiles:
        """Another disk with the same files, all of it safe."""
        after = PowerLossFiles(capacity=self.capacity)
        after._directories = set(self._directories)
        after._clock_ns = self._clock_ns
        for name, inode in self._names.items():
            twin = after._names[name] = after._safe_names[name] = _Inode(0)
            twin.data[:] = twin.safe[:] = inode.data
            twin.sizes, twin.mtime_ns = [len(inode.data)], inode.mtime_ns
        return after

    def contents(self, path: str) -> bytearray:
        """The bytes of a file, to be changed behind the store's back."""
        return self._names[path].data

    def kill(self) -> PowerLossFiles:
        """The disk as the next process finds it when only this one ended."""
        after = PowerLossFiles(capacity=self.capacity)
        after._directories = self._directories
        after._names = self._names
        after._name_changes = self._name_changes
        after._safe_names = self._safe_names
        after._clock_ns = self._clock_ns
        after.rng = self.rng
        return after

    def _change_name(self, path: str, inode: _Inode | None) -> None:
        if inode is None:
            self._names.pop(path, None)
        else:
            self._names[path] = inode
        self._name_changes.append((os.path.dirname(path), path, inode))

    def _tick(self, inode: _Inode) -> None:
        self._clock_ns += 1
        inode.mtime_ns = self._clock_ns

    def _used(self) -> int:
        return sum(sum(len(sector) for sector in _written(inode)) for inode in set(self._names.values()))

    # --- the calls -----------------------------------------------------------------------------------

    def open(self, path: StrPath, *, create: bool = False, readonly: bool = False) -> int:
        name = os.fspath(path)
        inode = self._names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            self._require_directory(name)
            if self._step():
                raise PowerLost
            inode = _Inode(0)
            self._tick(inode)
            self._change_name(name, inode)
        return self._give_fd(inode)

    def create(self, path: StrPath, size: int) -> int:
        name = os.fspath(path)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        self._require_directory(name)
        if self._step():
            raise PowerLost
        inode = _Inode(size)
        self._tick(inode)
        self._change_name(name, inode)
        return self._give_fd(inode)

    def _require_directory(self, name: str) -> None:
        if os.path.dirname(name) not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", name)

    def _give_fd(self, inode: _Inode) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = inode
        return self._next_fd

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._fds[fd].data[offset : offset + length])

    def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
        return self.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        inode = self._fds[fd]
        lost = self._step()
        content = bytes(data)
        if lost:
            # The kernel copies page by page under the page's lock: a cut inside a sector does not happen.
            cut = offset + self.rng.randint(0, len(content))
            content = content[: max(0, cut - cut % SECTOR - offset)] if cut < offset + len(content) else content
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
        if self._step():
            raise PowerLost
        self._fds[fd].flush()

    def reserve(self, fd: int, offset: int, length: int) -> None:
        if self._step():
            raise PowerLost
        inode = self._fds[fd]
        if offset + length > len(inode.data):
            inode.data.extend(bytes(offset + length - len(inode.data)))
            inode.sizes.append(offset + length)

    def truncate(self, fd: int, size: int) -> None:
        if self._step():
            raise PowerLost
        inode = self._fds[fd]
        before = len(inode.data)
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        inode.touch(min(size, before), max(size, before))
        inode.sizes.append(size)
        self._tick(inode)

    def rename(self, source: StrPath, target: StrPath) -> None:
        if self._step():
            raise PowerLost
        old, new = os.fspath(source), os.fspath(target)
        inode = self._names.get(old)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        self._change_name(new, inode)
        self._change_name(old, None)

    def unlink(self, path: StrPath) -> None:
        name = os.fspath(path)
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        if self._step():
            raise PowerLost
        self._change_name(name, None)

    def rmdir(self, path: StrPath) -> None:
        name = os.fspath(path)
        if self.listdir(name):
            raise OSError(errno.ENOTEMPTY, "directory not empty", name)
        self._directories.discard(name)
        # Once the parent is synced the directory is gone, and what was removed from it with it.
        parent = os.path.dirname(name)
        self._name_changes = [
            (parent if directory == name else directory, entry, inode)
            for directory, entry, inode in self._name_changes
        ]

    def makedirs(self, path: StrPath) -> None:
        name = os.fspath(path)
        while name not in self._directories:
            self._directories.add(name)
            name = os.path.dirname(name)

    def listdir(self, path: StrPath) -> list[str]:
        name = os.fspath(path)
        if name in self._names:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", name)
        entries = [*self._names, *self._directories]
        return sorted({os.path.basename(entry) for entry in entries if os.path.dirname(entry) == name != entry})

    def stat(self, path: StrPath) -> FileStatus | None:
        name = os.fspath(path)
        if name in self._directories:
            return FileStatus(0, 0, True)
        inode = self._names.get(name)
        return None if inode is None else FileStatus(len(inode.data), inode.mtime_ns, False)

    def size(self, fd: int) -> int:
        return len(self._fds[fd].data)

    def next_data(self, fd: int, offset: int) -> int | None:
        return offset if offset < len(self._fds[fd].data) else None

    def set_mtime(self, path: StrPath, mtime_ns: int) -> None:
        self._names[os.fspath(path)].mtime_ns = mtime_ns

    def sync_directory(self, path: StrPath) -> None:
        if self._step():
            raise PowerLost
        name = os.fspath(path)
        kept: list[tuple[str, str, _Inode | None]] = []
        for directory, entry, inode in self._name_changes:
            if directory != name:
                kept.append((directory, entry, inode))
            elif inode is None:
                self._safe_names.pop(entry, None)
            else:
                self._safe_names[entry] = inode
        self._name_changes = kept

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

    def unlock(self, path: StrPath, fd: int) -> None:
        self._locks.discard(os.fspath(path))
        self.close(fd)


def _written(inode: _Inode) -> list[bytes]:
    data = bytes(inode.data)
    return [data[at : at + SECTOR] for at in range(0, len(data), SECTOR) if any(data[at : at + SECTOR])]


class Clock:
    """Milliseconds that move only when told."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
