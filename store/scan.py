"""Walk the records of the log: used by recovery, by dispatch on slaves and by the check tool.

Owns the one loop that splits log bytes into records. It knows no policy: it says where it stopped and why, and
the caller decides. It is the reading twin of ``protocol.message.RECORD`` for runs of records; a test holds it to
the declaration.

What counts as a record: a message's magic number, lengths that add up, the physical offset field equal to the
place it was read from, and (if asked) the CRC of the body. The official broker does not look at the physical
offset; without it, old bytes that lie behind the end of a log would pass for messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from protocol.message import (
    CRC_MASK,
    HEAD,
    HOST_FLAGS,
    MAGIC_BLANK,
    MAGIC_V1,
    MAGIC_V2,
    MAX_PROPERTIES_BYTES,
    MAX_TOPIC_BYTES,
    MIN_RECORD_BYTES,
    PREFIX_V4,
    PREFIXES,
)
from store.abortfile import Ending

CHUNK: Final = 1 << 20
PAGE: Final = 4096  # what a killed process leaves written whole or not at all
SECTOR: Final = 512  # what a disk writes whole or not at all

ReadLog = Callable[[int, int], bytes]
"""(offset, length) -> bytes of the log, fewer at the end of a file or of the log, none behind it."""


def _fixed_part(born: int, store: int) -> struct.Struct:
    """The bytes before the body without what nobody here needs: size, magic, CRC, queue id, queue offset,
    physical offset, sysFlag, store timestamp, body length."""
    return struct.Struct(f">iiii4xqqi8x{born}xq{store}x12xi")


FIXED_PARTS: Final = {flags: _fixed_part(20 if flags & 0x10 else 8, 20 if flags & 0x20 else 8) for flags in PREFIXES}
FIXED_V4: Final = FIXED_PARTS[0]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as the derived files see it."""

    physical_offset: int
    size: int
    queue_id: int
    queue_offset: int
    sys_flag: int
    store_timestamp: int
    topic: bytes
    properties: bytes


class Stop(NamedTuple):
    """Where a walk ended. ``reason`` None: the data ended between records, nothing is wrong."""

    offset: int
    reason: str | None


class Scanner:
    """A walk from one offset towards higher ones. ``offset`` is where the next record is expected."""

    def __init__(
        self,
        read: ReadLog,
        file_size: int,
        offset: int,
        *,
        until: int | None = None,
        check_crc: bool = True,
        ending: Ending = Ending.CLOSED,
    ) -> None:
        """``until``: bytes from there on are not looked at; a record that crosses it ends the walk before it.

        ``ending``: what may have become of the records. The CRC does not cover topic and properties, so a record
        can pass for good with its properties gone; such a one ends the walk.
        """
        self._read = read
        self._file_size = file_size
        self._until = until
        self._check_crc = check_crc
        self._ending = ending
        self.offset = offset
        self.filler_at: int | None = None
        """Where the filler begins that the walk has just passed; None if a record was the last."""
        self.stop: Stop | None = None
        self.count = 0

    def next_records(self, limit: int = 4096) -> list[Record]:
        """Up to ``limit`` further records; an empty list together with ``stop`` set means the walk is over."""
        records: list[Record] = []
        while self.stop is None and len(records) < limit:
            begin = self.offset
            data = self._chunk(begin, CHUNK)
            if not data:
                break
            wanted = self._split(data, begin, records, limit)
            if wanted and self.stop is None:
                data = self._chunk(begin, wanted)
                if len(data) < wanted:
                    self._end(None if self._cut_short(begin + wanted) else "record is cut off")
                else:
                    self._split(data, begin, records, limit)
        self.count += len(records)
        return records

    def _cut_short(self, end: int) -> bool:
        return self._until is not None and end > self._until

    def _chunk(self, offset: int, length: int) -> bytes:
        if self._until is not None:
            length = min(length, self._until - offset)
        data = self._read(offset, length) if length > 0 else b""
        if not data:
            self._end(None)
        return data

    def _end(self, reason: str | None) -> None:
        self.stop = Stop(self.offset, reason)

    def _split(self, data: bytes, begin: int, records: list[Record], limit: int) -> int:
        """Take whole records off the front of ``data``; advances ``offset``.

        Returns 0, or the number of bytes from ``begin`` that the first record takes when ``data`` has fewer.
        """
        position, end = 0, len(data)
        file_end = begin - begin % self._file_size + self._file_size
        head_at = HEAD.unpack_from
        wanted = 0
        reason: str | None = None
        while len(records) < limit:
            rest = end - position
            if rest < 8:
                wanted = position + 8 if begin + position + 8 <= file_end else 0
                if rest and not wanted:
                    reason = "fewer than 8 bytes are left in the file"
                break
            total, magic = head_at(data, position)
            if magic != MAGIC_V1 and magic != MAGIC_V2:
                if magic == MAGIC_BLANK:
                    return self._skip_filler(begin + position, file_end)
                unknown = f"magic number {magic & 0xFFFFFFFF:#010x} is unknown"
                reason = unknown if total or magic else "no record"
                break
            if total < MIN_RECORD_BYTES or begin + position + total > file_end:
                reason = f"total size {total} is impossible"
                break
            if total > rest:
                wanted = position + total
                break
            record = _parse(data, position, total, magic, begin + position, self._check_crc)
            if not isinstance(record, Record):
                reason = record
                break
            if (
                self._ending is not Ending.CLOSED
                and (b"\0" in record.properties or b"\0" in record.topic)
                and self._lacks_a_part(data, position, record, begin % self._file_size)
            ):
                reason = "a part of topic or properties is gone"
                break
            records.append(record)
            position += total
        self.offset = begin + position
        if position:
            self.filler_at = None
        if reason is not None:
            self._end(reason)
        # A record that only began behind other ones is read again from its own begin.
        return wanted if position == 0 else 0

    def _lacks_a_part(self, data: bytes, position: int, record: Record, shift: int) -> bool:
        """Whether zeros of the text look like the end of a run rather than like something sent; data[0] at ``shift``
        in its file."""
        if self._ending is Ending.UNKNOWN and _has_lost_sector(data, position, record.size, record, shift):
            return True
        if self._ending is Ending.KILLED:
            last = position + record.size - 1
            page = max(position, last - (last + shift) % PAGE)
            if page == position or any(data[page : last + 1]):
                return False
        return self._ends_in_zeros(record)

    def _ends_in_zeros(self, record: Record) -> bool:
        """Whether the log seems to have been cut inside this record: from its last bytes on it is zero."""
        text = record.properties or record.topic
        return text.endswith(b"\0") and not any(self._read(record.physical_offset + record.size, 8))

    def _skip_filler(self, offset: int, file_end: int) -> int:
        if self._cut_short(file_end):
            self.offset = offset
            self._end(None)
        else:
            self.offset = file_end
            self.filler_at = offset
        return 0


def _parse(data: bytes, position: int, total: int, magic: int, offset: int, check_crc: bool) -> Record | str:
    """The record at ``position``, which must be the one of ``offset``, or what is wrong with it."""
    fixed = FIXED_V4.unpack_from(data, position)
    body_at = position + PREFIX_V4.size
    flags = fixed[6] & HOST_FLAGS
    if flags:
        prefix_size = PREFIXES[flags].size
        if total < prefix_size + 3:
            return f"total size {total} is too small for its fields"
        fixed = FIXED_PARTS[flags].unpack_from(data, position)
        body_at = position + prefix_size
    _, _, crc, queue_id, queue_offset, physical_offset, sys_flag, store_timestamp, body_length = fixed
    stop = position + total
    topic_at = body_at + body_length + 1
    if body_length < 0 or topic_at + 2 > stop:
        return f"body length {body_length} does not fit"
    topic_length = data[topic_at - 1]
    if magic == MAGIC_V2:
        topic_length = topic_length << 8 | data[topic_at]
        topic_at += 1
    properties_at = topic_at + topic_length + 2
    if properties_at > stop or topic_length > (MAX_TOPIC_BYTES if magic == MAGIC_V1 else MAX_PROPERTIES_BYTES):
        return f"topic length {topic_length} does not fit"
    properties_length = data[properties_at - 2] << 8 | data[properties_at - 1]
    if properties_at + properties_length != stop or properties_length > MAX_PROPERTIES_BYTES:
        return "lengths do not add up"
    if physical_offset != offset:
        return f"the record says it is at {physical_offset}"
    if check_crc and body_length and crc32(data[body_at : body_at + body_length]) & CRC_MASK != crc:
        return "CRC of the body does not match"
    topic = data[topic_at : properties_at - 2]
    properties = data[properties_at:stop]
    return Record(physical_offset, total, queue_id, queue_offset, sys_flag, store_timestamp, topic, properties)


def _has_lost_sector(data: bytes, position: int, total: int, record: Record, shift: int) -> bool:
    """Whether a sector's part of topic and properties is all zeros; data[0] is at ``shift`` in its file."""
    end = position + total
    begin = end - len(record.properties) - 2 - len(record.topic)
    while begin < end:
        stop = min(end, begin + SECTOR - (begin + shift) % SECTOR)
        if not any(data[begin:stop]):
            return True
        begin = stop
    return False


def walk(
    read: ReadLog,
    file_size: int,
    begin: int,
    until: int,
    damaged: Callable[[int, int, str], None],
    *,
    check_crc: bool = False,
) -> Iterator[list[Record]]:
    """All good records in [begin, until), going on behind damage, which ``damaged(begin, end, reason)`` is told of."""
    at: int | None = begin
    while at is not None and at < until:
        scanner = Scanner(read, file_size, at, until=until, check_crc=check_crc)
        while records := scanner.next_records():
            yield records
        end = scanner.offset
        if end >= until:
            return
        at = find_record(read, file_size, end + 1, until)
        reason = scanner.stop.reason if scanner.stop is not None else None
        damaged(end, until if at is None else at, reason or "a file is missing or a record is cut off")


def find_record(read: ReadLog, file_size: int, offset: int, end: int) -> int | None:
    """The first offset in [offset, end) at which a whole good record (or a filler) begins; None if there is none.

    For going on behind damage. A record must have its CRC and its own offset right, so that bytes inside a body
    that only look like a record are not taken for one.
    """
    patterns = [magic.to_bytes(4, "big", signed=True) for magic in (MAGIC_V1, MAGIC_V2, MAGIC_BLANK)]
    while offset < end:
        file_end = offset - offset % file_size + file_size
        data = read(offset, min(CHUNK, end - offset))
        if not data:  # a file is missing
            offset = file_end
            continue
        for place in sorted(place for pattern in patterns for place in _places(data, pattern)):
            candidate = offset + place - 4
            if place >= 4 and _is_record(read, file_size, candidate, file_end):
                return candidate
        if offset + len(data) >= file_end:
            offset = file_end
        else:
            offset += max(1, len(data) - 7)
    return None


def _places(data: bytes, pattern: bytes) -> list[int]:
    places = []
    at = data.find(pattern)
    while at >= 0:
        places.append(at)
        at = data.find(pattern, at + 1)
    return places


def _is_record(read: ReadLog, file_size: int, offset: int, file_end: int) -> bool:
    head = read(offset, 8)
    if len(head) == 8 and HEAD.unpack(head) == (file_end - offset, MAGIC_BLANK):
        return True
    records = Scanner(read, file_size, offset).next_records(1)
    return bool(records) and records[0].physical_offset == offset
