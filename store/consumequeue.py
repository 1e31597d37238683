"""Consume queues: for each topic and queue id, which record of the commitlog has which queue offset.

Owns: the set of queues and every change of one. All of it is derived from the commitlog: it can be thrown away and
put again.

How it works
- ``put`` appends a 20-byte unit to the queue's tail in memory; readers see tail and files as one queue.
- ``write_pending`` moves tails to files in big steps; ``begin_flush`` / ``QueueFlush.run`` / ``end_flush`` make
  them safe. Only ``run`` and reading (``slice``) may happen in another thread.
- A unit leaves memory only after its write succeeded. So after a full disk the same call is simply made
  again. ``over_limit`` tells the engine to stop taking messages when that lasts too long.

Memory of an idle queue: about 240 bytes when it was loaded, 570 when it was written to since (measured by
tracemalloc over 2,000 queues; object, key, integers, its share of the dicts). A queue with a tail has some 160
bytes plus its units more; all tails together stay near ``max_pending_bytes``. 10,000 queues use at most
``max_open_files`` descriptors, plus those of one flush.

Offsets of replayed records
    expected offset      what happens
    equal to the end     appended; if the record lies before the queue's physical end it is ignored (a replay)
    0, a later record    the topic was deleted and made anew: so does the queue
    below the end        ignored if the same unit stands there; a blank is filled in; ignored if a later record has
                         it, whose topic was made anew; else an anomaly: the unit of the earlier record stays, unless
                         ``unit_is_true`` says that it was never right
    above the end        an empty queue begins there (blank units in front); otherwise blank units fill the gap and
                         it is an anomaly, because messages are missing; a gap wider than one file and than the
                         log between the two records could hold is refused
The official broker (ConsumeQueue.putMessagePositionInfo) ignores what is below and appends what is above at the
wrong place, which shifts every later offset; that is the one thing not copied.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import structlog

from protocol.message import MIN_RECORD_BYTES
from store.anomalies import Anomalies, Anomaly
from store.commitlog import Entry
from store.errors import StoreError
from store.files import FileSystem
from store.queue import Boundary, ConsumeQueue
from store.queuefiles import (
    BLANK_SIZE,
    BLANK_UNIT,
    PLACE_UNIT,
    UNIT,
    UNIT_SIZE,
    QueueFiles,
    store_error,
)
from store.queueload import (
    EMPTY,
    QueueDamage,
    QueueExtent,
    QueueLoader,
    bisect,
    verify,
)
from store.queuewriter import QueueFlush, QueueWriter

__all__ = ["Boundary", "ConsumeQueue", "ConsumeQueues", "QueueDamage", "QueueFlush"]

log = structlog.get_logger(__name__)

UnitCheck = Callable[[str, int, int, int, int], bool]

_pack_unit = UNIT.pack
_BLANKS_AT_ONCE = 65_536
_HIGHEST_OFFSET = (1 << 62) // UNIT_SIZE


class ConsumeQueues:
    """All queues of a store. One writer; reading a queue (``raw``, ``slice``, ``unit``) is safe in any thread."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        file_size: int,
        fs: FileSystem,
        *,
        max_open_files: int = 256,
        max_pending_bytes: int = 8 << 20,
        unit_is_true: UnitCheck | None = None,
    ) -> None:
        """``unit_is_true(topic, queue_id, queue_offset, physical_offset, size)``: does the log say so?"""
        self._files = QueueFiles(os.fspath(root), file_size, fs, max_open_files)
        self._queues: dict[tuple[str, int], ConsumeQueue] = {}
        self._writer = QueueWriter(self._files)
        self._unit_is_true = unit_is_true
        self.max_pending_bytes = max_pending_bytes
        self.damages: list[QueueDamage] = []
        self.anomalies = Anomalies()
        # Queues may jump that far, however little of the log lies between: those offsets are taken.
        self.floors: dict[tuple[str, int], int] = {}
        self.began_anew: Callable[[ConsumeQueue], None] = lambda queue: None
        """Told of each queue that a record has begun anew."""

    # Finding queues

    def __len__(self) -> int:
        return len(self._queues)

    def __iter__(self) -> Iterator[ConsumeQueue]:
        """A snapshot: queues may be made and deleted while it is walked."""
        return iter(list(self._queues.values()))

    def queue(self, topic: str, queue_id: int, create: bool = False) -> ConsumeQueue | None:
        """The queue; None if it is unknown and not to be made. Making one touches no file."""
        queue = self._queues.get((topic, queue_id))
        return self._create(topic, queue_id) if queue is None and create else queue

    def _create(self, topic: str, queue_id: int, extent: QueueExtent = EMPTY) -> ConsumeQueue:
        topic = sys.intern(topic)  # one text for all queues of the topic
        queue = self._queues[topic, queue_id] = ConsumeQueue(self._files, topic, queue_id, extent)
        return queue

    def load(self, commitlog_min: int = 0) -> None:
        """Find the queues that have files, with their ends; changes nothing on disk. Wrong files: ``damages``.

        ``commitlog_min``: the log's first offset; minimum offsets are behind it afterwards. StoreError if a
        directory cannot be read.
        """
        fs = self._files.fs
        loader = QueueLoader(self._files)
        path = self._files.root
        try:
            for topic in fs.listdir(path):
                path = f"{self._files.root}/{topic}"
                try:
                    names = fs.listdir(path)
                except NotADirectoryError:
                    loader.damages.append(QueueDamage(topic, -1, path, -1, "not a directory"))
                    continue
                for name in names:
                    if name.isascii() and name.isdigit() and str(int(name)) == name:
                        self._load_queue(loader, topic, int(name), commitlog_min)
        except OSError as error:
            raise store_error(error, path, "read") from error
        self.damages = loader.damages

    def _load_queue(self, loader: QueueLoader, topic: str, queue_id: int, commitlog_min: int) -> None:
        extent = loader.load(topic, queue_id, commitlog_min)
        if extent is None:
            return
        self._create(topic, queue_id, extent)

    # Putting units

    def put_all(self, entries: Iterable[Entry]) -> None:
        """Add records to their queues, in the order of the log; visible at once. Those without an offset have none.

        HOT. ``put`` for each, done in line where the queue has a tail and the record comes right behind it. Never fails
        for want of disk space; StoreError, with the records in front added, if ``put`` cannot read a queue.
        """
        queues = self._queues
        count = 0
        for topic, queue_id, queue_offset, physical_offset, size, tags_code, _ in entries:
            queue = queues.get((topic, queue_id))
            if (
                queue is not None
                and queue_offset == queue.max_offset
                and physical_offset >= queue.max_physical_end
                and (tail := queue.tail) is not None
            ):
                units = tail.units
                units += _pack_unit(physical_offset, size, tags_code)
                queue.max_offset = queue_offset + 1
                queue.max_physical_end = physical_offset + size
                count += 1
            elif queue_offset >= 0:
                self._writer.pending_bytes += count * UNIT_SIZE
                count = 0
                self.put(topic, queue_id, queue_offset, physical_offset, size, tags_code)
        self._writer.pending_bytes += count * UNIT_SIZE

    def put(
        self, topic: str, queue_id: int, queue_offset: int, physical_offset: int, size: int, tags_code: int
    ) -> None:
        """Add a record to its queue, by the module's table. StoreError if the queue has to be read and cannot be."""
        queue = self.queue(topic, queue_id, create=True)
        assert queue is not None
        if queue_offset != queue.max_offset == queue.min_offset and physical_offset >= queue.max_physical_end:
            if not self._begin_at(queue, queue_offset, physical_offset, size):
                return
        elif queue_offset == 0 < queue.max_offset and physical_offset >= queue.max_physical_end:
            self._begin_anew(queue)
        elif queue_offset < queue.max_offset:
            if queue_offset < queue.min_offset or not self._replaces(
                queue, queue_offset, physical_offset, size, tags_code
            ):
                return
        elif physical_offset < queue.max_physical_end:
            if physical_offset + size > queue.max_physical_end or queue_offset > queue.max_offset:
                self._note("conflict", queue, queue_offset, physical_offset, size)
            return
        if queue_offset > queue.max_offset and not self._reach(queue, queue_offset, physical_offset, size):
            return
        self._writer.append(queue, _pack_unit(physical_offset, size, tags_code), physical_offset)
        queue.max_physical_end = physical_offset + size

    def _replaces(
        self, queue: ConsumeQueue, queue_offset: int, physical_offset: int, size: int, tags_code: int
    ) -> bool:
        """A put below the queue's end. True: the queue was cut there, append it now."""
        found = queue.unit(queue_offset)
        if found == (physical_offset, size, tags_code):
            return False
        if found is not None and found[0] > physical_offset:
            return False
        if found == (0, BLANK_SIZE, 0):
            self.mend(queue, queue_offset, physical_offset, size, tags_code)
            return False
        if found is not None and (
            self._unit_is_true is None
            or self._unit_is_true(queue.topic, queue.queue_id, queue_offset, found[0], found[1])
        ):
            self._note("conflict", queue, queue_offset, physical_offset, size)
            return False
        self.cut(queue, queue_offset)
        return True

    def _begin_at(self, queue: ConsumeQueue, queue_offset: int, physical_offset: int, size: int) -> bool:
        """An empty queue has nothing to lose: begin where the log says. False: no file could have that name."""
        if not 0 <= queue_offset <= _HIGHEST_OFFSET:
            self._note("implausible", queue, queue_offset, physical_offset, size)
            return False
        self._writer.forget(queue)
        self._files.remove_queue(queue.topic, queue.queue_id)
        # Blanks in front are written with the first unit.
        queue.min_offset = queue.max_offset = queue_offset
        return True

    def _begin_anew(self, queue: ConsumeQueue) -> None:
        """Numbering has begun at 0 again: where this log comes from, the topic was deleted and made anew."""
        log.info("consume_queue_begins_anew", topic=queue.topic, queue_id=queue.queue_id, end=queue.max_offset)
        self.reset(queue.topic, queue.queue_id)
        self.floors.pop(queue.name, None)
        self.began_anew(queue)

    def _reach(self, queue: ConsumeQueue, queue_offset: int, physical_offset: int, size: int) -> bool:
        """Bring the end of the queue up to an offset above it. False: too far, nothing was changed."""
        gap = queue_offset - queue.max_offset
        # So many records may have been lost between the two, if a part of the log is gone.
        possible = (physical_offset - queue.max_physical_end) // MIN_RECORD_BYTES
        taken = self.floors.get(queue.name, 0) - queue.max_offset
        if gap > max(possible, taken, self._files.file_size // UNIT_SIZE):
            self._note("implausible", queue, queue_offset, physical_offset, size)
            return False
        self._note("gap", queue, queue_offset, physical_offset, size)
        while gap:
            step = min(gap, _BLANKS_AT_ONCE)
            self._writer.append(queue, BLANK_UNIT * step, physical_offset)
            gap -= step
            if self.wants_write:
                self.write_pending()
        return True

    def _note(
        self,
        kind: Literal["gap", "conflict", "implausible"],
        queue: ConsumeQueue,
        queue_offset: int,
        physical_offset: int,
        size: int,
    ) -> None:
        self.anomalies.note(
            Anomaly(kind, queue.topic, queue.queue_id, queue_offset, queue.max_offset, physical_offset, size)
        )

    def mend(self, queue: ConsumeQueue, queue_offset: int, physical_offset: int, size: int, tags_code: int) -> None:
        """Overwrite one unit inside the queue (a blank whose record was found after all)."""
        self._writer.overwrite(queue, queue_offset, _pack_unit(physical_offset, size, tags_code), physical_offset)

    # Cutting and removing

    def cut(self, queue: ConsumeQueue, offset: int) -> None:
        """Remove all units from ``offset`` on, and everything else behind it in the files; blanks before it as well.

        Also brings the last file to its right size. The queue is empty afterwards if offset <= min_offset.
        """
        last = None
        while offset > queue.min_offset and ((last := queue.unit(offset - 1)) is None or last[1] == BLANK_SIZE):
            offset, last = offset - 1, None
        self._writer.cut(queue, offset)
        queue.max_offset = min(queue.max_offset, offset)
        queue.min_offset = min(queue.min_offset, queue.max_offset)
        queue.max_physical_end = 0 if last is None else last[0] + last[1]
        self._writer.mark_cut(queue)
        if last is None and queue.tail is None:
            self._hold_place(queue)

    def place(self, topic: str, queue_id: int, offset: int) -> None:
        """Let an empty queue go on at ``offset``, also on disk after the next flush. StoreFull or StoreError."""
        queue = self.queue(topic, queue_id, create=True)
        assert queue is not None
        assert queue.min_offset == queue.max_offset
        self._writer.forget(queue)
        self._files.remove_queue(topic, queue_id)
        before, queue.min_offset, queue.max_offset = queue.max_offset, offset, offset
        queue.max_physical_end = 0
        try:
            self._hold_place(queue)
        except StoreError:
            queue.min_offset = queue.max_offset = before
            raise

    def _hold_place(self, queue: ConsumeQueue) -> None:
        """A queue became empty: its offset stays on disk, in front of it, and no file without a unit.

        An official broker takes the first 20 bytes of a file for a unit whatever they are when it cuts its queues,
        which it does at nearly every start; a file of zeros would give it a message that is none.
        """
        offset = queue.max_offset
        if offset == 0:
            self._files.remove_queue(queue.topic, queue.queue_id)
            return
        if queue.raw(offset - 1, 1) in (BLANK_UNIT, b""):
            self._writer.overwrite(queue, offset - 1, PLACE_UNIT, 0)
        if offset * UNIT_SIZE % self._files.file_size == 0:
            self._files.remove_file(self._files.path(queue.topic, queue.queue_id, offset * UNIT_SIZE))

    def truncate_from_physical(self, limit: int, *, mend_tails: bool = False) -> int:
        """Cut every queue at its first unit whose record begins at or above ``limit``; returns how many were cut.

        ``mend_tails``: trust only what lies below ``limit`` (an unclean stop): queues that ``load`` complained of
        are also cut where units stop being good and rising, and zeroed behind that. The process before may have cut
        or made files and ended before they were safe, so then every queue counts as unsafe.
        """
        suspect = {(damage.topic, damage.queue_id) for damage in self.damages} if mend_tails else set()
        if mend_tails:
            self._files.doubt_names()
        cut = 0
        for queue in self:
            mend = queue.name in suspect
            if mend_tails:
                self._writer.doubt(queue)
            if queue.max_physical_end <= limit and not mend:
                continue
            end = self._end_below(queue, limit)
            if end < queue.max_offset:
                cut += 1
            if end < queue.max_offset or mend:
                self.cut(queue, end)
        return cut

    def _end_below(self, queue: ConsumeQueue, limit: int) -> int:
        """First offset that has no good unit below ``limit``."""

        def good(offset: int) -> bool:
            unit = queue.unit(offset)
            return unit is not None and unit[0] < limit

        begin = queue.min_offset
        end = bisect(begin, queue.max_offset, good)
        # Bisection believes each unit it looks at; torn units can mislead it. Neighbours tell.
        if self._rising(queue, max(begin, end - 4), end, limit) == end:
            return end
        return self._rising(queue, begin, queue.max_offset, limit)

    def _rising(self, queue: ConsumeQueue, begin: int, end: int, limit: int) -> int:
        """How far from ``begin`` units are good, rising and below ``limit``."""
        last = -1
        offset = begin
        while offset < end:
            units = queue.slice(offset, min(4096, end - offset))
            if not units:
                return offset
            for physical, size, _ in units:
                if physical == 0 and size == BLANK_SIZE:
                    offset += 1
                    continue
                if physical <= last or size <= 0 or physical >= limit:
                    return offset
                last = physical
                offset += 1
        return offset

    def reset(self, topic: str, queue_id: int) -> ConsumeQueue:
        """Delete the queue's files and begin it anew, empty; the next put decides where it begins."""
        queue = self.queue(topic, queue_id, create=True)
        assert queue is not None
        self._writer.forget(queue)
        self._files.remove_queue(topic, queue_id)
        queue.min_offset = queue.max_offset = queue.max_physical_end = 0
        return queue

    def delete(self, topic: str) -> int:
        """Delete all queues of a topic with their files; returns how many there were."""
        doomed = [queue for queue in self._queues.values() if queue.topic == topic]
        for queue in doomed:
            self.delete_queue(queue)
        return len(doomed)

    def delete_queue(self, queue: ConsumeQueue) -> None:
        self._writer.forget(queue)
        self._files.remove_queue(queue.topic, queue.queue_id)
        self._queues.pop(queue.name, None)

    def delete_expired(self, queue: ConsumeQueue, commitlog_min: int) -> int:
        """Correct the queue's minimum and delete the files wholly below it, never the last; returns how many."""
        begin = queue.correct_min(commitlog_min) * UNIT_SIZE
        size = self._files.file_size
        if begin < size:
            return 0
        # The newest file on disk stays even if units that are still in memory will begin another: it tells the
        # queue's offset after a crash.
        bases = self._files.bases(queue.topic, queue.queue_id)
        expired = [base for base in bases[:-1] if base + size <= begin]
        for base in expired:
            self._files.remove_file(self._files.path(queue.topic, queue.queue_id, base))
        return len(expired)

    def verify(self, queue: ConsumeQueue) -> list[QueueDamage]:
        """Read the whole queue and what lies behind it; what is wrong. Call without a tail (after a flush)."""
        extent = QueueExtent(queue.min_offset, queue.max_offset, queue.max_physical_end)
        return verify(self._files, queue.topic, queue.queue_id, extent)

    # Writing and flushing

    @property
    def pending_bytes(self) -> int:
        """Size of all tails."""
        return self._writer.pending_bytes

    @property
    def wants_write(self) -> bool:
        """Tails have reached their bound: call ``write_pending`` after this batch."""
        return self._writer.pending_bytes >= self.max_pending_bytes

    @property
    def over_limit(self) -> bool:
        """Tails take twice what they may, because writing them fails: take no more messages."""
        return self._writer.pending_bytes > 2 * self.max_pending_bytes

    def write_pending(self, limit: int = 64) -> int:
        """Write up to ``limit`` tails to files, oldest first, not flushed; returns how many were written.

        StoreFull or StoreError with the file named; the units stay in memory then.
        """
        return self._writer.write_oldest(limit)

    def files_to_make(self) -> list[str]:
        """Files that writing the tails would have to make, which takes its time."""
        return self._writer.files_to_make()

    def make_files(self, paths: list[str]) -> None:
        """Make them in another thread; then ``note_made``. StoreFull or StoreError."""
        self._files.make_ahead(paths)

    def note_made(self, paths: list[str]) -> None:
        """``make_files`` returned, or failed on the way."""
        self._files.note_made(paths)

    def begin_flush(self, below: int | None = None, limit: int = 128) -> QueueFlush | None:
        """Write the tails of up to ``limit`` queues and say which files to sync; None: nothing to do.

        Without ``below``: queues with at least two pages of units in memory, the official rhythm of each second.
        With it: every queue with unsafe units of records below that offset, the official rhythm of each minute;
        pass the end of what has been put when the round begins. Call again until None; one flush at a time.
        """
        return self._writer.begin_flush(below, limit)

    def end_flush(self, job: QueueFlush) -> None:
        """The job's ``run`` came back without an error. After an error do not call this: the store is poisoned."""
        self._writer.end_flush(job)

    def flush(self) -> None:
        """Make everything safe, in place: for a clean stop and for recovery."""
        while (job := self.begin_flush(sys.maxsize)) is not None:
            job.run()
            self.end_flush(job)

    def safe_physical_offset(self, dispatched: int) -> int:
        """All units of records below the answer are on disk. ``dispatched``: end of what has been put so far."""
        return self._writer.safe_physical_offset(dispatched)

    def close(self) -> None:
        """Let go of descriptors. ``flush`` first, or the tails are lost (and derived again)."""
        self._files.open.clear()
