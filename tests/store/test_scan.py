"""The walk over the log: the same records as the declaration, and an exact word about where and why it stops."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.message import MAGIC_BLANK, RecordError, decode_record, encode_record
from store.abortfile import Ending
from store.scan import Record, Scanner, Stop, find_record, walk
from tests.store.making import message

FILE = 2000


def log_of(*bodies: bytes, properties: bytes = b"", start: int = 0) -> bytes:
    """Records one behind the other, as the log holds them."""
    data = b""
    for number, body in enumerate(bodies):
        new = message(body, properties=properties)
        new.queue_offset = number
        new.physical_offset = start + len(data)
        new.store_timestamp = 1000 + number
        data += encode_record(new)
    return data


def reader(data: bytes, file_size: int = FILE) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        return data[offset : min(offset + length, offset - offset % file_size + file_size)]

    return read


def scan(data: bytes, offset: int = 0, **how: Ending | int) -> tuple[list[Record], Stop]:
    scanner = Scanner(reader(data), FILE, offset, **how)  # type: ignore[arg-type]
    records: list[Record] = []
    while batch := scanner.next_records(3):
        records += batch
    assert scanner.stop is not None
    assert scanner.count == len(records)
    return records, scanner.stop


def test_all_records_and_the_end() -> None:
    """Each record with its place; data that ends between records is a good end."""
    data = log_of(b"a", b"bb", b"", b"c" * 200, properties=b"TAGS\x01x")
    records, stop = scan(data)
    assert stop == Stop(len(data), None)
    assert [record.queue_offset for record in records] == [0, 1, 2, 3]
    assert records[1].physical_offset == records[0].size
    assert records[1] == Record(records[0].size, records[1].size, 0, 1, 0, 1001, b"T", b"TAGS\x01x")


def test_zeros_and_what_is_behind_are_no_record() -> None:
    """The usual end of a log."""
    data = log_of(b"a")
    assert scan(data + bytes(500))[1] == Stop(len(data), "no record")


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_judges_a_changed_byte_as_the_declaration_does(body: bytes, at: int, value: int) -> None:
    """Same verdict as decode_record, which is held to the declaration, for one changed byte."""
    data = bytearray(log_of(body, properties=b"KEYS\x01k"))
    data[at % len(data)] = value
    try:
        expected = decode_record(bytes(data)).physical_offset == 0
    except RecordError:
        expected = False
    if struct.unpack_from(">i", data, 4)[0] != MAGIC_BLANK:
        assert bool(scan(bytes(data))[0]) == expected


@pytest.mark.parametrize("born", [8, 20])
@pytest.mark.parametrize("store", [8, 20])
def test_ipv6_hosts(born: int, store: int) -> None:
    """The fixed part is longer, the fields are found all the same."""
    flags = (0x10 if born == 20 else 0) | (0x20 if store == 20 else 0)
    new = message(b"body", sys_flag=flags, born_host=bytes(born), store_host=bytes(store), properties=b"a\x01b")
    new.queue_offset, new.physical_offset, new.store_timestamp = 7, 0, 99
    (record,), _ = scan(encode_record(new))
    assert (record.queue_offset, record.store_timestamp, record.topic, record.properties) == (7, 99, b"T", b"a\x01b")


@pytest.mark.parametrize(
    ("position", "change", "reason"),
    [
        (0, struct.pack(">i", 2**31 - 1), "total size 2147483647 is impossible"),
        (0, struct.pack(">i", -5), "total size -5 is impossible"),
        (0, struct.pack(">i", 50), "total size 50 is impossible"),
        (4, b"\x12\x34\x56\x78", "magic number 0x12345678 is unknown"),
        (28, struct.pack(">q", 77), "the record says it is at 77"),
        (84, struct.pack(">i", -1), "body length -1 does not fit"),
        (84, struct.pack(">i", 1000), "body length 1000 does not fit"),
        (88, b"X", "CRC of the body does not match"),
        (92, b"\xff", "topic length 255 does not fit"),
        (94, b"\x00\x01", "lengths do not add up"),
    ],
)
def test_says_what_is_wrong(position: int, change: bytes, reason: str) -> None:
    """The reason names the field and its value."""
    data = bytearray(log_of(b"body"))
    data[position : position + len(change)] = change
    assert scan(bytes(data)) == ([], Stop(0, reason))


def test_crc_is_optional() -> None:
    """Dispatch does not compute it again."""
    data = bytearray(log_of(b"body"))
    data[88] ^= 1
    assert len(scan(bytes(data), check_crc=False)[0]) == 1


def test_filler_leads_to_the_next_file() -> None:
    """Whatever the filler holds behind its head is not looked at."""
    first = log_of(b"a", b"b")
    old_record = log_of(b"old", start=len(first) + 8)
    filler = struct.pack(">ii", FILE - len(first), MAGIC_BLANK) + old_record
    data = (first + filler).ljust(FILE, b"\0") + log_of(b"c", start=FILE)
    records, stop = scan(data)
    assert [record.physical_offset for record in records] == [0, records[0].size, FILE]
    assert stop == Stop(len(data), None)


def test_until_ends_in_front_of_what_crosses_it() -> None:
    """A torn frame of a slave's log, and a filler of which only a part is there, are no damage."""
    data = log_of(b"a", b"b")
    half = len(data) // 2
    for until in range(half, len(data)):
        records, stop = scan(data, until=until)
        assert (len(records), stop) == (1, Stop(half, None))
    filled = data + struct.pack(">ii", FILE - len(data), MAGIC_BLANK)
    assert scan(filled, until=len(filled))[1] == Stop(len(data), None)


def test_records_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record larger than one read is read whole."""
    monkeypatch.setattr("store.scan.CHUNK", 100)
    data = log_of(b"a" * 700, b"b", b"c" * 90)
    records, stop = scan(data)
    assert [record.size for record in records] == [792, 93, 182]
    assert stop.reason is None
    assert scan(data[:-1])[1] == Stop(792 + 93, "record is cut off")


def test_a_lost_sector_in_the_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CRC does not cover properties: after a power loss, zeros from a sector's begin to its end tell."""
    data = bytearray(log_of(b"b" * 420, b"next", properties=b"KEYS\x01" + b"k" * 60))
    first_end = struct.unpack_from(">i", data)[0]
    data[512:first_end] = bytes(first_end - 512)
    assert len(scan(bytes(data))[0]) == 2
    assert scan(bytes(data), ending=Ending.UNKNOWN) == ([], Stop(0, "a part of topic or properties is gone"))
    data[512] = ord("k")
    assert len(scan(bytes(data), ending=Ending.UNKNOWN)[0]) == 2


def test_find_record_behind_damage() -> None:
    """The next whole record; bytes in a body that only look like one are not taken for one."""
    inner = log_of(b"inner", start=5)
    data = log_of(b"x" * 50, b"y" * 3 + inner, b"z")
    starts = [record.physical_offset for record in scan(data)[0]]
    read = reader(data)
    assert [find_record(read, FILE, start, len(data)) for start in starts] == starts
    assert find_record(read, FILE, 1, len(data)) == starts[1]
    assert find_record(read, FILE, starts[1] + 1, len(data)) == starts[2]
    assert find_record(read, FILE, starts[2] + 1, len(data)) is None


def test_find_record_in_a_later_file_and_over_a_missing_one() -> None:
    """A file that is not there is passed over."""
    third = log_of(b"far", start=2 * FILE)

    def read(offset: int, length: int) -> bytes:
        if offset < 2 * FILE:
            return b"" if offset >= FILE else bytes(length)[: FILE - offset]
        return third[offset - 2 * FILE :][:length]

    assert find_record(read, FILE, 0, 3 * FILE) == 2 * FILE


def test_find_record_at_any_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a chunk's end cuts its head."""
    monkeypatch.setattr("store.scan.CHUNK", 64)
    for distance in range(1, 200):
        data = bytes(distance) + log_of(b"found", start=distance)
        assert find_record(reader(data), FILE, 0, len(data)) == distance


def test_walk_goes_on_behind_damage() -> None:
    """All good records come, and the damaged range is told."""
    data = bytearray(log_of(b"a", b"b", b"c"))
    size = len(data) // 3
    data[size + 88] ^= 1
    told: list[tuple[int, int, str]] = []
    batches = list(walk(reader(bytes(data)), FILE, 0, len(data), lambda *what: told.append(what), check_crc=True))
    assert [record.physical_offset for batch in batches for record in batch] == [0, 2 * size]
    assert told == [(size, 2 * size, "CRC of the body does not match")]
