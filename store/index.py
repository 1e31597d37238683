"""The key index: from ``topic#key`` to the commitlog offsets of the messages that carry the key.

Owns: the index files in order, the one that is appended to, and which records are in them. Derived from the
commitlog. Files: ``root/<yyyyMMddHHmmssSSS>`` by local time; a new one begins when the last is full.

``put`` never touches the disk, except once to read the slot table of a file from an earlier run.
``write_pending`` moves entries to the file in big steps; ``begin_flush`` writes entries, changed slots and header
in one go (about 15 ms when all 20 MB of slots changed; so that a kill finds the three in step nearly always),
``IndexFlush.run`` syncs them in a thread.

Memory: the slot table of the newest file, 20 MB at most and only the pages that were touched; waiting
entries; less than 1 MB of partial hashes.

A record is put again after recovery from the offset that the checkpoint vouches for; what is in the index already is
recognised by its commitlog offset. Unlike the official broker (IndexService.buildIndex), which indexes the last
record again and throws the newest file away after a kill, nothing is there twice and nothing is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from store.commitlog import Entry
from store.errors import StoreError
from store.files import FileSystem, OpenFile, OpenFiles
from store.indexfile import ENTRY, MAX_SECONDS, PAGE_SLOTS, IndexFile, SlotTable
from store.keyhash import PAIRS, POWERS, KeyHashes, key_hash
from store.queuefiles import store_error

_NAME_DIGITS = 17
_MAX_OPEN_FILES = 8
_pack_entry = ENTRY.pack
_PAGE_SHIFT = PAGE_SLOTS.bit_length() - 1


class IndexDamage(NamedTuple):
    """Something in an index file that a good one cannot have."""

    file: str
    reason: str


class IndexFlush:
    """Files to be made safe. ``run`` belongs into a thread; then ``KeyIndex.end_flush``."""

    __slots__ = ("_directory", "_files", "_fs", "end_timestamp", "next_offset")

    def __init__(
        self,
        fs: FileSystem,
        files: dict[str, OpenFile],
        directory: str | None,
        next_offset: int,
        end_timestamp: int,
    ) -> None:
        self._fs = fs
        self._files = files
        self._directory = directory
        self.next_offset = next_offset
        self.end_timestamp = end_timestamp

    def run(self) -> None:
        """fdatasync the files, and the directory if one was made. StoreError with the name."""
        path = ""
        try:
            for path in self._files:
                self._fs.fdatasync(self._files[path].fd)
            if self._directory is not None:
                path = self._directory
                self._fs.sync_directory(path)
                self._fs.sync_directory(os.path.dirname(path))
        except OSError as error:
            raise store_error(error, path, "flush") from error


class KeyIndex:
    """All index files of a store. One writer; ``query`` may run in any thread."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        fs: FileSystem,
        slots: int = 5_000_000,
        entries: int = 20_000_000,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        max_pending_bytes: int = 64 << 10,
    ) -> None:
        self._root = os.fspath(root)
        self._fs = fs
        self._open = OpenFiles(fs, _MAX_OPEN_FILES)
        self._slot_count = slots
        self._capacity = entries
        self._now_ms = now_ms
        self._hashes = KeyHashes()
        self._old: list[IndexFile] = []  # full and safe, oldest first
        self._rolled: list[IndexFile] = []  # full, not safe yet
        self._current: IndexFile | None = None
        self._running: IndexFlush | None = None
        self._new_directory_entry = False
        self._next_offset = 0  # records below it are in the index
        self._safe_offset = 0  # and below this one, also on disk
        self.max_pending_bytes = max_pending_bytes
        self.flushed_timestamp = 0  # end_timestamp at the last finished flush, for the checkpoint
        self.damages: list[IndexDamage] = []

    # What there is

    @property
    def files(self) -> list[IndexFile]:
        """Oldest first."""
        current = self._current
        return [*self._old, *self._rolled, *(() if current is None else (current,))]

    @property
    def end_timestamp(self) -> int:
        """Store time of the newest indexed record, 0 without one."""
        return self._current.end_timestamp if self._current is not None else 0

    @property
    def end_offset(self) -> int:
        """Commitlog offset of the newest indexed record, 0 without one."""
        return self._current.end_offset if self._current is not None else 0

    @property
    def next_offset(self) -> int:
        """Records below it are in the index or have no key: where putting again has to begin at the latest."""
        return self._next_offset

    def load(self) -> None:
        """Read the headers of all files; changes nothing. Files that cannot be used: ``damages``."""
        self._old, self._rolled, self._current, self.damages = [], [], None, []
        usable: list[IndexFile] = []
        path = self._root
        try:
            for name in self._fs.listdir(self._root):
                path = f"{self._root}/{name}"
                if len(name) != _NAME_DIGITS or not (name.isascii() and name.isdigit()):
                    self.damages.append(IndexDamage(path, "not the name of an index file"))
                    continue
                file = self._file(path)
                wrong = file.load_header()
                if wrong is not None:
                    self.damages.append(IndexDamage(path, wrong))
                else:
                    usable.append(file)
        except OSError as error:
            raise store_error(error, path, "read") from error
        if usable:
            *self._old, self._current = usable
        self._take_over()

    def _file(self, path: str) -> IndexFile:
        return IndexFile(self._fs, self._open, path, self._slot_count, self._capacity)

    def _take_over(self) -> None:
        self._next_offset = self._safe_offset = self._after_newest()
        self.flushed_timestamp = self.end_timestamp

    def _after_newest(self) -> int:
        """A file without entries carries its predecessor's end in its header."""
        current = self._current
        if current is None or (current.count <= 1 and not self._old and not self._rolled):
            return 0
        return current.end_offset + 1

    # Putting

    def put(self, topic: str, keys: tuple[str, ...], physical_offset: int, store_timestamp: int) -> None:
        """As ``put_all``, one record."""
        self.put_all(((topic, 0, 0, physical_offset, 0, 0, keys),), store_timestamp)

    def put_all(self, entries: Sequence[Entry], store_timestamp: int) -> None:
        """Index records with one store time under each of their keys, in the order of the log.

        Nothing happens for a record that is in the index already. Keys are without the topic; the topic is the one that
        the record is stored under. StoreError if the slot table of a file from an earlier run cannot be read.
        """
        needed = sum([len(entry[6]) for entry in entries])
        file = self._current
        if file is None or (table := file.table) is None or not 1 < file.count <= file.capacity - needed:
            self._put_slowly(entries, store_timestamp)
        elif needed:
            self._append(file, table, entries, store_timestamp)

    def _put_slowly(self, entries: Iterable[Entry], store_timestamp: int) -> None:
        """A file has to be begun or its table read; a record's keys may end in two files, as in official ones."""
        for topic, _, _, physical_offset, _, _, keys in entries:
            next_offset = self._next_offset
            if physical_offset < next_offset:
                continue
            for key in keys:
                file = self._current
                if file is None or file.full:
                    file = self._begin_file()
                table = file.open_table()
                if file.count == 1:
                    file.begin_timestamp, file.begin_offset = store_timestamp, physical_offset
                self._next_offset = next_offset
                self._append(file, table, ((topic, 0, 0, physical_offset, 0, 0, (key,)),), store_timestamp)

    def _append(self, file: IndexFile, table: SlotTable, entries: Iterable[Entry], store_timestamp: int) -> None:
        """HOT. The file has room and a begin."""
        next_offset = self._next_offset
        seconds = (store_timestamp - file.begin_timestamp) // 1000
        if not 0 <= seconds <= MAX_SECONDS:
            seconds = 0 if seconds < 0 else MAX_SECONDS
        hashes = self._hashes
        heads = hashes.heads
        slots, dirty, slot_count = table.slots, table.dirty, self._slot_count
        appended = file.tail.entries
        used, count = file.used_slots, file.count
        topic_hash = base = 0
        hashed_topic = known_head = None
        last = -1
        for topic, _, _, physical_offset, _, _, keys in entries:
            if physical_offset < next_offset or not keys:
                continue
            last = physical_offset
            if topic is not hashed_topic:
                topic_hash, hashed_topic, known_head = hashes.topic(topic), topic, None
            for key in keys:
                head = key[:-2]
                try:
                    # Inline of KeyHashes.slowly for a unique key whose head is known; the head's part is kept.
                    if head != known_head:
                        base = topic_hash * POWERS[len(key)] + heads[head] & 0xFFFFFFFF
                        known_head = head
                    hashed = base + PAIRS[key[-2:]] & 0xFFFFFFFF
                    if hashed > 0x7FFFFFFF:
                        hashed = 0x100000000 - hashed
                        if hashed == 0x80000000:
                            hashed = 0
                except KeyError:
                    hashed = hashes.slowly(topic, key)
                slot = hashed % slot_count
                previous = slots[slot]
                appended += _pack_entry(hashed, physical_offset, seconds, previous)
                slots[slot] = count
                dirty[slot >> _PAGE_SHIFT] = 1
                if not previous:
                    used += 1
                count += 1
        if last < 0:
            return
        file.count = count
        file.used_slots = used
        file.end_offset = last
        file.end_timestamp = store_timestamp
        file.unsaved = True
        self._next_offset = last + 1

    def _begin_file(self) -> IndexFile:
        """A new file, in memory until it is written. Its header goes on where the last one ends."""
        last = self._current
        if last is not None:
            self._rolled.append(last)
        moment = datetime.fromtimestamp(self._now_ms() / 1000)
        newest = "" if last is None else os.path.basename(last.path)
        while (name := f"{moment:%Y%m%d%H%M%S}{moment.microsecond // 1000:03d}") <= newest:
            moment += timedelta(milliseconds=1)  # two files in one millisecond, or a clock that went back
        file = self._file(f"{self._root}/{name}")
        if last is not None:
            file.begin_timestamp = file.end_timestamp = last.end_timestamp
            file.begin_offset = file.end_offset = last.end_offset
        self._current = file
        return file

    # Looking up

    def query(self, topic: str, key: str, max_count: int, begin_ms: int, end_ms: int) -> list[int]:
        """Commitlog offsets of records with the key and a store time in the range, newest first, any thread.

        Equal hashes of other keys are among them, as the official broker returns them; the caller or the
        client compares. Times are kept to the second below the store time, so the official rule "entry
        time ≥ begin" leaves out a record of the begin's own second.
        """
        hashed = key_hash(f"{topic}#{key}")
        found: list[int] = []
        for file in reversed(self.files):
            if file.overlaps(begin_ms, end_ms):
                found += file.chain(hashed, begin_ms, end_ms, max_count - len(found))
            if file.begin_timestamp < begin_ms or len(found) >= max_count:
                break
        return found

    # Writing and flushing

    @property
    def pending_bytes(self) -> int:
        return sum(len(file.tail.entries) for file in (*self._rolled, self._current) if file is not None)

    @property
    def wants_write(self) -> bool:
        """Entries have reached their bound: call ``write_pending`` after this batch."""
        current = self._current
        return current is not None and len(current.tail.entries) >= self.max_pending_bytes

    @property
    def over_limit(self) -> bool:
        """Entries take 64 times what they may, because writing them fails: take no more messages."""
        return self.wants_write and self.pending_bytes >= 64 * self.max_pending_bytes

    def write_pending(self) -> None:
        """Waiting entries to their files, not flushed. StoreFull or StoreError; the entries stay then."""
        for file in (*self._rolled, self._current):
            if file is not None and (file.tail.entries or not file.on_disk):
                self._new_directory_entry |= not file.on_disk
                file.write_tail()

    def begin_flush(self) -> IndexFlush | None:
        """Write entries, slots and header of what changed; None: nothing did. Errors as ``write_pending``."""
        assert self._running is None, "one flush at a time"
        changed = [file for file in (*self._rolled, self._current) if file is not None and file.unsaved]
        if not changed and not self._rolled:
            return None
        files: dict[str, OpenFile] = {}
        for file in (*self._rolled, *changed):
            self._new_directory_entry |= not file.on_disk
            if file.unsaved:
                file.write()
            try:
                files[file.path] = self._open.get(file.path)
            except OSError as error:
                raise store_error(error, file.path, "open") from error
        directory = self._root if self._new_directory_entry else None
        self._new_directory_entry = False
        self._running = IndexFlush(self._fs, files, directory, self._next_offset, self.end_timestamp)
        return self._running

    def end_flush(self, job: IndexFlush) -> None:
        """The job's ``run`` came back without an error. After an error do not call this: the store is poisoned."""
        assert job is self._running
        self._running = None
        self._safe_offset = job.next_offset
        self.flushed_timestamp = job.end_timestamp
        for file in list(self._rolled):
            if not file.unsaved:
                file.table = None
                self._rolled.remove(file)
                self._old.append(file)

    def flush(self) -> None:
        """Make everything safe, in place: for a clean stop and for recovery."""
        while (job := self.begin_flush()) is not None:
            job.run()
            self.end_flush(job)

    def safe_physical_offset(self, dispatched: int) -> int:
        """Keys of all records below the answer are on disk. ``dispatched``: end of what has been put so far."""
        waiting = self._running is not None or any(file.unsaved for file in (*self._rolled, self._current) if file)
        return min(dispatched, self._safe_offset) if waiting else dispatched

    def close(self) -> None:
        """Let go of descriptors and memory. ``flush`` first, or what waits is lost (and derived again)."""
        self._open.clear()
        for file in self.files:
            file.table = None

    # Recovery and removal

    def recover(self, log_end: int, trusted: int | None, progress: Callable[[int], None] | None = None) -> int:
        """Bring the files in step with a log that ends at ``log_end``; returns ``next_offset``.

        ``trusted``: the offset below which the checkpoint vouches for the index; None after a clean stop. What was
        written after it may be there in part, or belong to records that were cut since: it goes, and the slots
        of such files are made again from their entries. A bad entry below it goes to ``damages``, and everything
        behind it goes as well. Then putting goes on from the answer or earlier. StoreError if a file cannot be read.
        """
        if trusted is not None:
            for file in reversed(self.files):
                # A full file's slots may have reached the disk before its header, so they are compared too.
                if file.count > 1 and file.end_offset < trusted and file.slots_agree():
                    if file is not self._current:
                        file.table = None
                    break
                wrong = file.rebuild(trusted, progress)
                if wrong is not None:
                    self.damages.append(IndexDamage(file.path, f"entry {wrong[0]}: {wrong[1]}"))
                    self._drop_after(file)
                if file is not self._current:
                    self._old.remove(file)
                    self._rolled.insert(0, file)
        self.truncate_from_physical(log_end if trusted is None else min(log_end, trusted))
        if trusted is not None and self._current is not None:
            # The process before may have written or made the file and ended before it was safe.
            self._current.unsaved = self._new_directory_entry = True
        return self._next_offset

    def _drop_after(self, file: IndexFile) -> None:
        """Files newer than one that lost entries: what they hold is put again, in order."""
        while self._current is not None and self._current is not file:
            self._remove_newest()

    def _remove_newest(self) -> None:
        file = self._current
        assert file is not None
        self._delete(file)
        older = self._rolled or self._old
        self._current = older.pop() if older else None

    def truncate_from_physical(self, limit: int) -> None:
        """Drop the entries of records that begin at or above ``limit``: the log was cut there."""
        while self._current is not None and (
            self._current.end_offset >= limit or (self._current.count <= 1 and self._current.on_disk)
        ):
            self._current.cut_from(limit)
            if self._current.count > 1:
                break
            self._remove_newest()
        self._next_offset = self._after_newest()
        self._safe_offset = min(self._safe_offset, self._next_offset)

    def delete_expired(self, commitlog_min: int) -> int:
        """Delete the files whose last record is gone, never the newest; returns how many."""
        expired = [file for file in self._old if file.end_offset < commitlog_min]
        for file in expired:
            self._delete(file)
            self._old.remove(file)
        return len(expired)

    def reset(self) -> None:
        """Delete everything, also files that could not be used; the index is empty and is put anew."""
        for name in self._fs.listdir(self._root):
            self._delete(self._file(f"{self._root}/{name}"))
        self._old, self._rolled, self._current, self.damages = [], [], None, []
        self._take_over()

    def _delete(self, file: IndexFile) -> None:
        self._open.forget(file.path)
        try:
            self._fs.unlink(file.path)
        except FileNotFoundError:
            return
        except IsADirectoryError as error:
            raise StoreError(f"{file.path}: a directory among the index files") from error
        except OSError as error:
            raise store_error(error, file.path, "delete") from error
        self._new_directory_entry = True
