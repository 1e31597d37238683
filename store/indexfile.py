"""One file of the key index: header, hash slots, entries; the official layout byte for byte.

Owns: the state of one file, what of it is in memory only, and its repair. Layout in ``layouts``: a header of
40 bytes, ``slots`` * int32, ``capacity`` * 20 bytes of entries. Entry 0 is never used; ``count`` is the number of
the next one.

Only the file that is being appended to has its slot table in memory (``SlotTable``). Entries wait in a tail
like the units of a consume queue. Nothing is trusted to be in step on disk but what a finished flush wrote:
entries are written before slots, slots before the header, and after an unclean stop ``rebuild`` makes the slots
again from the entries, each of which must continue the chain of its slot.

Looking up (``chain``) is safe in any thread beside ``append``.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from store.files import FileSystem, OpenFiles
from store.queuefiles import store_error

HEADER: Final = struct.Struct(">qqqqii")  # twin of layouts.INDEX_HEADER
ENTRY: Final = struct.Struct(">iqii")  # twin of layouts.INDEX_ENTRY
HEADER_SIZE: Final = HEADER.size
ENTRY_SIZE: Final = ENTRY.size
SLOT_SIZE: Final = 4
PAGE_SLOTS: Final = 1024  # slots that are written back together
_WRITE_PAGES = 64
_READ_ENTRIES = 16384
MAX_SECONDS: Final = 0x7FFFFFFF


class SlotTable:
    """The newest entry of each chain, in anonymous memory: pages that were never touched cost nothing."""

    __slots__ = ("_memory", "dirty", "slots")

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * SLOT_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.slots = memoryview(self._memory).cast("i")
        self.dirty = bytearray(-(-count // PAGE_SLOTS))

    def fill(self, first: int, data: bytes) -> None:
        """Take slots over from a file; zeros are left alone."""
        if data.count(0) == len(data):
            return
        values = array("i", data)
        if sys.byteorder == "little":
            values.byteswap()
        self.slots[first : first + len(values)] = memoryview(values)

    def dirty_runs(self) -> Iterator[tuple[int, bytes]]:
        """(first slot, bytes for the file) of what changed, in runs.

        A run counts as clean when the next one is asked for, that is after its write succeeded.
        """
        page = self.dirty.find(1)
        while page >= 0:
            end = page
            while end < len(self.dirty) and end - page < _WRITE_PAGES and self.dirty[end]:
                end += 1
            values = array("i", self.slots[page * PAGE_SLOTS : end * PAGE_SLOTS].tobytes())
            if sys.byteorder == "little":
                values.byteswap()
            yield page * PAGE_SLOTS, values.tobytes()
            self.dirty[page:end] = bytes(end - page)
            page = self.dirty.find(1, end)


class Tail:
    """Entries from number ``start`` on that are not in the file yet."""

    __slots__ = ("entries", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.entries = bytearray()


class IndexFile:
    """State of one file. A new one is not on disk before the first ``write``."""

    __slots__ = (
        "_files",
        "_fs",
        "begin_offset",
        "begin_timestamp",
        "broken_chains",
        "capacity",
        "count",
        "end_offset",
        "end_timestamp",
        "on_disk",
        "path",
        "slot_count",
        "table",
        "tail",
        "unsaved",
        "used_slots",
    )

    def __init__(self, fs: FileSystem, files: OpenFiles, path: str, slot_count: int, capacity: int) -> None:
        self._fs = fs
        self._files = files
        self.path = path
        self.slot_count = slot_count
        self.capacity = capacity
        self.begin_timestamp = self.end_timestamp = 0
        self.begin_offset = self.end_offset = 0
        self.used_slots = 0
        self.broken_chains = 0  # entries found by ``rebuild`` that leave older ones of their chain out
        self.count = 1
        self.on_disk = False
        self.unsaved = False  # something was appended or cut since the last write of header and slots
        self.table: SlotTable | None = None
        self.tail = Tail(1)

    # Sizes and places

    @property
    def size(self) -> int:
        return HEADER_SIZE + SLOT_SIZE * self.slot_count + ENTRY_SIZE * self.capacity

    @property
    def full(self) -> bool:
        return self.count >= self.capacity

    def entry_position(self, number: int) -> int:
        return HEADER_SIZE + SLOT_SIZE * self.slot_count + ENTRY_SIZE * number

    # Loading

    def load_header(self) -> str | None:
        """Read size and header; returns what is wrong with them, None if they can be right. OSError as ``open``."""
        fd = self._files.get(self.path).fd
        size = self._fs.size(fd)
        data = self._fs.pread(fd, HEADER_SIZE, 0)
        if size != self.size:
            return f"{size} bytes long instead of {self.size}"
        (
            self.begin_timestamp,
            self.end_timestamp,
            self.begin_offset,
            self.end_offset,
            self.used_slots,
            self.count,
        ) = HEADER.unpack(data)
        self.count = max(1, self.count)  # as the official loader reads a zero
        self.on_disk = True
        self.tail = Tail(self.count)
        if self.count > self.capacity:
            return f"header counts {self.count} entries of {self.capacity}"
        if min(self.begin_timestamp, self.begin_offset, self.used_slots) < 0:
            return "header holds a negative number"
        if self.end_timestamp < self.begin_timestamp or self.end_offset < self.begin_offset:
            return "header ends before it begins"
        return None

    def open_table(self) -> SlotTable:
        """The slot table, read from the file if need be (20 MB, about 20 ms, when it is full)."""
        if self.table is None:
            table = SlotTable(self.slot_count)
            if self.on_disk:
                step = _WRITE_PAGES * PAGE_SLOTS
                for first in range(0, self.slot_count, step):
                    count = min(step, self.slot_count - first)
                    table.fill(first, self._read(HEADER_SIZE + SLOT_SIZE * first, SLOT_SIZE * count))
            self.table = table
        return self.table

    def _read(self, position: int, length: int) -> bytes:
        try:
            data = self._fs.pread(self._files.get(self.path).fd, length, position)
        except FileNotFoundError:
            data = b""  # deleted as expired while a thread was looking something up
        except OSError as error:
            raise store_error(error, self.path, "read") from error
        return data.ljust(length, b"\0")

    # Looking up

    def entries(self, first: int, count: int) -> bytes:
        """Bytes of entries; the caller stays below ``count``."""
        tail = self.tail
        begin = (first - tail.start) * ENTRY_SIZE
        if begin >= 0:
            return bytes(tail.entries[begin : begin + count * ENTRY_SIZE])
        in_file = min(-begin, count * ENTRY_SIZE)
        data = self._read(self.entry_position(first), in_file)
        return data + tail.entries[: count * ENTRY_SIZE - in_file]

    def entry(self, number: int) -> tuple[int, int, int, int]:
        """(key hash, physical offset, seconds, previous entry)."""
        return ENTRY.unpack(self.entries(number, 1))

    def chain(self, key_hash: int, begin: int, end: int, limit: int) -> list[int]:
        """Physical offsets for a hash with store times (to the second) in [begin, end], newest first."""
        slot = key_hash % self.slot_count
        table = self.table
        if table is not None:
            number = table.slots[slot]
        else:
            number = int.from_bytes(self._read(HEADER_SIZE + SLOT_SIZE * slot, SLOT_SIZE), "big", signed=True)
        found: list[int] = []
        # A chain leads to ever smaller numbers; what does not is damage, and would never end.
        highest = self.count
        while 0 < number < highest and len(found) < limit:
            highest = number
            entry_hash, physical_offset, seconds, number = self.entry(number)
            time = self.begin_timestamp + seconds * 1000
            if seconds < 0:
                break
            if entry_hash == key_hash and begin <= time <= end:
                found.append(physical_offset)
            if time < begin:
                break
        return found

    def slots_agree(self) -> bool:
        """Whether no slot leads beyond the entries that the header counts."""
        return max(self.open_table().slots) < self.count

    def overlaps(self, begin: int, end: int) -> bool:
        return begin <= self.end_timestamp and end >= self.begin_timestamp

    # Writing

    def write_tail(self) -> None:
        """Entries to the file, which is made if it is not there. StoreFull or StoreError; repeat the call then."""
        tail = self.tail
        try:
            if not self.on_disk:
                self._fs.makedirs(self.path.rpartition("/")[0])
                self._files.adopt(self.path, self._fs.create(self.path, self.size))
                self.on_disk = True
            if tail.entries:
                fd = self._files.get(self.path).fd
                self._fs.write_all(fd, tail.entries, self.entry_position(tail.start))
        except OSError as error:
            raise store_error(error, self.path, "write") from error
        self.tail = Tail(tail.start + len(tail.entries) // ENTRY_SIZE)

    def write(self) -> None:
        """Entries, then changed slots, then the header. Errors as ``write_tail``."""
        self.write_tail()
        header = HEADER.pack(
            self.begin_timestamp,
            self.end_timestamp,
            self.begin_offset,
            self.end_offset,
            self.used_slots,
            self.count,
        )
        try:
            fd = self._files.get(self.path).fd
            if self.table is not None:
                for first, data in self.table.dirty_runs():
                    self._fs.write_all(fd, data, HEADER_SIZE + SLOT_SIZE * first)
            self._fs.write_all(fd, header, 0)
        except OSError as error:
            raise store_error(error, self.path, "write") from error
        self.unsaved = False

    # Repair

    def rebuild(
        self, limit: int = sys.maxsize, progress: Callable[[int], None] | None = None
    ) -> tuple[int, str] | None:
        """Make the slots again from the entries in the file, up to the first of a record at or above ``limit``.

        Also cuts at the first entry that cannot be right; returns its number and what is wrong with it. The last
        record's entries go as well then, because a part of them may be missing. About 4 million entries a second.
        """
        table = self.table = SlotTable(self.slot_count)
        table.dirty[:] = b"\1" * len(table.dirty)
        self.used_slots = self.broken_chains = 0
        self.tail = Tail(self.count)
        self.unsaved = True
        wrong: str | None = None
        number, last = 1, -1
        while number < self.count and wrong is None:
            data = self._read(self.entry_position(number), min(_READ_ENTRIES, self.count - number) * ENTRY_SIZE)
            below, wrong = _below(data, last, limit)
            good, wrong_chain = self._link(table, data[: below * ENTRY_SIZE], number)
            if good:
                last = ENTRY.unpack_from(data, (good - 1) * ENTRY_SIZE)[1]
            number += good
            wrong = wrong_chain or wrong
            if progress is not None:
                progress(number)
        if wrong is not None:
            self.cut(number)
        if wrong is None or wrong is _LIMIT:
            return None
        self.cut_from(self.end_offset)
        return number, wrong

    def _link(self, table: SlotTable, data: bytes, number: int) -> tuple[int, str | None]:
        """Chain the entries in ``data``; (how many were good, what is wrong with the next)."""
        columns = array("i", data)
        if sys.byteorder == "little":
            columns.byteswap()
        slots, slot_count = table.slots, self.slot_count
        good, wrong = len(data) // ENTRY_SIZE, None
        used = 0
        for at, (key_hash, previous) in enumerate(zip(columns[0::5], columns[4::5], strict=True), number):
            slot = key_hash % slot_count
            head = slots[slot]
            if head != previous:
                if not 0 <= previous < at:
                    good, wrong = at - number, f"its chain goes on at {previous}"
                    break
                self.broken_chains += 1
            if not head:
                used += 1
            slots[slot] = at
        self.used_slots += used
        return good, wrong

    def cut(self, number: int) -> None:
        """Drop the entries from ``number`` on. Chains are unwound backwards, so the slots stay exact."""
        table = self.open_table()
        slots = table.slots
        while self.count > number:
            first = max(number, self.count - _READ_ENTRIES)
            entries = list(ENTRY.iter_unpack(self.entries(first, self.count - first)))
            for at in range(len(entries) - 1, -1, -1):
                key_hash, _, _, previous = entries[at]
                slot = key_hash % self.slot_count
                if slots[slot] == first + at:
                    slots[slot] = previous
                    table.dirty[slot // PAGE_SLOTS] = 1
                    if not previous:
                        self.used_slots -= 1
            self.count = first
        tail = Tail(min(self.tail.start, self.count))
        tail.entries = self.tail.entries[: (self.count - tail.start) * ENTRY_SIZE]
        self.tail = tail
        self.unsaved = True
        if self.count > 1:
            _, self.end_offset, seconds, _ = self.entry(self.count - 1)
            self.end_timestamp = min(self.end_timestamp, self.begin_timestamp + seconds * 1000 + 999)
        else:
            self.end_offset, self.end_timestamp = self.begin_offset, self.begin_timestamp

    def cut_from(self, physical_offset: int) -> None:
        """Drop the entries of records that begin at or above the offset."""
        low, high = 1, self.count
        while low < high:
            middle = (low + high) // 2
            if self.entry(middle)[1] < physical_offset:
                low = middle + 1
            else:
                high = middle
        if low < self.count:
            self.cut(low)


_LIMIT: Final = "it is not vouched for"


def _below(data: bytes, last: int, limit: int) -> tuple[int, str | None]:
    """How many entries are good and below ``limit``, and why the next is not: ``_LIMIT`` or what is wrong with it."""
    columns = array("i", data)
    halves = array("i", bytes(len(columns) // 5 * 8))
    if sys.byteorder == "little":
        columns.byteswap()
    high = 1 if sys.byteorder == "little" else 0
    halves[high::2], halves[1 - high :: 2] = columns[1::5], columns[2::5]
    offsets = array("q", halves.tobytes()).tolist()
    # Without a step of Python for each entry where all is well.
    if (
        last <= offsets[0]
        and offsets[-1] < limit
        and offsets == sorted(offsets)
        and min(columns[3::5]) >= 0
        and min(columns[0::5]) >= 0
    ):
        return len(offsets), None
    for index, (key_hash, physical_offset, seconds, _) in enumerate(ENTRY.iter_unpack(data)):
        if physical_offset >= limit:
            return index, _LIMIT
        if physical_offset < last:
            return index, f"its commitlog offset {physical_offset} falls below {max(last, 0)}"
        if seconds < 0 or key_hash < 0:
            return index, f"its hash is {key_hash}, its time {seconds}"
        last = physical_offset
    return len(offsets), None
