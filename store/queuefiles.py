"""The files of the consume queues: which bytes of a queue are where, and how they are written and cut.

Owns: the 20-byte unit, the paths and the sizes of the files. It knows no state of a queue; positions are bytes
from the queue's logical begin (20 * queue offset). Layout: ``root/<topic>/<queueId>/<20 digits>``, the digits
being the position of the file's first byte.

Invariants
- A file has its full official size from the moment its name exists, because an official broker refuses to start
  on any other; what is not written is zero, and a zero unit ends the queue.
- The first file of a queue that begins in the middle of a file is filled with blank units up to that place, so that
  unit i stays at byte 20 * i.
- Every OSError leaves here as StoreFull (no space) or StoreError, with the file named.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress

from store.errors import ColdRead, StoreError, StoreFull
from store.files import FileSystem, OpenFiles

UNIT = struct.Struct(">qiq")  # physical_offset, size, tags_code: twin of layouts.QUEUE_UNIT
UNIT_SIZE = UNIT.size
BLANK_SIZE = 0x7FFFFFFF  # size field of a unit that stands for no message; its physical offset is 0
BLANK_UNIT = UNIT.pack(0, BLANK_SIZE, 0)
# The last blank of a queue that has nothing but blanks. Official recovery takes a blank for a record that ends at
# 2 GiB, and would dispatch nothing below that if a queue ended with one; this one ends at 1.
PLACE_UNIT = UNIT.pack(0, 1, 0)
NAME_DIGITS = 20
_BLANK_STEP = 4096  # units written at once when a range is filled with blanks
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def store_error(error: OSError, path: str, doing: str) -> StoreError:
    """Translate at the border of the derived files; the line names the file."""
    text = f"{path}: cannot {doing}: {error.strerror or error}"
    return StoreFull(text) if error.errno in _NO_SPACE else StoreError(text)


def file_base(name: str) -> int | None:
    """The position that a file's name stands for; None if it is not such a name."""
    return int(name) if len(name) == NAME_DIGITS and name.isascii() and name.isdigit() else None


class QueueFiles:
    """All files below one ``consumequeue`` directory, through one bounded set of open descriptors."""

    __slots__ = ("file_size", "fs", "made_directories", "open", "removed_directories", "root")

    def __init__(self, root: str, file_size: int, fs: FileSystem, max_open_files: int) -> None:
        self.root = root
        self.file_size = file_size + -file_size % UNIT_SIZE
        self.fs = fs
        self.open = OpenFiles(fs, max_open_files)
        # Directories with names that a power loss could still take away.
        self.made_directories: set[str] = set()
        # Those of queues that were removed and not written since it was last said which files to make: nobody is to
        # make files in them. None while there are no such files.
        self.removed_directories: set[str] | None = None

    def directory(self, topic: str, queue_id: int) -> str:
        return f"{self.root}/{topic}/{queue_id}"

    def path(self, topic: str, queue_id: int, base: int) -> str:
        return f"{self.root}/{topic}/{queue_id}/{base:020d}"

    def base_of(self, position: int) -> int:
        return position - position % self.file_size

    def bases(self, topic: str, queue_id: int) -> list[int]:
        """Positions of the queue's files, lowest first; names that are no positions are left out."""
        names = self.fs.listdir(self.directory(topic, queue_id))
        return [base for base in map(file_base, names) if base is not None]

    def read(self, topic: str, queue_id: int, position: int, length: int, *, nowait: bool = False) -> bytes:
        """Bytes of the queue; fewer where a file is missing or short. Any thread.

        ``nowait``: ColdRead instead of waiting for the disk.
        """
        base = position - position % self.file_size
        inside = position - base
        data = self._read_one(topic, queue_id, base, inside, min(length, self.file_size - inside), nowait)
        if len(data) == length or inside + len(data) < self.file_size:
            return data
        rest = self.read(topic, queue_id, base + self.file_size, length - len(data), nowait=nowait)
        return data + rest

    def _read_one(self, topic: str, queue_id: int, base: int, inside: int, length: int, nowait: bool) -> bytes:
        path = f"{self.root}/{topic}/{queue_id}/{base:020d}"
        try:
            file = self.open.get(path)
            if not nowait:
                return self.fs.pread(file.fd, length, inside)
            data = self.fs.pread_cached(file.fd, length, inside)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise store_error(error, path, "read") from error
        if data is None:
            raise ColdRead
        return bytes(data)

    def write(self, topic: str, queue_id: int, position: int, data: bytes | bytearray) -> None:
        """Write at a position, making files as needed. After an error, repeat the whole call."""
        done = 0
        while done < len(data):
            base = self.base_of(position + done)
            inside = position + done - base
            part = data[done : done + self.file_size - inside]
            path = self.path(topic, queue_id, base)
            if self.removed_directories:
                self.removed_directories.discard(os.path.dirname(path))
            try:
                file = self.open.get(path)
            except FileNotFoundError:
                self._make(path, inside)
                file = self.open.get(path)
            except OSError as error:
                raise store_error(error, path, "open") from error
            try:
                self.fs.write_all(file.fd, part, inside)
            except OSError as error:
                raise store_error(error, path, "write") from error
            done += len(part)

    def make_ahead(self, paths: list[str]) -> None:
        """Make empty files that tails are about to begin. Any thread; pass the paths to ``note_made`` afterwards.

        Making a file takes a hundred times as long as writing a tail. StoreFull or StoreError.
        """
        for path in paths:
            if self.removed_directories and os.path.dirname(path) in self.removed_directories:
                continue
            try:
                self._make_directory(os.path.dirname(path))
                self.fs.close(self.fs.create(path, self.file_size))
            except FileExistsError:
                continue
            except OSError as error:
                raise store_error(error, path, "create") from error

    def note_made(self, paths: list[str]) -> None:
        """Their names are not safe yet. What was made of a queue while it was removed goes too."""
        for path in paths:
            directory = os.path.dirname(path)
            if self.removed_directories and directory in self.removed_directories:
                with suppress(StoreError):  # an empty queue is what stays
                    self._remove_directory(directory)
            else:
                self.made_directories.update((directory, os.path.dirname(directory), self.root))

    def doubt_names(self) -> None:
        """Queues may have been removed by a process that ended before their removal was safe."""
        for path in (self.root, *(f"{self.root}/{topic}" for topic in self.fs.listdir(self.root))):
            status = self.fs.stat(path)
            if status is not None and status.is_directory:
                self.made_directories.add(path)

    def _make_directory(self, path: str) -> None:
        """Below the root names become safe with the next flush, many at once."""
        self.fs.makedirs(self.root)
        self.fs.makedirs(path, sync=False)

    def _make(self, path: str, blank_until: int) -> None:
        """Make a file, with blanks in front of the place that is about to be written."""
        directory = os.path.dirname(path)
        try:
            if self.fs.stat(directory) is None:
                self._make_directory(directory)
                self.made_directories.update((os.path.dirname(directory), self.root))
            self.made_directories.add(directory)
            fd = self.open.adopt(path, self.fs.create(path, self.file_size)).fd
        except OSError as error:
            raise store_error(error, path, "create") from error
        try:
            for start in range(0, blank_until, _BLANK_STEP * UNIT_SIZE):
                count = min(_BLANK_STEP, (blank_until - start) // UNIT_SIZE)
                self.fs.write_all(fd, BLANK_UNIT * count, start)
        except OSError as error:
            # Without its blanks the file would end the queue at its first byte: take it away again.
            self.remove_file(path)
            raise store_error(error, path, "write") from error

    def cut(self, topic: str, queue_id: int, position: int) -> str | None:
        """Zero everything from the position on and bring the file to its full size. Returns the file's path.

        Later files go. If nothing is left of the file that holds the position and an earlier file exists, it goes too.
        """
        keep = self.base_of(position)
        bases = self.bases(topic, queue_id)
        if position == keep and keep != min(bases, default=keep):
            keep -= self.file_size
        for base in reversed(bases):
            if base > keep:
                self.remove_file(self.path(topic, queue_id, base))
        if keep not in bases:
            return None
        path = self.path(topic, queue_id, keep)
        try:
            fd = self.open.get(path).fd
            self.fs.truncate(fd, min(position - keep, self.fs.size(fd)))
            self.fs.truncate(fd, self.file_size)
        except OSError as error:
            raise store_error(error, path, "cut") from error
        return path

    def remove_file(self, path: str) -> None:
        """Unlink; it may be gone already."""
        self.open.forget(path)
        self.made_directories.add(os.path.dirname(path))
        try:
            self.fs.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise store_error(error, path, "delete") from error

    def remove_queue(self, topic: str, queue_id: int) -> None:
        """Delete the queue's directory with everything in it, and the topic's if that is empty then."""
        directory = self.directory(topic, queue_id)
        if self.removed_directories is not None:
            self.removed_directories.add(directory)
        self._remove_directory(directory)

    def _remove_directory(self, directory: str) -> None:
        for name in self.fs.listdir(directory):
            self.remove_file(f"{directory}/{name}")
        parent = os.path.dirname(directory)
        try:
            if self.fs.stat(directory) is not None:
                self.fs.rmdir(directory)
            self.made_directories.discard(directory)
            if self.fs.stat(parent) is not None:
                if self.fs.listdir(parent):
                    self.made_directories.add(parent)
                    return
                self.fs.rmdir(parent)
        except OSError as error:
            raise store_error(error, directory, "delete") from error
        self.made_directories.discard(parent)
        self.made_directories.add(self.root)

    def chunks(self, topic: str, queue_id: int, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(position, bytes of whole units) from begin to end, in steps. Stops where a file is missing or short."""
        step = _BLANK_STEP * UNIT_SIZE
        position = begin
        while position < end:
            data = self.read(topic, queue_id, position, min(step, end - position))
            data = data[: len(data) - len(data) % UNIT_SIZE]
            if not data:
                return
            yield position, data
            position += len(data)
