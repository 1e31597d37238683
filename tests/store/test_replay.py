"""Runs of ordinary records: what the scanner and `derive` make of the same bytes, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.message import BORN_HOST_V6, STORE_HOST_V6, NewMessage, encode_record
from store.commitlog import Entry
from store.dispatch import SCHEDULE_TOPIC, DelayLevels, derive
from store.options import DELAY_LEVELS
from store.replay import Run, ordinary_entries
from store.scan import Scanner
from tests.store.making import message

DELAYS = DelayLevels(DELAY_LEVELS)
FILE = 1 << 20
TOPICS = {b"T": "T", b"Other": "Other"}


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
    return [(derive(record, record.topic.decode(), DELAYS), record.store_timestamp) for record in records]


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
    position = 0
    while (run := ordinary_entries(data, position, start + position, limit, TOPICS)).entries:
        assert len(run.entries) <= limit
        assert_front_of_scan(run, data, start, position)
        position = run.end
    assert run == Run([], position, 0)


@given(st.lists(messages(), min_size=1, max_size=4), st.data())
def test_damage_is_left_to_the_scanner(items: list[NewMessage], data: st.DataObject) -> None:
    """A byte that became another, and an end at any place."""
    log = bytearray(log_of(items))
    log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(log[: data.draw(st.integers(0, len(log)))])
    assert_front_of_scan(ordinary_entries(cut, 0, 0, 9, TOPICS), cut, 0)


def test_nothing_ordinary_is_left_over() -> None:
    """Records of one append are one run, up to the limit; those of the next append the next run."""
    items = [message(b"x" * n, key=f"k{n}", tag="A" if n % 2 else "") for n in range(9)]
    for n, item in enumerate(items):
        item.store_timestamp = 1000 + n // 6
    data = log_of(items)
    first = ordinary_entries(data, 0, 0, 99, TOPICS)
    assert len(first.entries) == 6
    assert len(ordinary_entries(data, 0, 0, 4, TOPICS).entries) == 4
    second = ordinary_entries(data, first.end, first.end, 99, TOPICS)
    assert (len(second.entries), second.end, second.store_timestamp) == (3, len(data), 1001)


def test_a_record_that_is_not_all_there() -> None:
    """At every byte."""
    data = log_of([message(b"hello", key="k")])
    for cut in range(len(data)):
        assert ordinary_entries(data[:cut], 0, 0, 9, TOPICS) == Run([], 0, 0)
    assert len(ordinary_entries(data, 0, 0, 9, TOPICS).entries) == 1


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
    run = ordinary_entries(data, 0, 0, 9, TOPICS)
    assert len(run.entries) == 1
    assert ordinary_entries(data, run.end, run.end, 9, TOPICS).entries == []
