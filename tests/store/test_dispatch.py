"""From the log to entries: memory and scan agree, and only what may be seen is dispatched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.message import TRANSACTION_PREPARED, NewMessage, format_properties, java_hash, parse_properties
from store.commitlog import CommitLog, Entry
from store.dispatch import MAX_HELD, SCHEDULE_TOPIC, Arrival, DelayLevels, Dispatcher, Mark, derive
from store.errors import StoreError
from store.files import FileSystem
from store.options import DELAY_LEVELS
from store.scan import Record
from tests.store.making import message

DELAYS = DelayLevels(DELAY_LEVELS)
Put = tuple[Any, ...]


class Recorder:
    """Queues and index that write down what they get."""

    def __init__(self) -> None:
        self.units: list[Put] = []
        self.keys: list[Put] = []
        self.fail = False

    class _Keys:
        def __init__(self, keys: list[Put]) -> None:
            self._keys = keys

        def put_all(self, entries: Iterable[Entry], store_timestamp: int) -> None:
            self._keys += [(entry[0], entry[6], entry[3], store_timestamp) for entry in entries if entry[6]]

    @property
    def index(self) -> _Keys:
        return self._Keys(self.keys)

    def put_all(self, entries: Iterable[Entry]) -> None:
        if self.fail:
            raise StoreError("cannot be written")
        self.units += [entry[:6] for entry in entries if entry[2] >= 0]


class Bench:
    """A log with a dispatcher on it."""

    def __init__(self, path: Path) -> None:
        self.log = CommitLog(
            str(path),
            4096,
            FileSystem(),
            first_queue_offset=lambda topic, queue_id: 0,
            tags_codes={SCHEDULE_TOPIC: DELAYS.due_code},
        )
        self.seen = Recorder()
        self.dispatcher = self.make(self.seen)

    def make(self, recorder: Recorder) -> Dispatcher:
        return Dispatcher(recorder, recorder.index, DELAYS, self.log.read_or_nothing, 4096)

    def append(self, *messages: NewMessage, now: int = 5000) -> tuple[int, int]:
        begin = self.log.end_offset
        entries = self.log.append(messages, now)
        self.dispatcher.hold(begin, self.log.end_offset, entries, now)
        return begin, self.log.end_offset


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def keyed(unique_key: str, keys: str, **changes: Any) -> NewMessage:
    """A message as the gateway hands it over: key text and index keys say the same."""
    pairs = {"UNIQ_KEY": unique_key, "KEYS": keys, "TAGS": changes.pop("tag", "")} | changes.pop("pairs", {})
    text = format_properties({name: value for name, value in pairs.items() if value})
    tokens = tuple(key for key in (unique_key, *keys.split(" ")) if key)
    tags = pairs["TAGS"]
    return message(properties=text.encode(), keys=tokens, tags_code=java_hash(tags) if tags else 0, **changes)


VARIETY = [
    keyed("U1", "", tag="A"),
    keyed("", "a b  c", topic="Other", queue_id=3),
    keyed("U2", "x", topic=SCHEDULE_TOPIC, queue_id=2, pairs={"DELAY": "3"}),
    keyed("U3", "", topic=SCHEDULE_TOPIC, pairs={"DELAY": "99"}),
    keyed("U4", "", topic=SCHEDULE_TOPIC, pairs={"DELAY": "0"}, tag="B"),
    keyed("U5", "k", sys_flag=8),
    keyed("U6", "k", sys_flag=4),
    keyed("ümläut", "ключ", tag="标签"),
    message(),
]


def test_only_what_consumers_can_see_arrives(bench: Bench) -> None:
    """A step counts every record; a half message is no arrival, nor does its topic count as seen."""
    bench.append(message(topic="Half", sys_flag=TRANSACTION_PREPARED))
    bench.append(message(topic="T"))
    arrivals = bench.dispatcher.step(10, bench.log.end_offset)
    assert arrivals.count == 2
    assert [(arrival.topic, arrival.queue_offset) for arrival in arrivals] == [("T", 0)]
    assert arrivals.topics == {"T"}


def test_memory_and_scan_give_the_same(bench: Bench) -> None:
    """Byte for byte the same units and keys, whether handed over or read back."""
    for item in VARIETY * 10:
        bench.append(item)
    end = bench.log.end_offset
    from_memory: list[Arrival] = []
    while arrivals := bench.dispatcher.step(4, end):
        from_memory += arrivals
    scanned = Recorder()
    other = bench.make(scanned)
    from_log: list[Arrival] = []
    while arrivals := other.step(4, end):
        from_log += arrivals
    assert scanned.units == bench.seen.units
    assert scanned.keys == bench.seen.keys
    assert from_log == from_memory
    assert len(from_log) == 10 * (len(VARIETY) - 1)  # the prepared one has no place in a queue
    assert other.mark == bench.dispatcher.mark
    assert other.mark.offset == end


def test_rollback_is_in_neither(bench: Bench) -> None:
    """A prepared record is indexed, a rolled back one is not."""
    bench.append(keyed("P", "", sys_flag=4), keyed("C", "", sys_flag=8))
    recorder = Recorder()
    dispatcher = bench.make(recorder)
    dispatcher.step(10, bench.log.end_offset)
    assert [keys for _, keys, _, _ in recorder.keys] == [("P",), ("C",)]
    entry = derive(Record(0, 100, 0, 0, 12, 1, b"T", b"UNIQ_KEY\x01R"), "T", DELAYS)
    assert (entry[2], entry[6]) == (-1, ())


def test_nothing_above_the_limit_is_seen(bench: Bench) -> None:
    """Under SYNC_FLUSH dispatch ends in front of what is not flushed."""
    ends = [bench.append(message())[1] for _ in range(5)]
    assert not bench.dispatcher.step(100, ends[0] - 1)
    assert bench.dispatcher.step(100, ends[2]).count == 3
    assert bench.dispatcher.dispatched_offset == ends[2]
    assert not bench.dispatcher.step(100, ends[2])
    assert bench.dispatcher.step(100, ends[4]).count == 2


def test_steps_are_bounded(bench: Bench) -> None:
    """A step ends after about so many records, from memory and from the log."""
    for _ in range(30):
        bench.append(message())
    assert bench.dispatcher.step(7, bench.log.end_offset).count == 7
    other = bench.make(Recorder())
    assert other.step(7, bench.log.end_offset).count == 7


def test_appended_messages_are_seen_at_once(bench: Bench) -> None:
    """ASYNC_FLUSH: without holding them."""
    for _ in range(3):
        begin = bench.log.end_offset
        entries = bench.log.append([message()], 1)
        bench.dispatcher.put_appended(begin, bench.log.end_offset, entries, 1)
        assert bench.dispatcher.dispatched_offset == bench.log.end_offset
    assert [unit[2] for unit in bench.seen.units] == [0, 1, 2]


def test_a_failed_put_is_repeated_from_the_log(bench: Bench) -> None:
    """Messages stay stored; a later step gives them their place, in order."""
    bench.seen.fail = True
    begin = bench.log.end_offset
    entries = bench.log.append([message(), message()], 1)
    with pytest.raises(StoreError):
        bench.dispatcher.put_appended(begin, bench.log.end_offset, entries, 1)
    bench.seen.fail = False
    middle = bench.log.end_offset
    entries = bench.log.append([message()], 1)
    bench.dispatcher.put_appended(middle, bench.log.end_offset, entries, 1)
    assert bench.dispatcher.dispatched_offset == bench.log.end_offset
    assert [unit[2] for unit in bench.seen.units] == [0, 1, 2]


def test_memory_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not held any more is read back from the log."""
    assert MAX_HELD <= 100_000
    monkeypatch.setattr("store.dispatch.MAX_HELD", 3)
    for _ in range(10):
        bench.append(message())
    assert bench.dispatcher._held_count == 3
    assert bench.dispatcher.step(2, bench.log.end_offset).count == 2
    bench.append(message())
    found: list[Arrival] = []
    while arrivals := bench.dispatcher.step(100, bench.log.end_offset):
        found += arrivals
    assert [unit[2] for unit in bench.seen.units] == list(range(11))
    assert len(found) == 9


def test_a_torn_frame_waits_for_its_rest(tmp_path: Path) -> None:
    """A slave gets records in pieces: no damage, no loss."""
    master = Bench(tmp_path / "m")
    (tmp_path / "m").mkdir()
    for number in range(30):
        master.append(message(b"%d" % number * 40))
    (tmp_path / "s").mkdir()
    slave = Bench(tmp_path / "s")
    told: list[Any] = []
    slave.dispatcher.damaged = lambda stop, good: told.append(stop)
    offset = 0
    found: list[Arrival] = []
    while offset < master.log.end_offset:
        offset = slave.log.append_raw(offset, master.log.read(offset, 37))
        found += slave.dispatcher.step(100, slave.log.end_offset)
    assert [arrival.queue_offset for arrival in found] == list(range(30))
    assert told == []


def test_dispatch_goes_on_behind_damage(bench: Bench) -> None:
    """The place is told, with where it goes on."""
    places = [bench.append(message(b"x" * 50)) for _ in range(4)]
    path = Path(bench.log.path(0))
    data = bytearray(path.read_bytes())
    data[places[1][0]] = 0xFF
    path.write_bytes(data)
    told: list[Any] = []
    other = bench.make(Recorder())
    other.damaged = lambda stop, good: told.append((stop.offset, good))
    found: list[Arrival] = []
    while arrivals := other.step(100, bench.log.end_offset):
        found += arrivals
    assert [arrival.queue_offset for arrival in found] == [0, 2, 3]
    assert told == [(places[1][0], places[2][0])]


def test_restarting(bench: Bench) -> None:
    """Recovery says where dispatch goes on."""
    places = [bench.append(message()) for _ in range(3)]
    bench.dispatcher.restart_at(Mark(places[0][1], 0, 5000))
    assert bench.dispatcher.step(10, bench.log.end_offset).count == 2
    assert bench.dispatcher.mark == Mark(places[2][1], places[2][0], 5000)


names = st.sampled_from(["TAGS", "UNIQ_KEY", "KEYS", "XTAGS", "TAGSX", "", "A"])
values = st.sampled_from(["", "a", "b c", "x\x01y", "TAGS"])


@given(st.lists(st.tuples(names, values), max_size=6), st.booleans())
def test_properties_are_read_as_the_parser_reads_them(pairs: list[tuple[str, str]], closed: bool) -> None:
    """Whatever order, repeated names, empty halves and separators."""
    text = "\x02".join(f"{name}\x01{value}" for name, value in pairs) + "\x02" * closed
    expected = parse_properties(text)
    entry = derive(Record(0, 100, 0, 0, 0, 1, b"T", text.encode()), "T", DELAYS)
    tags = expected.get("TAGS")
    assert entry[5] == (java_hash(tags) if tags else 0)
    keys = [expected.get("UNIQ_KEY", ""), *expected.get("KEYS", "").split(" ")]
    assert entry[6] == tuple(key for key in keys if key)


@pytest.mark.parametrize(
    ("level", "delay"), [(1, 1000), (2, 5000), (18, 7_200_000), (19, 7_200_000), (0, 1000), (-1, 1000)]
)
def test_delay_levels(level: int, delay: int) -> None:
    """The official default levels; above the highest it is the highest."""
    assert DELAYS.delay_ms(level) == delay
    assert DelayLevels("1d").delay_ms(1) == 86_400_000


@given(st.binary(max_size=60))
def test_due_code_survives_any_properties(properties: bytes) -> None:
    """Whatever bytes a client put there."""
    code = DELAYS.due_code(properties, 1000)
    assert code is None or code >= 2000
