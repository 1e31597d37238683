"""Find the record that a damaged consume queue unit should name, and put the unit right.

Owns the search. Recovery does not read every unit of every queue; so a unit that was zeroed or garbled on disk may
show only when somebody pulls it. The record is still in the log, behind the record of the unit before it. It is
searched there (in a thread, as it may read a lot), served at once, and the units found on the way are written to the
queue later, by the thread that owns the queues.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

import structlog

from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.dispatch import DelayLevels, derive
from store.queue import ConsumeQueue, Unit
from store.queuefiles import BLANK_SIZE
from store.scan import Record, Scanner, walk

log = structlog.get_logger(__name__)

MAX_KNOWN: Final = 65_536
MAX_STEP: Final = 1 << 30  # bytes of log that one search may read
_BACK_STEP: Final = 4096


class Healer:
    """The search for one store. ``find`` may be called from any thread, ``apply`` from the owner of the queues."""

    def __init__(self, commit_log: CommitLog, queues: ConsumeQueues, delays: DelayLevels) -> None:
        self._log = commit_log
        self._queues = queues
        self._delays = delays
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int, int], Unit | None] = {}
        self._found: deque[tuple[str, int, int, Unit]] = deque()

    def known(self, queue: ConsumeQueue, offset: int) -> tuple[bool, Unit | None]:
        """Whether the place was searched before, and what was found."""
        key = (*queue.name, offset)
        return key in self._known, self._known.get(key)

    def find(self, queue: ConsumeQueue, offset: int) -> Unit | None:
        """The right unit for a queue offset, None if its record is lost."""
        with self._lock:
            searched, unit = self.known(queue, offset)
            if searched:
                return unit
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            begin = self._end_of_good_record(queue, offset)
            self._search(queue, offset, begin)
            return self._known.setdefault((*queue.name, offset), None)

    def _end_of_good_record(self, queue: ConsumeQueue, offset: int) -> int:
        """The end of the last record in front of ``offset`` that its unit names rightly."""
        at = offset
        while at > queue.min_offset:
            begin = max(queue.min_offset, at - _BACK_STEP)
            units = queue.slice(begin, at - begin)
            for index in range(len(units) - 1, -1, -1):
                physical, size, _ = self._known.get((*queue.name, begin + index)) or units[index]
                if size != BLANK_SIZE and self._names(queue, begin + index, physical, size):
                    return physical + size
            at = begin
        return self._log.start_offset

    def _names(self, queue: ConsumeQueue, offset: int, physical: int, size: int) -> bool:
        if not self._log.start_offset <= physical < self._log.end_offset or size <= 0:
            return False
        scanner = Scanner(self._log.read_or_nothing, self._log.file_size, physical, check_crc=False)
        records = scanner.next_records(1)
        return (
            bool(records)
            and (records[0].physical_offset, records[0].size) == (physical, size)
            and (_is_of(records[0], queue) and records[0].queue_offset == offset)
        )

    def _search(self, queue: ConsumeQueue, offset: int, begin: int) -> None:
        """Learn every unit of the queue from ``begin`` to ``offset``."""
        until = min(self._log.end_offset, begin + MAX_STEP)
        for records in walk(
            self._log.read_or_nothing, self._log.file_size, begin, until, lambda begin, end, reason: None
        ):
            for record in records:
                if not _is_of(record, queue):
                    continue
                if record.queue_offset > offset or len(self._known) >= MAX_KNOWN:
                    return
                entry = derive(record, queue.topic, self._delays)
                unit = (record.physical_offset, record.size, entry[5])
                self._known[(*queue.name, record.queue_offset)] = unit
                self._found.append((*queue.name, record.queue_offset, unit))
                if record.queue_offset == offset:
                    return

    def forget(self) -> None:
        """Queues were deleted: what was found may be about others of the same name."""
        with self._lock:
            self._known.clear()
            self._found.clear()

    def apply(self, limit: int = 512) -> None:
        """Write units that were found into their queues. StoreError if that fails."""
        for _ in range(min(limit, len(self._found))):
            topic, queue_id, offset, unit = self._found[0]
            queue = self._queues.queue(topic, queue_id)
            if queue is not None and queue.min_offset <= offset < queue.max_offset and queue.unit(offset) != unit:
                self._queues.mend(queue, offset, *unit)
                log.warning("consume_queue_unit_mended", topic=topic, queue_id=queue_id, queue_offset=offset)
            self._found.popleft()


def _is_of(record: Record, queue: ConsumeQueue) -> bool:
    return record.queue_id == queue.queue_id and record.topic == queue.topic.encode()
