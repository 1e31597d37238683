"""The commitlog: every message of every queue, one after the other, in files of one size.

Owns the write position, the space reserved ahead of it, and the numbering of messages in their queues.

Invariants
- Bytes below ``end_offset`` never change. Above it there are zeros, or what an append that failed left there;
  after such a failure either the zeros are restored or the log is poisoned.
- A record and its room of 8 bytes for a filler fit into one file: what does not fit goes to the next file and
  the rest of this one becomes filler ("blank"). Nothing inside a filler is ever read.
- Space is reserved before anything is written, so that a full disk refuses a message whole.
- A file has its full official size from the moment its name exists, and both are safe before it is written to.
- After a failed write or fsync the log is poisoned: what the disk holds is unknown until recovery has read it.

One thread appends. ``read`` may be called from any thread for bytes below ``end_offset``; ``reserve_ahead`` may
run in one other thread.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from zlib import crc32

from protocol.message import (
    HEAD,
    HOST_FLAGS,
    MAGIC_BLANK,
    MAGIC_V1,
    MAX_TOPIC_BYTES,
    PREFIX_V4,
    PREFIXES,
    TRANSACTION_COMMIT,
    TRANSACTION_MASK,
    TRANSACTION_NONE,
    NewMessage,
)
from store.errors import MessageIllegal, OffsetOutOfRange, StoreFull, StorePoisoned
from store.files import FileSystem, OpenFile, OpenFiles

NAME_DIGITS: Final = 20
BLANK_ROOM: Final = 8  # a filler's total size and magic number
RESERVE_STEP: Final = 64 << 20
LATEST_BYTES: Final = 256 << 10
_SPECIAL = TRANSACTION_MASK | HOST_FLAGS
NUMBERED = (TRANSACTION_NONE, TRANSACTION_COMMIT)  # the other types have no place in a consume queue
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


# What the derived files learn of an appended record: topic, queue id, queue offset (-1: no consume queue entry),
# physical offset, size, tags code, index keys. A plain tuple, because making a named one costs more than all of it.
Entry = tuple[str, int, int, int, int, int, tuple[str, ...]]

# From properties text and store time in ms to the tags code of a consume queue entry; None: the message's own.
TagsCode = Callable[[bytes, int], int | None]


class CommitLog:
    """The log of one store. ``load`` (or recovery, which calls it) comes before anything else."""

    def __init__(
        self,
        directory: str,
        file_size: int,
        fs: FileSystem,
        *,
        first_queue_offset: Callable[[str, int], int],
        tags_codes: Mapping[str, TagsCode] | None = None,
        max_open_files: int = 64,
        reserve_step: int = RESERVE_STEP,
    ) -> None:
        """``tags_codes``: for topics whose queues hold something that only the store time tells."""
        self.directory = directory
        self.file_size = file_size
        self.end_offset = 0
        self.poison_reason: str | None = None
        self.poisoned: Callable[[], None] = lambda: None
        self._fs = fs
        self._first_queue_offset = first_queue_offset
        self._tags_codes = dict(tags_codes or {})
        self._reserve_step = min(reserve_step, file_size)
        self._bases: list[int] = []
        self._limit = 0  # where the file of the write position ends
        self._room = 0  # below this offset blocks are reserved
        self._room_lock = threading.Lock()
        self._written: dict[int, OpenFile] = {}  # files with bytes that are not flushed, and the one written to
        self._latest: tuple[int, bytes] = (0, b"")  # the last write, if it is small: a slave or a scan reads it next
        self._open = OpenFiles(fs, max_open_files)
        # topic -> (length byte and name, next queue offset by queue id)
        self._topics: dict[str, tuple[bytes, dict[int, int]]] = {}

    # --- files ---------------------------------------------------------------------------------------

    def path(self, offset: int) -> str:
        """The file that holds the offset."""
        return f"{self.directory}/{offset - offset % self.file_size:0{NAME_DIGITS}d}"

    def bases(self) -> list[int]:
        """Begin offsets of the files, ascending; the last one may be a reserve without data."""
        return list(self._bases)

    @property
    def start_offset(self) -> int:
        """The lowest offset that is still there."""
        bases = self._bases
        return bases[0] if bases else self.end_offset

    def load(self, bases: Sequence[int], end_offset: int) -> None:
        """Take over the files as recovery found and left them."""
        self._bases = list(bases)
        self._start_writing_at(end_offset)

    def _start_writing_at(self, offset: int) -> None:
        size = self.file_size
        base = offset - offset % size
        self.end_offset = self._room = offset
        self._limit = base + size if base in self._bases else base
        self._written.clear()

    def _writable(self, base: int) -> OpenFile:
        """The file at ``base``; held until it is flushed, so that a flush never lacks a descriptor."""
        file = self._written.get(base)
        if file is None:
            file = self._written[base] = self._open.get(self.path(base))
        return file

    @property
    def wants_room(self) -> bool:
        """Less than a step of space is reserved: ``reserve_ahead`` is due."""
        return self._room - self.end_offset < self._reserve_step

    def reserve_ahead(self) -> None:
        """Reserve the next step of space, making the next file when this one is nearly full.

        May run in a thread beside the appending one. OSError as the system gave it
        (a full disk, too many open files): nothing is lost then, the next append tries for itself.
        """
        with self._room_lock:
            self._reserve_more(self._room + 1, self._reserve_step)

    def _reserve_more(self, until: int, step: int) -> None:
        """Extend the room to at least ``until``, in steps that end at multiples of ``step`` or at a file's end."""
        size = self.file_size
        while self._room < until:
            room = self._room
            base = room - room % size
            if base not in self._bases:
                self._make_file(base)
            stop = min(room - room % step + step, base + size)
            if stop < until and stop < base + size:
                stop = min(until, base + size)
            held = self._open.get(self.path(base))
            self._fs.reserve(held.fd, room - base, stop - room)
            self._room = stop

    def _make_file(self, base: int) -> None:
        """Make the next file. Its name and its size are safe before anything is written to it or to later ones."""
        path = self.path(base)
        try:
            fd = self._fs.create(path, self.file_size)
        except FileExistsError:
            fd = self._fs.open(path)
        held = self._open.adopt(path, fd)
        try:
            self._fs.fdatasync(held.fd)
            self._fs.sync_directory(self.directory)
        except OSError as error:
            self.poison(f"{path}: flush failed: {error.strerror or error}")
            raise
        self._bases.append(base)

    def _make_room(self, until: int) -> None:
        """Room for an append that found too little. StoreFull if there is no space."""
        with self._room_lock:
            try:
                try:
                    self._reserve_more(until, self._reserve_step)
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        raise
                    self._reserve_more(until, 1)
            except OSError as error:
                path = self.path(self._room)
                raise StoreFull(f"{path}: no space can be reserved: {error.strerror or error}") from error

    # --- append --------------------------------------------------------------------------------------

    def append(self, messages: Sequence[NewMessage], now_ms: int, *, atomic: bool = False) -> list[Entry]:
        """Store the messages in order, with one write for each file they touch.

        Sets queue_offset, physical_offset, store_timestamp and size on each. ``atomic``: all in one file, one
        behind the other. Raises MessageIllegal, StoreFull or StorePoisoned with nothing stored and no offset used.

        This is the path of every message, hence one long loop: a call for each message costs as much as
        the whole encoding. It writes the bytes that ``protocol.message.RECORD`` declares.
        """
        if self.poison_reason is not None:
            raise StorePoisoned(self.poison_reason)
        entries: list[Entry] = []
        if not messages:
            return entries
        try:
            chunks = self._encode(messages, now_ms, atomic, entries)
            self._write(chunks)
        except BaseException:
            self._give_back(entries)
            raise
        return entries

    def _encode(
        self, messages: Sequence[NewMessage], now_ms: int, atomic: bool, entries: list[Entry]
    ) -> list[tuple[int, bytes]]:
        """(offset, bytes) for each file that the messages touch, fillers included."""
        chunks: list[tuple[int, bytes]] = []
        start = position = self.end_offset
        limit = self._limit
        pack = pack_v4 = PREFIX_V4.pack
        fixed_v4 = PREFIX_V4.size + 2
        pieces: list[bytes] = []
        topic: str | None = None
        tags_code: TagsCode | None = None
        if atomic and position + self._total_size(messages) + BLANK_ROOM > limit:
            start = position = self._fill(chunks, start, position, limit, pieces)
            limit += self.file_size
            pieces = []
        for message in messages:
            name = message.topic
            if name is not topic:
                tail, numbers = self._topics.get(name) or self._add_topic(name)
                topic = name
                tags_code = self._tags_codes.get(name)
            body = message.body
            properties = message.properties
            queue_id = message.queue_id
            sys_flag = message.sys_flag
            body_length = len(body)
            properties_length = len(properties)
            size = fixed_v4 + body_length + len(tail) + properties_length
            numbered = True
            if sys_flag & _SPECIAL:
                prefix = PREFIXES[sys_flag & HOST_FLAGS]
                pack = prefix.pack
                size += prefix.size - PREFIX_V4.size
                numbered = sys_flag & TRANSACTION_MASK in NUMBERED
            if position + size + BLANK_ROOM > limit:
                if size + BLANK_ROOM > self.file_size or atomic:
                    raise MessageIllegal(f"{size} bytes do not fit into a commitlog file of {self.file_size}")
                start = position = self._fill(chunks, start, position, limit, pieces)
                limit += self.file_size
                pieces = []
            queue_offset = numbers.get(queue_id, -1)
            if queue_offset < 0:
                queue_offset = self._first_queue_offset(name, queue_id)
            if numbered:
                numbers[queue_id] = queue_offset + 1
            else:
                queue_offset = 0
            number = queue_offset if numbered else -1
            if tags_code is not None and (code := tags_code(properties, now_ms)) is not None:
                message.tags_code = code
            entries.append((name, queue_id, number, position, size, message.tags_code, message.keys))
            pieces += (
                pack(
                    size,
                    MAGIC_V1,
                    crc32(body) & 0x7FFFFFFF,
                    queue_id,
                    message.flag,
                    queue_offset,
                    position,
                    sys_flag,
                    message.born_timestamp,
                    message.born_host,
                    now_ms,
                    message.store_host,
                    message.reconsume_times,
                    message.prepared_transaction_offset,
                    body_length,
                ),
                body,
                tail,
                properties_length.to_bytes(2, "big"),
                properties,
            )
            pack = pack_v4
            message.queue_offset = queue_offset
            message.physical_offset = position
            message.store_timestamp = now_ms
            message.size = size
            position += size
        chunks.append((start, b"".join(pieces)))
        return chunks

    def _fill(self, chunks: list[tuple[int, bytes]], start: int, position: int, limit: int, pieces: list[bytes]) -> int:
        """Close the chunk of a file with a filler. Returns where the next file begins."""
        if position < limit:
            pieces.append(HEAD.pack(limit - position, MAGIC_BLANK))
            chunks.append((start, b"".join(pieces)))
        return limit

    def _total_size(self, messages: Sequence[NewMessage]) -> int:
        total = 0
        for message in messages:
            fixed = PREFIXES[message.sys_flag & HOST_FLAGS].size + 3
            total += fixed + len(message.body) + len(message.topic.encode()) + len(message.properties)
        return total

    def _add_topic(self, name: str) -> tuple[bytes, dict[int, int]]:
        data = name.encode()
        if len(data) > MAX_TOPIC_BYTES:
            raise MessageIllegal(f"topic of {len(data)} bytes, {MAX_TOPIC_BYTES} fit into a record")
        slot = self._topics[name] = (bytes((len(data),)) + data, {})
        return slot

    def _give_back(self, entries: list[Entry]) -> None:
        """The messages were not stored: their numbers are free again."""
        for topic, queue_id, queue_offset, *_ in reversed(entries):
            if queue_offset >= 0:
                self._topics[topic][1][queue_id] = queue_offset

    def forget_queue(self, topic: str, queue_id: int, max_offset: int) -> None:
        """A consume queue that ended at ``max_offset`` is gone; if it comes back, numbering follows the new one.

        Messages that are on their way to it keep their numbers, and those behind them go on from there.
        """
        slot = self._topics.get(topic)
        if slot is not None and slot[1].get(queue_id) == max_offset:
            del slot[1][queue_id]
            if not slot[1]:
                del self._topics[topic]

    def append_raw(self, offset: int, data: bytes | memoryview) -> int:
        """Store a master's bytes at exactly ``end_offset``; returns the new end.

        An empty log takes any file's begin. Frames may cut records anywhere. OffsetOutOfRange for any other
        offset; StoreFull and StorePoisoned as ``append``.
        """
        if self.poison_reason is not None:
            raise StorePoisoned(self.poison_reason)
        if offset != self.end_offset:
            if self.end_offset > self.start_offset or offset % self.file_size or offset < 0:
                raise OffsetOutOfRange(offset, self.start_offset, self.end_offset)
            self._begin_at(offset)
        chunks: list[tuple[int, bytes]] = []
        begin = 0
        while begin < len(data):
            end = begin + self.file_size - (offset + begin) % self.file_size
            chunks.append((offset + begin, bytes(data[begin:end])))
            begin = end
        if chunks:
            self._write(chunks)
        return self.end_offset

    def _begin_at(self, offset: int) -> None:
        """The empty log begins there; what was made ahead for another begin goes."""
        with self._room_lock:
            while self._bases:
                path = self.path(self._bases.pop())
                self._open.forget(path)
                self._fs.unlink(path)
            self._start_writing_at(offset)

    def _write(self, chunks: list[tuple[int, bytes]]) -> None:
        start, data = chunks[-1]
        end = start + len(data)
        if end > self._room:
            self._make_room(end)
        size = self.file_size
        try:
            files = [self._writable(start - start % size) for start, _ in chunks]
        except OSError as error:
            raise StoreFull(f"{self.path(chunks[0][0])}: cannot be opened: {error.strerror or error}") from error
        try:
            for file, (start, data) in zip(files, chunks, strict=True):
                self._fs.write_all(file.fd, data, start % size)
        except OSError as error:
            self._after_failed_write(chunks, error)
        self.end_offset = end
        self._limit = end + -end % size if end % size else end
        self._latest = chunks[0] if len(data) <= LATEST_BYTES and len(chunks) == 1 else (0, b"")

    def _after_failed_write(self, chunks: list[tuple[int, bytes]], error: OSError) -> None:
        """Always raises. A disk that is full in spite of the reservation may get space again: wipe and go on."""
        path = self.path(chunks[0][0])
        if error.errno == errno.EROFS and len(chunks) == 1:
            raise StoreFull(f"{path}: {error.strerror}") from error  # such a write changed nothing
        if error.errno in _NO_SPACE:
            try:
                for start, _ in chunks:
                    self._wipe(start)
            except OSError as second:
                error = second
            else:
                self._room = self.end_offset
                raise StoreFull(f"{path}: {error.strerror or error}") from error
        self.poison(f"{path}: write failed: {error.strerror or error}")
        raise StorePoisoned(self.poison_reason) from error

    def _wipe(self, offset: int) -> None:
        """Zeros from the offset to the end of its file; the blocks become free."""
        fd = self._open.get(self.path(offset)).fd
        self._fs.truncate(fd, offset % self.file_size)
        self._fs.truncate(fd, self.file_size)

    def poison(self, reason: str | None) -> None:
        """Take no more writes. The first reason stays."""
        if self.poison_reason is None:
            self.poison_reason = reason or "an earlier write failed"
            self.poisoned()

    # --- read ----------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from the offset, not beyond its file nor beyond the end of the log. Any thread.

        OffsetOutOfRange if the offset is not held (its file may have been deleted a moment ago).
        """
        length = self._readable(offset, length)
        return self._fs.pread(self._held(offset).fd, length, offset % self.file_size)

    def read_or_nothing(self, offset: int, length: int) -> bytes:
        """``read``, with nothing for an offset that is not held: what a scan needs."""
        try:
            return self.read(offset, length)
        except OffsetOutOfRange:
            return b""

    def latest(self, offset: int, length: int) -> bytes:
        """What was written last, from memory, if that is all that ``read`` would read; else nothing."""
        start, data = self._latest
        return data if offset == start and length >= len(data) else b""

    def latest_or_read(self, offset: int, length: int) -> bytes:
        """``read_or_nothing`` for one who keeps up with the end of the log."""
        return self.latest(offset, length) or self.read_or_nothing(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | bytearray | None:
        """``read`` without waiting for the disk: None if it would have to."""
        length = self._readable(offset, length)
        return self._fs.pread_cached(self._held(offset).fd, length, offset % self.file_size)

    def _readable(self, offset: int, length: int) -> int:
        end = self.end_offset
        if not self.start_offset <= offset < end:
            raise OffsetOutOfRange(offset, self.start_offset, end)
        return min(length, end - offset, self.file_size - offset % self.file_size)

    def _held(self, offset: int) -> OpenFile:
        file = self._written.get(offset - offset % self.file_size)
        if file is not None:
            return file
        try:
            return self._open.get(self.path(offset))
        except FileNotFoundError:
            raise OffsetOutOfRange(offset, self.start_offset, self.end_offset) from None

    # --- flush, delete, close ------------------------------------------------------------------------

    def dirty_files(self, since: int) -> list[OpenFile]:
        """The files with bytes in [since, end_offset), as far as they are not flushed."""
        return [file for base, file in self._written.items() if base + self.file_size > since]

    def flushed(self, offset: int) -> None:
        """Everything below the offset is on disk."""
        for base in [base for base in self._written if base + self.file_size <= offset]:
            del self._written[base]

    def detach_first_file(self) -> str:
        """Let the log begin at the second file. Returns the path of the first, which the caller deletes.

        ValueError if the log would be left without the file it writes to.
        """
        base = self._bases[0]
        if base + self.file_size >= self.end_offset:
            raise ValueError("the file being written cannot be deleted")
        del self._bases[0]
        path = self.path(base)
        self._open.forget(path)
        return path

    def close(self) -> None:
        """Remove files that were made ahead and hold nothing, as the official broker does, and let go of all."""
        with self._room_lock:
            while self._bases and self._bases[-1] >= self.end_offset and len(self._bases) > 1:
                path = self.path(self._bases.pop())
                self._open.forget(path)
                self._fs.unlink(path)
        self._written.clear()
        self._open.clear()
