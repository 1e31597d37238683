"""From the log to what is derived from it: consume queues, key index, and word of each arrival.

Owns ``dispatched_offset``: below it every record is in its consume queue and in the index.

Two ways lead there and must give the same bytes. Messages of this broker are handed over from memory, at once or
(SYNC_FLUSH) when they are flushed. Everything else (a slave's log, recovery, what memory could not hold) is read
back from the log: ordinary records in runs (``store.replay``), all others by ``Scanner``. Putting a record twice
changes nothing, so a step that failed is simply repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from protocol.message import TRANSACTION_MASK, TRANSACTION_ROLLBACK
from store.commitlog import NUMBERED, Entry
from store.replay import OrdinaryRecords, keys_and_tags_code
from store.scan import ReadLog, Record, Scanner, Stop, find_record

log = structlog.get_logger(__name__)

SCHEDULE_TOPIC: Final = "SCHEDULE_TOPIC_XXXX"
_UNKNOWN_LEVEL_MS: Final = 1000
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
MAX_LEVEL_DIGITS: Final = 10  # of an int32; a level is text that somebody sent
LONGEST: Final = 64 << 20  # a record that claims to end so far behind is not one that is still arriving
CATCH_UP: Final = 512
REPLAY_BYTES: Final = 256 << 10  # read at once; longer records are the scanner's
MAX_HELD: Final = 65_536  # entries of unflushed messages that are kept in memory


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A message that consumers can see from now on."""

    topic: str
    queue_id: int
    queue_offset: int
    tags_code: int
    store_timestamp: int
    physical_offset: int
    size: int


class Mark(NamedTuple):
    """A place between two records: all that lies in front of it is dispatched."""

    offset: int
    last_record: int  # where the record in front of it begins, -1 if there is none
    timestamp: int  # its store time in ms


class DelayLevels:
    """The meaning of DELAY = 1, 2, … (key messageDelayLevel)."""

    def __init__(self, text: str) -> None:
        self.delays_ms = tuple(int(part[:-1]) * _UNIT_MS[part[-1]] for part in text.split())

    @property
    def highest(self) -> int:
        return len(self.delays_ms)

    def delay_ms(self, level: int) -> int:
        """The delay of a level; above the highest it is the highest's. Level 0 and below: 1 s, as official."""
        if level < 1:
            return _UNKNOWN_LEVEL_MS
        return self.delays_ms[min(level, self.highest) - 1]

    def due_code(self, properties: bytes, store_timestamp: int) -> int | None:
        """What the consume queue of the schedule topic holds instead of the tags' hash: the time of delivery in ms.

        None if the properties name no level above 0 (CommitLog.checkMessageAndReturnSize).
        """
        for pair in properties.split(b"\x02"):
            name, _, value = pair.partition(b"\x01")
            if name == b"DELAY" and value.isdigit() and len(value) <= MAX_LEVEL_DIGITS and int(value) > 0:
                return store_timestamp + self.delay_ms(int(value))
        return None


class Queues(Protocol):
    """What dispatch needs of the consume queues."""

    def put_all(self, entries: Iterable[Entry]) -> None:
        """Add records to their queues, in the order of the log; those without a queue offset have none."""


class Index(Protocol):
    """What dispatch needs of the key index."""

    def put_all(self, entries: Sequence[Entry], store_timestamp: int) -> None:
        """Index records under their keys, in the order of the log."""


_STORE_TIMESTAMP: Final = attrgetter("store_timestamp")


def derive(record: Record, topic: str, delays: DelayLevels) -> Entry:
    """The entry of a record read back from the log."""
    keys, code = keys_and_tags_code("\x02" + record.properties.decode("utf-8", "replace"))
    if topic == SCHEDULE_TOPIC:
        due_code = delays.due_code(record.properties, record.store_timestamp)
        code = code if due_code is None else due_code
    queue_offset = record.queue_offset
    kind = record.sys_flag & TRANSACTION_MASK
    if kind:
        if kind not in NUMBERED:
            queue_offset = -1
        if kind == TRANSACTION_ROLLBACK:
            keys = ()
    return topic, record.queue_id, queue_offset, record.physical_offset, record.size, code, keys


class Arrivals:
    """What one step has dispatched. The arrivals are made when somebody looks at them, which few slaves have to."""

    __slots__ = ("_runs", "count")

    def __init__(self) -> None:
        self.count = 0  # of records, also of those that no consumer can see
        self._runs: list[tuple[Sequence[Entry], int]] = []

    def add(self, entries: Sequence[Entry], store_timestamp: int) -> None:
        """These were dispatched, too."""
        self._runs.append((entries, store_timestamp))
        self.count += len(entries)

    @property
    def size(self) -> int:
        """Bytes of all of them in the log."""
        return sum([entry[4] for entries, _ in self._runs for entry in entries])

    @property
    def topics(self) -> set[str]:
        """Of those that consumers can see."""
        return {entry[0] for entries, _ in self._runs for entry in entries if entry[2] >= 0}

    def __bool__(self) -> bool:
        return self.count > 0

    def __iter__(self) -> Iterator[Arrival]:
        for entries, store_timestamp in self._runs:
            for topic, queue_id, queue_offset, physical_offset, size, code, _ in entries:
                if queue_offset >= 0:
                    yield Arrival(topic, queue_id, queue_offset, code, store_timestamp, physical_offset, size)


class Dispatcher:
    """Feeds the derived files of one store."""

    def __init__(self, queues: Queues, index: Index | None, delays: DelayLevels, read: ReadLog, file_size: int) -> None:
        self.dispatched_offset = 0
        self._last_record = -1
        self._last_timestamp = 0
        self.damaged: Callable[[Stop, int | None], None] = lambda stop, good: None
        self._queues = queues
        self._index = index
        self._delays = delays
        self._read = read
        self._file_size = file_size
        # (begin, end, store timestamp, entries) of appends that are not dispatched yet
        self._held: deque[tuple[int, int, int, list[Entry]]] = deque()
        self._held_count = 0
        self._ordinary = OrdinaryRecords()

    @property
    def mark(self) -> Mark:
        """Where dispatch stands."""
        return Mark(self.dispatched_offset, self._last_record, self._last_timestamp)

    def put(self, entries: Sequence[Entry], store_timestamp: int) -> None:
        """Entries in the order of the log. StoreError if a derived file cannot be read or written."""
        self._queues.put_all(entries)
        if self._index is not None:
            self._index.put_all(entries, store_timestamp)

    def put_appended(self, begin: int, end: int, entries: list[Entry], store_timestamp: int) -> None:
        """Messages that were just appended and may be seen at once. If that fails, a later ``step`` repeats it."""
        if begin == self.dispatched_offset:
            self.put(entries, store_timestamp)
            self._reach(end, entries, store_timestamp)
        else:  # an earlier put failed: catch up from the log
            self.step(max(len(entries), CATCH_UP), end)

    def _reach(self, end: int, entries: list[Entry], store_timestamp: int) -> None:
        self.dispatched_offset = end
        if entries:
            self._last_record = entries[-1][3]
            self._last_timestamp = store_timestamp

    def hold(self, begin: int, end: int, entries: list[Entry], store_timestamp: int) -> None:
        """Messages that were just appended and may be seen once they are flushed."""
        if self._held_count < MAX_HELD:
            self._held.append((begin, end, store_timestamp, entries))
            self._held_count += len(entries)

    def step(self, limit: int, until: int) -> Arrivals:
        """Dispatch about ``limit`` further records below ``until``; false when there are none."""
        held = self._held
        while held and held[0][0] < self.dispatched_offset:
            self._held_count -= len(held.popleft()[3])
        arrivals = Arrivals()
        while arrivals.count < limit and self.dispatched_offset < until:
            if held and held[0][0] == self.dispatched_offset:
                _, end, store_timestamp, entries = held[0]
                if end > until:
                    break
                self.put(entries, store_timestamp)
                held.popleft()
                self._held_count -= len(entries)
                arrivals.add(entries, store_timestamp)
                self._reach(end, entries, store_timestamp)
            else:
                scan_until = min(until, held[0][0]) if held else until
                room = limit - arrivals.count
                if not self._replay_step(room, scan_until, arrivals) and not self._scan_step(
                    room, scan_until, arrivals
                ):
                    break
        return arrivals

    def _replay_step(self, limit: int, until: int, arrivals: Arrivals) -> bool:
        """HOT. Dispatch ordinary records from the log. False: what comes next is none, or is not all there."""
        begin = self.dispatched_offset
        data = self._read(begin, min(REPLAY_BYTES, until - begin))
        position = 0
        while limit > 0:
            run = self._ordinary.entries(data, position, begin + position, limit)
            if not run.entries:
                break
            self.put(run.entries, run.store_timestamp)
            arrivals.add(run.entries, run.store_timestamp)
            self._reach(begin + run.end, run.entries, run.store_timestamp)
            position = run.end
            limit -= len(run.entries)
        return position > 0

    def _scan_step(self, limit: int, until: int, arrivals: Arrivals) -> bool:
        """Dispatch from the log whatever is there. False: nothing more can be read for now."""
        scanner = Scanner(self._read, self._file_size, self.dispatched_offset, until=until, check_crc=False)
        records = scanner.next_records(limit)
        for store_timestamp, together in groupby(records, _STORE_TIMESTAMP):
            entries = [derive(record, self._topic(record.topic), self._delays) for record in together]
            self.put(entries, store_timestamp)
            arrivals.add(entries, store_timestamp)
        if records:
            self._last_record = records[-1].physical_offset
            self._last_timestamp = records[-1].store_timestamp
        progress = scanner.offset > self.dispatched_offset
        self.dispatched_offset = scanner.offset
        stop = scanner.stop
        if (
            stop is not None
            and stop.offset < until
            and (stop.reason or until - stop.offset > LONGEST or not self._read(stop.offset, 1))
        ):
            good = find_record(self._read, self._file_size, stop.offset + 1, until)
            self.damaged(stop, good)
            if good is not None and good > self.dispatched_offset:
                self.dispatched_offset = good
                return True
        return progress

    def put_record(self, record: Record, *, queues: bool = True) -> Entry:
        """Put one record that was read from the log, into the index only if so asked; returns its entry."""
        entry = derive(record, self._topic(record.topic), self._delays)
        self.put((entry if queues else (*entry[:2], -1, *entry[3:]),), record.store_timestamp)
        return entry

    def _topic(self, name: bytes) -> str:
        topics = self._ordinary.topics
        topic = topics.get(name)
        if topic is None:
            topic = name.decode("utf-8", "replace")
            if topic != SCHEDULE_TOPIC:
                if len(topics) >= MAX_HELD:
                    topics.clear()
                topics[name] = topic
        return topic

    def restart_at(self, mark: Mark) -> None:
        """Everything below the mark is dispatched; nothing is held."""
        self._held.clear()
        self._held_count = 0
        self.dispatched_offset, self._last_record, self._last_timestamp = mark
