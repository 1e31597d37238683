"""Runs of ordinary records: what the scanner and `derive` make of the same bytes, or nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.message import BORN_HOST_V6, STORE_HOST_V6, NewMessage, encode_record
from store.commitlog import Entry
from store.dispatch import SCHEDULE_TOPIC, DelayLevels, derive
from store.options import DELAY_LEVELS
from store.replay import OrdinaryRecords, Run
from store.scan import Scanner
from tests.store.making import message

DELAYS = DelayLevels(DELAY_LEVELS)
FILE = 1 << 20
TOPICS = {b"T": "T", b"Other": "Other", b"Y": "Y"}


def ordinary_records() -> OrdinaryRecords:
    records = OrdinaryRecords()
    records.topics.update(TOPICS)
    return records


def log_of(messages: Sequence[NewMessage], start: int = 0) -> bytes:
    """Their records, as the log holds them from `start` on."""
    data = b""
    for item in messages:
        item.physical_offset = start + len(data)
        data += encode_record(item)
    return data


def scanned(data: bytes, start: int) -> list[tuple[Entry, int]]:
    """Entries and store times by the general way."""

    def read(offset: int, length: int) -> bytes:
        return data[offset - start : offset - start + length]

    records = Scanner(read, FILE, start, until=start + len(data), check_crc=False).next_records()
    return [(derive(each, each.topic.decode("utf-8", "replace"), DELAYS), each.store_timestamp) for each in records]


def assert_front_of_scan(run: Run, data: bytes, start: int, position: int = 0) -> None:
    expected = scanned(data[position:], start + position)[: len(run.entries)]
    assert run.entries == [entry for entry, _ in expected]
    assert run.end - position == sum(entry[4] for entry, _ in expected)
    assert {time for _, time in expected} <= {run.store_timestamp}


@st.composite
def messages(draw: st.DrawFn) -> NewMessage:
    names = st.sampled_from(["UNIQ_KEY", "KEYS", "TAGS", "DELAY", "CLUSTER", "XTAGS", ""])
    values = st.sampled_from(["", "3", "0123456789ABCDEF" * 2, "a b  c", "ключ", "TAGS", "x\x01y"])
    pairs = draw(st.lists(st.tuples(names, values), max_size=4))
    text = "\x02".join(f"{name}\x01{value}" for name, value in pairs).encode()
    item = message(
        draw(st.binary(max_size=20)),
        topic=draw(st.sampled_from(["T", "T", "T", "Other", "Unknown", SCHEDULE_TOPIC])),
        queue_id=draw(st.integers(-1, 3)),
        sys_flag=draw(st.sampled_from([0, 0, 0, 0, 1, 4, 8, 12, BORN_HOST_V6, BORN_HOST_V6 | STORE_HOST_V6])),
        properties=text + draw(st.sampled_from([b"", b"", b"\x02", b"\xff"])),
    )
    item.born_host = item.born_host if not item.sys_flag & BORN_HOST_V6 else bytes(16) + item.born_host[-4:]
    item.store_host = item.store_host if not item.sys_flag & STORE_HOST_V6 else bytes(16) + item.store_host[-4:]
    item.queue_offset = draw(st.integers(-1, 5))
    item.store_timestamp = draw(st.sampled_from([1000, 1000, 1000, 1001]))
    return item


@given(st.lists(messages(), max_size=6), st.sampled_from([0, FILE, 12345]), st.integers(1, 7))
def test_a_run_is_what_the_scanner_finds(items: list[NewMessage], start: int, limit: int) -> None:
    """Ordinary or not, whatever the properties; run by run through the bytes."""
    data = log_of(items, start)
    records = ordinary_records()
    position = 0
    while (run := records.entries(data, position, start + position, limit)).entries:
        assert len(run.entries) <= limit
        assert_front_of_scan(run, data, start, position)
        position = run.end
    assert run == Run([], position, 0)


BEFORE = ["", "TAGS\x01A\x02", "TAGS\x01B\x02", "KEYS\x01C\x02", "UNIQ_KEY\x01D\x02", "X"]
BEHIND = ["", "\x02", "\x02c\x01C"] + [
    f"\x02{name}\x01{value}" for name in ("TAGS", "KEYS", "UNIQ_KEY") for value in ("", "E", "KEY0")
]
UNIQUE_KEYS = ["KEY0", "KEY1", "K\x02Y2", "K\x023S", "K\u00e94"]


def keyed(before: str, key: str, behind: str) -> NewMessage:
    return message(b"x" * 9, properties=f"{before}UNIQ_KEY\x01{key}{behind}".encode())


def that_know(known: NewMessage) -> OrdinaryRecords:
    """Records of that kind have been seen."""
    records = ordinary_records()
    records.entries(log_of([known, known]), 0, 0, 9)
    return records


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("behind", BEHIND)
def test_what_was_seen_before_makes_no_difference(before: str, behind: str) -> None:
    """Whatever stands around the unique key, in it, or both, in the record before and in this one."""
    records = that_know(keyed(before, UNIQUE_KEYS[0], behind))
    for key in UNIQUE_KEYS:
        items = [keyed(before, key, behind), *(keyed(other, key, behind) for other in BEFORE)]
        data = log_of([*items, *(keyed(before, key, other) for other in BEHIND)])
        run = records.entries(data, 0, 0, 99)
        assert len(run.entries) == 1 + len(BEFORE) + len(BEHIND)
        assert_front_of_scan(run, data, 0)


@pytest.mark.parametrize("filler", [100, 20_000])
def test_what_is_remembered_is_bounded(filler: int) -> None:
    """However long properties are, however much they differ, and however many sizes there are."""
    records = ordinary_records()
    tracemalloc.start()
    try:
        for number in range(300):
            item = keyed(f"f\x01{number:09}{'x' * filler}\x02", "KEY0", "")
            item.body = b"x" * (number // 100)
            data = log_of([item, item])
            assert len(records.entries(data, 0, 0, 9).entries) == 2
        remembered = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert remembered < 300_000


def test_damage_in_a_known_layout_is_left_to_the_scanner() -> None:
    """At every byte, and at every end."""
    known = keyed("TAGS\x01A\x02", "KEY0", "\x02c\x01C")
    records = that_know(known)
    other_topics = [message(b"x" * 9, topic=topic, properties=known.properties) for topic in ("Y", "Z")]
    data = log_of([known, known, *other_topics])
    size = len(data) // 4
    assert_front_of_scan(records.entries(data, 0, 0, 9), data, 0)
    assert len(records.entries(data, 0, 0, 9).entries) == 3
    for place in range(len(data)):
        assert records.entries(data[:place], 0, 0, 9) == ordinary_records().entries(data[:place], 0, 0, 9)
        for value in {0, 1, 2, 5, 255, data[place] ^ 1, data[place] + 1 & 255}:
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            run = records.entries(damaged, 0, 0, 9)
            assert run == ordinary_records().entries(damaged, 0, 0, 9)
            assert_front_of_scan(run, damaged, 0)
            assert len(run.entries) >= min(place // size, 3)


@given(st.lists(messages(), min_size=1, max_size=4), st.data())
def test_damage_is_left_to_the_scanner(items: list[NewMessage], data: st.DataObject) -> None:
    """A byte that became another, and an end at any place."""
    log = bytearray(log_of(items))
    log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(log[: data.draw(st.integers(0, len(log)))])
    assert_front_of_scan(ordinary_records().entries(cut, 0, 0, 9), cut, 0)


def test_nothing_ordinary_is_left_over() -> None:
    """Records of one append are one run, up to the limit; those of the next append the next run."""
    items = [message(b"x" * n, key=f"k{n}", tag="A" if n % 2 else "") for n in range(9)]
    for n, item in enumerate(items):
        item.store_timestamp = 1000 + n // 6
    data = log_of(items)
    first = ordinary_records().entries(data, 0, 0, 99)
    assert len(first.entries) == 6
    assert len(ordinary_records().entries(data, 0, 0, 4).entries) == 4
    second = ordinary_records().entries(data, first.end, first.end, 99)
    assert (len(second.entries), second.end, second.store_timestamp) == (3, len(data), 1001)


def test_a_record_that_is_not_all_there() -> None:
    """At every byte."""
    data = log_of([message(b"hello", key="k")])
    for cut in range(len(data)):
        assert ordinary_records().entries(data[:cut], 0, 0, 9) == Run([], 0, 0)
    assert len(ordinary_records().entries(data, 0, 0, 9).entries) == 1


@pytest.mark.parametrize(
    "other",
    [
        message(topic=SCHEDULE_TOPIC),
        message(topic="Unknown"),
        message(sys_flag=4),
        message(sys_flag=8),
        message(sys_flag=12),
    ],
)
def test_what_is_not_ordinary_ends_the_run(other: NewMessage) -> None:
    """In front of it, with nothing of it taken."""
    data = log_of([message(), other, message()])
    run = ordinary_records().entries(data, 0, 0, 9)
    assert len(run.entries) == 1
    assert ordinary_records().entries(data, run.end, run.end, 9).entries == []
