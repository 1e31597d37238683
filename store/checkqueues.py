"""Compare consume queues with what the commitlog says, unit by unit.

Owns the units that the log demands, collected per queue like the tails of a broker and compared as bytes in
big steps, so that a hundred million units cost little more than reading them.

A topic that was deleted and made again numbers its messages anew: then only the later numbering has units. So a
difference counts only when the walk is over and the numbering did not begin again behind it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from store.commitlog import Entry
from store.consumequeue import ConsumeQueues
from store.findings import Findings
from store.queue import ConsumeQueue, Unit
from store.queuefiles import BLANK_SIZE, UNIT, UNIT_SIZE, QueueFiles

_MOST_BYTES = 8 << 20
_EXTENDED = -(1 << 31) - 1  # tags codes from here down are addresses in consumequeue_ext
_SYSTEM = ("RMQ_SYS_", "SCHEDULE_TOPIC_")

_pack_unit = UNIT.pack


class _Expected:
    """Units of one queue from ``start`` on that are not compared yet."""

    __slots__ = ("difference", "differences", "first", "last_physical", "next", "start", "units")

    def __init__(self, offset: int) -> None:
        self.begin_at(offset)

    def begin_at(self, offset: int) -> None:
        """The numbering begins (again) here."""
        self.first = self.start = self.next = offset
        self.units = bytearray()
        self.last_physical = -1
        self.difference: tuple[int, Unit, Unit | None] | None = None  # offset, demanded, found
        self.differences = 0


class QueueChecker:
    """Takes the place of ``ConsumeQueues`` under a ``Dispatcher``: every entry is a demand."""

    def __init__(
        self,
        queues: ConsumeQueues,
        files: QueueFiles,
        findings: Findings,
        *,
        extended: bool,
        known: Mapping[tuple[str, int], int] | None,
    ) -> None:
        """``extended``: tags codes may be addresses in consumequeue_ext.

        ``known``: the queues in our own manifest with the offset that each had reached; None without one.
        """
        self._extended = extended
        self._known = known
        self._queues = queues
        self._files = files
        self._findings = findings
        self._expected: dict[tuple[str, int], _Expected] = {}
        self._held = 0
        self.bad: set[tuple[str, int]] = set()  # queues that have to be made again
        self.units = 0

    def put_all(self, entries: Iterable[Entry]) -> None:
        """The log has these records."""
        for topic, queue_id, queue_offset, physical_offset, size, tags_code, _ in entries:
            if queue_offset >= 0:
                self._put(topic, queue_id, queue_offset, physical_offset, size, tags_code)

    def _put(
        self, topic: str, queue_id: int, queue_offset: int, physical_offset: int, size: int, tags_code: int
    ) -> None:
        expected = self._expected.get((topic, queue_id))
        if expected is None:
            expected = self._expected[topic, queue_id] = _Expected(queue_offset)
        elif queue_offset != expected.next:
            self._jump(topic, queue_id, expected, queue_offset)
        expected.units += _pack_unit(physical_offset, size, tags_code)
        expected.next += 1
        expected.last_physical = physical_offset
        self._held += UNIT_SIZE
        if self._held >= _MOST_BYTES:
            self._compare_all()

    def _jump(self, topic: str, queue_id: int, expected: _Expected, queue_offset: int) -> None:
        if queue_offset < expected.next:
            self._held -= len(expected.units)
            expected.begin_at(queue_offset)
            return
        self._compare(topic, queue_id, expected)
        missing = queue_offset - expected.next
        self._findings.note(
            self._files.directory(topic, queue_id),
            f"no record has the {missing} queue offsets from {expected.next} to {queue_offset - 1}",
        )
        expected.start = expected.next = queue_offset

    def _compare_all(self) -> None:
        for (topic, queue_id), expected in self._expected.items():
            if expected.units:
                self._compare(topic, queue_id, expected)

    def _compare(self, topic: str, queue_id: int, expected: _Expected) -> None:
        """Compare what is held with the files, and let go of it."""
        queue = self._queues.queue(topic, queue_id)
        count = len(expected.units) // UNIT_SIZE
        actual = queue.raw(expected.start, count) if queue is not None else b""
        if actual != expected.units:
            self._find_differences(expected, actual)
        self.units += count
        self._held -= len(expected.units)
        expected.start += count
        expected.units = bytearray()

    def _find_differences(self, expected: _Expected, actual: bytes) -> None:
        found = list(UNIT.iter_unpack(actual))
        for index, demanded in enumerate(UNIT.iter_unpack(expected.units)):
            unit = found[index] if index < len(found) else None
            if unit == demanded:
                continue
            if unit is not None and unit[:2] == demanded[:2] and self._extended and unit[2] <= _EXTENDED:
                continue
            expected.differences += 1
            if expected.difference is None:
                expected.difference = (expected.start + index, demanded, unit)

    def finish(self, log_begin: int, log_end: int, aborted: bool, topics: Container[str] | None) -> None:
        """The walk is over. ``topics``: the configured ones, None if unknown; ``aborted``: the broker was killed."""
        self._compare_all()
        for (topic, queue_id), expected in self._expected.items():
            queue = self._queues.queue(topic, queue_id)
            if queue is None:
                self._missing(topic, queue_id, expected, topics)
                continue
            if expected.difference is not None:
                self._report(queue, expected, aborted)
            self._look_behind(queue, expected, log_end, aborted)
            self._look_before(queue, expected, log_begin)
        for queue in self._queues:
            if queue.name not in self._expected and queue.max_physical_end > log_begin:
                self._damage(queue, queue.max_offset - 1, "no record of the log belongs to this queue")
        for name, reached in (self._known or {}).items():
            if reached and name not in self._expected and self._queues.queue(*name) is None:
                self.bad.add(name)
                directory = self._files.directory(*name)
                self._findings.damage(
                    directory, f"missing; its messages are deleted, and it had reached offset {reached}"
                )

    def _damage(self, queue: ConsumeQueue, offset: int, text: str) -> None:
        self.bad.add(queue.name)
        position = offset * UNIT_SIZE
        base = self._files.base_of(position)
        path = self._files.path(queue.topic, queue.queue_id, base)
        self._findings.damage(path, f"queue offset {offset}: {text}", position - base)

    def _missing(self, topic: str, queue_id: int, expected: _Expected, topics: Container[str] | None) -> None:
        directory = self._files.directory(topic, queue_id)
        count = expected.next - expected.first
        configured = topics is None or topic in topics or topic.startswith(_SYSTEM)
        if not configured or (self._known is not None and (topic, queue_id) not in self._known):
            why = "it was deleted" if configured else "the topic is not configured"
            self._findings.note(directory, f"missing, as {why}; the log has {count} messages of this queue")
            return
        self.bad.add((topic, queue_id))
        self._findings.damage(directory, f"missing; the log has {count} messages of this queue")

    def _report(self, queue: ConsumeQueue, expected: _Expected, aborted: bool) -> None:
        assert expected.difference is not None
        offset, demanded, found = expected.difference
        more = f" ({expected.differences - 1} more units differ)" if expected.differences > 1 else ""
        if offset >= queue.max_offset:
            count = expected.next - offset
            if aborted:
                directory = self._files.directory(queue.topic, queue.queue_id)
                self._findings.note(directory, f"ends {count} messages before the log; the next start adds them")
            else:
                self._damage(queue, offset, f"the queue ends here, {count} messages before the log")
            return
        if found is None:
            text = "there is no unit"
        elif found == (0, BLANK_SIZE, 0):
            text = "a blank stands here"
        elif found[:2] == demanded[:2]:
            text = f"the tags code is {found[2]}, the record's is {demanded[2]}"
        else:
            text = f"it says {found[1]} bytes at log offset {found[0]}, the record has {demanded[1]} at {demanded[0]}"
        self._damage(queue, offset, text + more)

    def _look_behind(self, queue: ConsumeQueue, expected: _Expected, log_end: int, aborted: bool) -> None:
        """Units that the log has no record for."""
        extra = queue.max_offset - expected.next
        unit = queue.unit(expected.next) if extra > 0 else None
        if extra <= 0:
            return
        where = "behind the end of the log" if unit is not None and unit[0] >= log_end else "to nothing"
        text = f"{extra} units from here on point {where}"
        if aborted and unit is not None and unit[0] >= log_end:
            directory = self._files.directory(queue.topic, queue.queue_id)
            self._findings.note(directory, f"{text}; the next start removes them")
        else:
            self._damage(queue, expected.next, text)

    def _look_before(self, queue: ConsumeQueue, expected: _Expected, log_begin: int) -> None:
        """Units of deleted records must point below the log."""
        unit = queue.unit(expected.first - 1) if expected.first > 0 else None
        if unit is not None and unit[1] != BLANK_SIZE and unit[0] >= log_begin:
            self._damage(queue, expected.first - 1, f"it points to log offset {unit[0]}, where no such record is")
