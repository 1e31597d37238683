"""Answer pulls and look-ups: queue offset to units, units to records, with the official limits.

Owns ``get`` and its result. What leaves here was checked: a record whose head or CRC is wrong is reported and
passed over, never served. ``get`` with ``allow_cold`` may run in any thread; without it, it raises ColdRead
instead of waiting for the disk.

Records of a queue usually lie close together, so that one read covers many of them: neighbours are read in one
span while the gaps are short.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final
from zlib import crc32

import msgspec

from protocol.message import (
    CRC_MASK,
    HEAD,
    HOST_FLAGS,
    MAGIC_V1,
    MAGIC_V2,
    MIN_RECORD_BYTES,
    PREFIX_V4,
    PREFIXES,
    RecordError,
    StoredMessage,
    decode_record,
)
from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.errors import ColdRead, OffsetOutOfRange, StoreError
from store.healing import Healer
from store.options import StoreOptions
from store.queue import ConsumeQueue
from store.queuefiles import BLANK_SIZE, PLACE_UNIT, UNIT
from store.scan import FIXED_PARTS, FIXED_V4

SCAN_UNITS: Final = 800  # a pull with a filter looks at 16,000 bytes of its queue at most
PLACE_SIZE: Final = UNIT.unpack(PLACE_UNIT)[1]
SPAN_BYTES: Final = 256 << 10
SPAN_GAP: Final = 16 << 10  # copying this much costs about as much as another system call
FIRST_READ: Final = 4096
_BLOCK = 64


class GetStatus(enum.Enum):
    """GetMessageStatus."""

    FOUND = enum.auto()
    NO_MATCHED_MESSAGE = enum.auto()
    MESSAGE_WAS_REMOVING = enum.auto()
    OFFSET_FOUND_NULL = enum.auto()
    OFFSET_OVERFLOW_BADLY = enum.auto()
    OFFSET_OVERFLOW_ONE = enum.auto()
    OFFSET_TOO_SMALL = enum.auto()
    NO_MATCHED_LOGIC_QUEUE = enum.auto()
    NO_MESSAGE_IN_QUEUE = enum.auto()


class GetResult(msgspec.Struct, gc=False):
    """The answer to a pull. ``data``: whole records, to be sent one behind the other."""

    status: GetStatus
    next_offset: int
    min_offset: int
    max_offset: int
    data: list[bytes | memoryview]
    count: int = 0
    size: int = 0
    fell_behind_memory: bool = False  # the consumer reads what is no longer counted as being in memory
    cold: bool = False  # disk limits applied


TagMatch = Callable[[int], bool]
PropertiesMatch = Callable[[dict[str, str]], bool]
_Place = tuple[int, int, int]  # queue offset, physical offset, size


class Limits:
    """When an answer is full (isTheBatchFull): the first message always fits."""

    __slots__ = ("_options", "_physical_memory")

    def __init__(self, options: StoreOptions, physical_memory: int) -> None:
        self._options = options
        self._physical_memory = physical_memory

    @property
    def count_memory(self) -> int:
        """Messages of one answer, at most."""
        return self._options.max_transfer_count_on_message_in_memory

    @property
    def memory_bytes(self) -> int:
        """How far from the log's end a message counts as being in memory."""
        return self._physical_memory * self._options.access_message_in_memory_max_ratio // 100

    def of_answer(self, *, on_disk: bool) -> tuple[int, int]:
        """Bytes and messages of one answer from recent or from old messages."""
        options = self._options
        if on_disk:
            return options.max_transfer_bytes_on_message_in_disk, options.max_transfer_count_on_message_in_disk
        return options.max_transfer_bytes_on_message_in_memory, options.max_transfer_count_on_message_in_memory


class Reader:
    """The read side of one store."""

    def __init__(
        self,
        log: CommitLog,
        queues: ConsumeQueues,
        queue_file_units: int,
        limits: Limits,
        healer: Healer,
        damaged: Callable[[int, str], None],
    ) -> None:
        """``damaged(physical_offset, reason)`` is told of each record that was passed over."""
        self._healer = healer
        self._log = log
        self._queues = queues
        self._queue_file_units = queue_file_units
        self._limits = limits
        self._damaged = damaged

    def get(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        max_count: int,
        *,
        matches: TagMatch | None = None,
        properties_match: PropertiesMatch | None = None,
        max_bytes: int | None = None,
        allow_cold: bool = True,
    ) -> GetResult:
        """Messages of a queue from ``offset`` on, as DefaultMessageStore.getMessage chooses them.

        ``matches`` gets the tags code of a unit, ``properties_match`` the properties of a record. ``max_bytes``
        lowers the official limits. Raises ColdRead (only without ``allow_cold``), StoreError.
        """
        queue = self._queues.queue(topic, queue_id)
        if queue is None:
            return GetResult(GetStatus.NO_MATCHED_LOGIC_QUEUE, 0, 0, 0, [])
        low, high = queue.min_offset, queue.max_offset
        if high == 0:
            return GetResult(GetStatus.NO_MESSAGE_IN_QUEUE, 0, low, high, [])
        if offset < low:
            return GetResult(GetStatus.OFFSET_TOO_SMALL, low, low, high, [])
        if offset >= high:
            badly = offset > high
            status = GetStatus.OFFSET_OVERFLOW_BADLY if badly else GetStatus.OFFSET_OVERFLOW_ONE
            return GetResult(status, high, low, high, [])
        is_filtered = matches is not None or properties_match is not None
        scan = SCAN_UNITS if is_filtered else min(max(1, max_count), self._limits.count_memory) + 1
        search = _Search(self, queue, offset, high, scan, max(1, max_count), max_bytes, allow_cold)
        if not search.units:
            beyond = offset - offset % self._queue_file_units + self._queue_file_units
            return GetResult(GetStatus.OFFSET_FOUND_NULL, beyond, low, high, [])
        return search.run(low, matches, properties_match)

    def message_at(self, physical_offset: int, *, allow_cold: bool = True) -> StoredMessage | None:
        """The message whose record begins exactly there; None if none does. Any thread with ``allow_cold``."""
        try:
            data = self._read(physical_offset, FIRST_READ, allow_cold)
            if len(data) < MIN_RECORD_BYTES:
                return None
            total, magic = HEAD.unpack_from(data)
            if magic not in (MAGIC_V1, MAGIC_V2):
                return None
            if total > len(data):
                data = self._read(physical_offset, total, allow_cold)
            message = decode_record(data)
        except RecordError:
            return None
        return message if message.physical_offset == physical_offset else None

    def store_time(self, physical_offset: int, size: int) -> int:
        """The store time in ms of the record there, -1 if it cannot be read. Any thread."""
        try:
            data = self._log.read(physical_offset, min(size, PREFIX_V4.size + 24))
        except OffsetOutOfRange:
            return -1
        if len(data) < PREFIX_V4.size:
            return -1
        fixed = FIXED_V4.unpack_from(data)
        part = FIXED_PARTS[fixed[6] & HOST_FLAGS]
        if len(data) < part.size or fixed[1] not in (MAGIC_V1, MAGIC_V2) or fixed[5] != physical_offset:
            return -1
        return int(part.unpack_from(data)[7])

    def fetch(self, places: list[_Place], allow_cold: bool) -> list[memoryview | str]:
        """The records at ascending places, or what is wrong with them."""
        found: list[memoryview | str] = []
        file_size = self._log.file_size
        first = 0
        while first < len(places):
            _, begin, size = places[first]
            if size < MIN_RECORD_BYTES or (size > SPAN_BYTES and not self._begins(begin, size, allow_cold)):
                found.append(f"the queue names a record of {size} bytes")
                first += 1
                continue
            end = begin + size
            last = first + 1
            highest = min(begin + SPAN_BYTES, begin - begin % file_size + file_size)
            while last < len(places):
                _, physical, size = places[last]
                if physical - end > SPAN_GAP or physical + size > highest or physical < end or size <= 0:
                    break
                end = physical + size
                last += 1
            data = self._read(begin, end - begin, allow_cold)
            view = memoryview(data)
            for _, physical, size in places[first:last]:
                found.append(_checked(data, view, physical - begin, physical, size))
            first = last
        return found

    def _begins(self, offset: int, size: int, allow_cold: bool) -> bool:
        """Whether a record of that size begins there: so that a wrong size is not read at length."""
        head = self._read(offset, HEAD.size, allow_cold)
        return len(head) == HEAD.size and HEAD.unpack(head)[0] == size

    def second_look(self, queue: ConsumeQueue, place: _Place, reason: str, allow_cold: bool) -> memoryview | None:
        """What to do about a place that holds no record: find where the record is, or pass over it and say so."""
        offset, physical, size = place
        searched, unit = self._healer.known(queue, offset)
        if not searched:
            if not allow_cold:
                raise ColdRead
            unit = self._healer.find(queue, offset)
        if unit is not None and unit[:2] != (physical, size):
            (record,) = self.fetch([(offset, unit[0], unit[1])], allow_cold)
            if not isinstance(record, str):
                return record
            physical, reason = unit[0], record
        if physical >= self._log.start_offset:
            self._damaged(physical, reason)
        return None

    def _read(self, begin: int, length: int, allow_cold: bool) -> bytes | bytearray:
        try:
            data = self._log.read(begin, length) if allow_cold else self._log.read_cached(begin, length)
        except OffsetOutOfRange:
            return b""
        except OSError as error:
            path = self._log.path(begin)
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
        if data is None:
            raise ColdRead
        return data


def _checked(data: bytes | bytearray, view: memoryview, at: int, physical: int, size: int) -> memoryview | str:
    """The record in the data if it is the one that the queue means, or what is wrong. ``view`` is of ``data``."""
    end = at + size
    if end > len(data):
        return "the queue names a place outside the log"
    total, magic, crc, _, _, place, sys_flag, _, body_length = FIXED_V4.unpack_from(data, at)
    body_at = at + PREFIX_V4.size
    if sys_flag & HOST_FLAGS:
        body_at = at + PREFIXES[sys_flag & HOST_FLAGS].size
        body_length = int.from_bytes(data[body_at - 4 : body_at], "big", signed=True)
    if total != size or place != physical or (magic != MAGIC_V1 and magic != MAGIC_V2):
        return "no record begins where the queue says"
    body_end = body_at + body_length
    if not body_at <= body_end < end - 2:
        return f"body length {body_length} does not fit"
    properties_at = body_end + data[body_end] + 3
    if magic == MAGIC_V2:
        properties_at = body_end + (data[body_end] << 8 | data[body_end + 1]) + 4
    if properties_at > end or properties_at + (data[properties_at - 2] << 8 | data[properties_at - 1]) != end:
        return "lengths do not add up"
    if body_length and crc32(view[body_at:body_end]) & CRC_MASK != crc:
        return "CRC of the body does not match"
    return view[at:end]


class _Search:
    """One pull on its way through the units of its queue."""

    def __init__(
        self,
        reader: Reader,
        queue: ConsumeQueue,
        offset: int,
        high: int,
        scan: int,
        max_count: int,
        max_bytes: int | None,
        allow_cold: bool,
    ) -> None:
        units_in_file = reader._queue_file_units
        count = min(scan, units_in_file - offset % units_in_file, high - offset)
        self.units = queue.slice(offset, count, nowait=not allow_cold)
        self._queue = queue
        self._reader = reader
        self._limits = reader._limits
        self._log_end = reader._log.end_offset
        self._allow_cold = allow_cold
        self._begin = offset
        self._high = high
        self._next = 0  # index into units
        self._max_count = max_count
        self._max_bytes = max_bytes if max_bytes is not None and max_bytes > 0 else 1 << 62
        self._count = self._size = 0
        self._last_physical = 0
        self._removed = False
        self._full = False
        self._cold = False

    def run(self, low: int, matches: TagMatch | None, properties_match: PropertiesMatch | None) -> GetResult:
        data: list[bytes | memoryview] = []
        while not self._full and self._next < len(self.units):
            places = self._pick(matches, _BLOCK if properties_match is None else 1)
            for place, record in zip(places, self._reader.fetch(places, self._allow_cold), strict=True):
                good = (
                    self._reader.second_look(self._queue, place, record, self._allow_cold)
                    if (isinstance(record, str))
                    else record
                )
                if good is None or not _accepts(good, properties_match):
                    self._count -= 1
                    self._size -= place[2]
                else:
                    data.append(good)
        if data:
            status = GetStatus.FOUND
        else:
            status = GetStatus.MESSAGE_WAS_REMOVING if self._removed else GetStatus.NO_MATCHED_MESSAGE
        behind = self._log_end - self._last_physical > self._limits.memory_bytes
        next_offset = self._begin + self._next
        return GetResult(status, next_offset, low, self._high, data, self._count, self._size, behind, self._cold)

    def _pick(self, matches: TagMatch | None, most: int) -> list[_Place]:
        """The next units that match, until the answer would be full; counts them as taken."""
        places: list[_Place] = []
        log_begin = self._reader._log.start_offset
        log_end = self._log_end
        disk_below = log_end - self._limits.memory_bytes
        on_disk = False
        most_bytes, most_count = self._most(on_disk)
        count, total = self._count, self._size
        first = self._begin
        index = self._next
        for physical, size, code in self.units[index:]:
            if len(places) == most:
                break
            if size < MIN_RECORD_BYTES or size == BLANK_SIZE or not log_begin <= physical < log_end:
                if self._is_passed(physical, size, log_begin):
                    index += 1
                    continue
                # No record is like that. Whether it matches is not known, so it is looked into.
                size = max(size, 0)
            else:
                self._last_physical = physical
                if (physical < disk_below) != on_disk:
                    on_disk = not on_disk
                    most_bytes, most_count = self._most(on_disk)
                if count and (count >= most_count or total + size > most_bytes):
                    self._full = True
                    break
                if matches is not None and not matches(code):
                    index += 1
                    continue
            places.append((first + index, physical, size))
            count += 1
            total += size
            index += 1
        self._next, self._count, self._size = index, count, total
        return places

    def _most(self, on_disk: bool) -> tuple[int, int]:
        """How many bytes and messages the answer may have at this place of the log."""
        self._cold = self._cold or on_disk
        most_bytes, most_count = self._limits.of_answer(on_disk=on_disk)
        return min(most_bytes, self._max_bytes), min(most_count, self._max_count)

    def _is_passed(self, physical: int, size: int, log_begin: int) -> bool:
        """Whether a unit that names no record of the log is there by right."""
        if physical == 0 and size in (BLANK_SIZE, PLACE_SIZE):
            return True
        if size >= MIN_RECORD_BYTES and 0 <= physical < log_begin:
            self._removed = True
            self._last_physical = physical
            return True
        return False


def _accepts(record: memoryview, properties_match: PropertiesMatch | None) -> bool:
    if properties_match is None:
        return True
    return properties_match(decode_record(record, check_crc=False).properties)
