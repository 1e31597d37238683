"""One consume queue: its ends, its units in memory and in files, and searching in it.

Owns the state of a queue and everything that only reads. ``ConsumeQueues`` makes queues and changes them. Reading
(``raw``, ``slice``, ``unit``) is safe in any thread beside the writer: a unit leaves memory only when it is in a
file, and the tail is replaced, never reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from store.queuefiles import BLANK_SIZE, UNIT, UNIT_SIZE, QueueFiles
from store.queueload import EMPTY, QueueExtent, is_unit

Unit = tuple[int, int, int]  # physical offset, size, tags code
Boundary = Literal["NEAREST", "LOWER", "UPPER"]


class Tail:
    """Units from ``start`` (a unit number) on that are not in files yet."""

    __slots__ = ("start", "units")

    def __init__(self, start: int) -> None:
        self.start = start
        self.units = bytearray()


class ConsumeQueue:
    """One queue. Offsets are unit numbers: min_offset ≤ offset < max_offset. Made by ConsumeQueues only."""

    __slots__ = ("_files", "max_offset", "max_physical_end", "min_offset", "queue_id", "tail", "topic")

    def __init__(self, files: QueueFiles, topic: str, queue_id: int, extent: QueueExtent = EMPTY) -> None:
        self._files = files
        self.topic = topic
        self.queue_id = queue_id
        self.min_offset, self.max_offset, self.max_physical_end = extent
        self.tail: Tail | None = None

    def __repr__(self) -> str:
        return f"<ConsumeQueue {self.topic}-{self.queue_id} {self.min_offset}..{self.max_offset}>"

    @property
    def name(self) -> tuple[str, int]:
        return self.topic, self.queue_id

    def raw(self, offset: int, count: int, *, nowait: bool = False) -> bytes:
        """Up to ``count`` whole units from ``offset`` as bytes; fewer at the end, none outside the queue.

        Any thread. ``nowait``: ColdRead instead of waiting for the disk. StoreError if reading fails.
        """
        count = min(count, self.max_offset - offset)  # taken before the tail: what leaves a tail is in files by then
        tail = self.tail
        if count <= 0 or offset < 0:
            return b""
        if tail is None:
            data = self._files.read(self.topic, self.queue_id, offset * UNIT_SIZE, count * UNIT_SIZE, nowait=nowait)
            return data if len(data) % UNIT_SIZE == 0 else data[: -(len(data) % UNIT_SIZE)]
        begin = (offset - tail.start) * UNIT_SIZE
        if begin >= 0:
            # Sliced, never viewed: a bytearray with a view on it cannot grow, and put must not fail.
            return bytes(tail.units[begin : begin + count * UNIT_SIZE])
        in_files = min(-begin, count * UNIT_SIZE)
        data = self._files.read(self.topic, self.queue_id, offset * UNIT_SIZE, in_files, nowait=nowait)
        if len(data) < in_files:
            return data[: len(data) - len(data) % UNIT_SIZE]
        return data + tail.units[: count * UNIT_SIZE - in_files]

    def slice(self, offset: int, count: int, *, nowait: bool = False) -> list[Unit]:
        """As ``raw``, unpacked. A unit (0, BLANK_SIZE, 0) stands for no message: skip it."""
        return list(UNIT.iter_unpack(self.raw(offset, count, nowait=nowait)))

    def unit(self, offset: int) -> Unit | None:
        """One unit; None outside the queue, where the file is missing, and for a place that was never written."""
        data = self.raw(offset, 1)
        return UNIT.unpack(data) if is_unit(data) else None

    def correct_min(self, commitlog_min: int) -> int:
        """Move ``min_offset`` up to the first unit that still has its record; returns it.

        As in 5.x it becomes ``max_offset`` when no record is left (4.9.4 leaves it behind then, and a consumer
        would walk through units of deleted records).
        """
        first = self.unit(self.min_offset)
        if first is None or first[0] < commitlog_min or first[1] == BLANK_SIZE:
            self.min_offset = self._first_at(commitlog_min)
        return self.min_offset

    def _first_at(self, physical_offset: int) -> int:
        """The first unit whose record begins at or behind the offset; ``max_offset`` if there is none."""
        low, high = self.min_offset, self.max_offset
        while low < high:
            middle = (low + high) // 2
            at = self._after_blanks(middle, high)
            unit = self.unit(at) if at < high else None
            if unit is not None and unit[0] < physical_offset:
                low = at + 1
            else:
                high = middle
        return self._after_blanks(low, self.max_offset)

    def _after_blanks(self, offset: int, end: int) -> int:
        while offset < end:
            units = self.slice(offset, min(1024, end - offset))
            for unit in units:
                if unit[1] != BLANK_SIZE:
                    return offset
                offset += 1
            if not units:
                return offset
        return offset

    def offset_by_time(
        self,
        timestamp: int,
        store_time_of: Callable[[int, int], int],
        boundary: Boundary = "NEAREST",
    ) -> int:
        """Queue offset for a store time in ms, by binary search.

        ``store_time_of(physical_offset, size)`` gives a record's store time, negative if it is unreadable; the
        answer is 0 then, as the official broker answers. NEAREST is what 4.x does: an exact hit, else the nearer
        neighbour, ties to the left. LOWER and UPPER are 5.x's boundaryType: first unit at or after the time
        (``max_offset`` if all are older), and last unit at or before it (``min_offset`` if all are newer).
        The official broker first picks a file by modification time; this looks at store times only, so a
        copied directory gives the same answers.
        """
        low, high = self.min_offset, self.max_offset - 1
        left = right = -1
        left_time = right_time = -1
        while low <= high:
            middle = at = (low + high) // 2
            unit = self.unit(at)
            if unit is not None and unit[1] == BLANK_SIZE:
                at = self._after_blanks(middle, high + 1)
                if at > high:
                    high = middle - 1
                    continue
                unit = self.unit(at)
            time = -1 if unit is None else store_time_of(unit[0], unit[1])
            if time < 0:
                return 0
            if time == timestamp and boundary == "NEAREST":
                return at
            if time > timestamp or (time == timestamp and boundary == "LOWER"):
                high, right, right_time = middle - 1, at, time
            else:
                low, left, left_time = at + 1, at, time
        if boundary == "LOWER":
            return right if right >= 0 else self.max_offset
        if boundary == "UPPER":
            return left if left >= 0 else self.min_offset
        if left < 0 or right < 0:
            return max(left, right, self.min_offset)
        return right if timestamp - left_time > right_time - timestamp else left
