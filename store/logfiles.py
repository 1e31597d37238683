"""The files of a commitlog as a stop left them, for reading before anything is decided.

Owns the listing of the directory with its checks, and looking for data and for records in files that may be short,
missing or damaged. Changes nothing. Recovery judges what is found here.
"""

from __future__ import annotations

from protocol.message import MAGIC_BLANK
from store.commitlog import NAME_DIGITS
from store.errors import StoreDamaged
from store.files import FileSystem, OpenFiles
from store.scan import CHUNK, find_record


class LogFiles:
    """The files of a commitlog directory, for reading before anything is decided."""

    def __init__(self, directory: str, file_size: int, fs: FileSystem) -> None:
        self.directory = directory
        self.file_size = file_size
        self.fs = fs
        self.open = OpenFiles(fs, 32, readonly=True)
        self.sizes: dict[int, int] = {}
        self.strangers: list[str] = []
        self._list()

    def _list(self) -> None:
        for name in self.fs.listdir(self.directory):
            path = f"{self.directory}/{name}"
            status = self.fs.stat(path)
            if status is None:
                continue
            if len(name) != NAME_DIGITS or not name.isdigit() or not name.isascii() or status.is_directory:
                self.strangers.append(path)
                continue
            base = int(name)
            if base % self.file_size or status.size > self.file_size:
                raise StoreDamaged(
                    f"{path}: {status.size} bytes at offset {base} do not go with "
                    f"mappedFileSizeCommitLog={self.file_size}; set it to the size the store was made with"
                )
            self.sizes[base] = status.size
        bases = sorted(self.sizes)
        sizes = set(self.sizes.values())
        if len(bases) > 1 and len(sizes) == 1 and sizes != {self.file_size} and sizes != {0}:
            raise StoreDamaged(
                f"{self.directory}: all files have {sizes.pop()} bytes, but mappedFileSizeCommitLog={self.file_size}"
            )
        self.bases = bases

    def path(self, offset: int) -> str:
        return f"{self.directory}/{offset - offset % self.file_size:0{NAME_DIGITS}d}"

    def read(self, offset: int, length: int) -> bytes:
        base = offset - offset % self.file_size
        if base not in self.sizes:
            return b""
        length = min(length, base + self.file_size - offset)
        return self.fs.pread(self.open.get(self.path(base)).fd, length, offset - base)

    def next_base(self, offset: int) -> int | None:
        """Begin of the first file at or behind the offset."""
        return next((base for base in self.bases if base >= offset), None)

    def next_nonzero(self, offset: int, *, glance: bool = False) -> int | None:
        """The first byte at or behind the offset, in any file, that is not zero.

        ``glance``: look only at the first data of each file.
        """
        for base in self.bases:
            position = max(offset - base, 0)
            while position < self.sizes[base]:
                fd = self.open.get(self.path(base)).fd
                found = self.fs.next_data(fd, position)
                if found is None:
                    break
                data = self.fs.pread(fd, CHUNK, found)
                if not data:
                    break
                if data.count(0) != len(data):
                    return base + found + len(data) - len(data.lstrip(b"\0"))
                position = self.file_size if glance else found + len(data)
        return None

    def end_of_data(self, base: int, offset: int) -> int:
        """Where the last byte that is not zero ends in the file at ``base``; at least ``offset``."""
        end = offset
        at = self.next_nonzero(offset)
        while at is not None and at < base + self.file_size:
            data = self.read(at, CHUNK)
            end = at + len(data.rstrip(b"\0"))
            at = self.next_nonzero(at + len(data))
        return end


def find_record_in_files(files: LogFiles, offset: int) -> int | None:
    """The first good record at or behind the offset in any file."""
    for base in files.bases:
        if base + files.file_size <= offset:
            continue
        begin = max(offset, base)
        at = files.next_nonzero(begin)
        while at is not None and at < base + files.file_size:
            # The first bytes of a size are usually zero: begin a little earlier.
            found = find_record(files.read, files.file_size, max(begin, at - 8), base + files.file_size)
            if found is None:
                break
            if not _is_filler(files, found):
                return found
            # A filler says nothing by itself: what counts is the file behind it.
            break
    return None


def _is_filler(files: LogFiles, offset: int) -> bool:
    head = files.read(offset, 8)
    return head[4:8] == MAGIC_BLANK.to_bytes(4, "big", signed=True)
