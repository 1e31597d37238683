"""MessageStore: the door through which the gateway comes.

Owns nothing but the composition: which part is asked in which order. Each part owns its own state (see there).

Threads: everything belongs to one thread, except ``get`` with ``allow_cold``, ``message_at``, ``read_raw`` and
the ``run`` of a job, which may be in any thread. What has to be safe when power is lost:

    acknowledged under SYNC_FLUSH      below ``flushed_offset``: on disk
    acknowledged under ASYNC_FLUSH     in the page cache: survives the process, not the machine
    visible to consumers               dispatched; under SYNC_FLUSH only what is flushed is dispatched
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from time import time
from typing import NamedTuple

import structlog

from protocol.message import NewMessage, StoredMessage
from store.abortfile import AbortFile
from store.checkpoint import CheckpointFile
from store.cleaning import Cleaner
from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.dispatch import SCHEDULE_TOPIC, Arrivals, DelayLevels, Dispatcher, Mark
from store.errors import ColdRead, StoreDamaged, StoreError, StoreFull
from store.files import DirectoryLock, FileSystem
from store.flush import Flusher, FlushJob
from store.healing import Healer
from store.index import KeyIndex
from store.logfiles import LogFiles
from store.manifest import load as load_manifest
from store.options import BrokerRole, FlushDiskType, StoreOptions
from store.queue import Boundary, ConsumeQueue, Unit
from store.queuefiles import UNIT_SIZE
from store.reading import GetResult, GetStatus, Limits, PropertiesMatch, Reader, TagMatch
from store.rebuild import Derived
from store.recovery import LoggedProgress, LogVerdict, Progress, apply, inspect, report
from store.retention import expired_queues, unused_queues
from store.scan import Stop
from store.upkeep import MaintainJob, Upkeep

__all__ = ["Arrivals", "ColdRead", "GetResult", "GetStatus", "MessageStore", "QueryResult"]

log = structlog.get_logger(__name__)


def _wall_clock_ms() -> int:
    return int(time() * 1000)


class QueryResult(NamedTuple):
    """The answer to a query by key: whole records, and up to where the index reaches."""

    records: list[bytes]
    index_timestamp: int  # store time of the newest indexed record, ms
    index_offset: int  # its commitlog offset


class MessageStore:
    """One open store directory. Make it with ``open``."""

    def __init__(
        self,
        options: StoreOptions,
        fs: FileSystem,
        lock: DirectoryLock,
        abort: AbortFile,
        now_ms: Callable[[], int],
        verdict: LogVerdict,
    ) -> None:
        self._lock = lock
        self._abort = abort
        self._now_ms = now_ms
        self._fs = fs
        self._root = options.store_path_root_dir
        self._sync_flush = options.flush_disk_type is FlushDiskType.SYNC_FLUSH
        self._is_slave = options.broker_role is BrokerRole.SLAVE
        self.verdict = verdict
        self._deletion_untold = False  # queues are gone, and the manifest still names them
        self.log_grew: Callable[[int], None] = lambda end: None
        """Called with the log's end by each append, before queues and index follow: slaves can go on meanwhile."""
        self.damaged_reads = 0
        self._damaged_places: set[int] = set()
        self._last_timestamp = verdict.last_timestamp
        self._floors: dict[tuple[str, int], int] = {}
        self._queues = ConsumeQueues(
            f"{self._root}/consumequeue",
            options.mapped_file_size_consume_queue,
            fs,
            unit_is_true=self._unit_is_true,
        )
        self._index = None
        if options.message_index_enable:
            self._index = KeyIndex(
                f"{self._root}/index", fs, options.max_hash_slot_num, options.max_index_num, now_ms=now_ms
            )
        delays = DelayLevels(options.message_delay_level)
        self._log = CommitLog(
            options.store_path_commit_log,
            options.mapped_file_size_commit_log,
            fs,
            first_queue_offset=self._first_queue_offset,
            tags_codes={SCHEDULE_TOPIC: delays.due_code},
        )
        self._log.poisoned = abort.distrust
        self._log.load(verdict.bases, verdict.end)
        self._flusher = Flusher(self._log, fs, verdict.end)
        self._dispatcher = Dispatcher(
            self._queues,
            self._index,
            delays,
            self._log.latest_or_read,
            self._log.file_size,
        )
        self._dispatcher.damaged = self._note_damaged_stop
        self._queue_file_units = options.mapped_file_size_consume_queue // UNIT_SIZE
        self._healer = Healer(self._log, self._queues, delays)
        self._reader = Reader(
            self._log,
            self._queues,
            self._queue_file_units,
            Limits(options, fs.physical_memory()),
            self._healer,
            self._note_damaged,
        )
        self._cleaner = Cleaner(options, self._log, self._queues, self._index, fs)
        self._upkeep = Upkeep(
            options,
            self._log,
            self._queues,
            self._index,
            self._flusher,
            self._dispatcher,
            CheckpointFile(f"{self._root}/checkpoint", fs),
            self._cleaner,
            self._healer,
            fs,
        )
        self._queues.began_anew = self._upkeep.queue_began_anew

    # --- open and close ------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        options: StoreOptions,
        *,
        now_ms: Callable[[], int] = _wall_clock_ms,
        fs: FileSystem | None = None,
        progress: Progress | None = None,
    ) -> MessageStore:
        """Lock the directory, recover what the last stop left, and be ready.

        ``progress`` is told how far long work is; by default it goes to the log now and then. StoreError with one clear
        line if that is impossible (StoreLocked, StoreDamaged); only the lock file and empty directories were made then.
        """
        fs = fs or FileSystem()
        root = options.store_path_root_dir
        try:
            fs.makedirs(root)
            fs.makedirs(options.store_path_commit_log)
            lock = DirectoryLock(root, options.store_path_commit_log, fs)
        except OSError as error:
            raise StoreDamaged(f"{error.filename or root}: {error.strerror or error}") from error
        try:
            return cls._recover(options, fs, lock, now_ms, progress or LoggedProgress())
        except OSError as error:
            lock.release()
            raise StoreDamaged(f"{error.filename or root}: {error.strerror or error}") from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _recover(
        cls,
        options: StoreOptions,
        fs: FileSystem,
        lock: DirectoryLock,
        now_ms: Callable[[], int],
        progress: Progress,
    ) -> MessageStore:
        root = options.store_path_root_dir
        abort = AbortFile(root, options.store_path_commit_log, fs)
        ending = abort.ending()
        checkpoint = CheckpointFile(f"{root}/checkpoint", fs).read(now_ms())
        files = LogFiles(options.store_path_commit_log, options.mapped_file_size_commit_log, fs)
        verdict = inspect(files, checkpoint, ending=ending, check_crc=options.check_crc_on_recover, progress=progress)
        store = cls(options, fs, lock, abort, now_ms, verdict)
        derived = store._derived(progress)
        derived_verdict = derived.judge(load_manifest(root, fs))
        report(verdict, ending)
        abort.make()
        fs.sync_directory(root)  # also for one that a process made and did not live to sync
        with abort.recovering(replica=options.broker_role is BrokerRole.SLAVE):
            apply(verdict, files, root, now_ms())
        derived.mend(derived_verdict)
        store._upkeep.floors = store._floors = derived.floors
        if derived.rebuilt:
            store._upkeep.checkpoint(clean=False)
        elif verdict.vouched:
            store._upkeep.resume(verdict.begin)
        return store

    def _derived(self, progress: Progress) -> Derived:
        return Derived(
            self._root,
            self._fs,
            self.verdict,
            self._log,
            self._queues,
            self._index,
            self._dispatcher,
            progress,
            lambda begin, end, reason: self._note_damaged(begin, reason),
        )

    def _write_pending(self) -> None:
        """Move units and entries from memory to files when they have reached their bound."""
        if self._queues.wants_write:
            self._queues.write_pending()
        if self._index is not None and self._index.wants_write:
            self._index.write_pending()

    def close(self) -> None:
        """Make everything safe and leave a directory that says so. After a failure: just let go."""
        try:
            if self._log.poison_reason is None:
                job = self.flush_begin()
                job.run()
                self.flush_done(job)
                while self._dispatcher.step(4096, self._log.end_offset):
                    self._write_pending()
                self._upkeep.checkpoint(clean=True)
                self._log.close()
                self._abort.remove()
                self._fs.sync_directory(self._root)
        except OSError as error:
            self._abort.distrust()
            raise StoreError(f"{error.filename or self._root}: {error.strerror or error}") from error
        finally:
            self._queues.close()
            if self._index is not None:
                self._index.close()
            self._lock.release()

    # --- write ---------------------------------------------------------------------------------------

    def append(self, messages: list[NewMessage], *, atomic: bool = False, dispatch: bool = True) -> int:
        """Store the messages; sets their offsets, time and size. Returns the end of the log.

        ``atomic``: contiguous, in one file (a batch send). The caller has checked the limits of topic, properties
        and body. Without ``dispatch`` they become visible with the next ``dispatch_step``, not at once.
        StoreFull, StorePoisoned, MessageIllegal: nothing was stored.
        """
        refusal = self._upkeep.refusal()
        if refusal is not None:
            raise StoreFull(refusal)
        commit_log = self._log
        begin = commit_log.end_offset
        now = max(self._now_ms(), self._last_timestamp)
        entries = commit_log.append(messages, now, atomic=atomic)
        self._last_timestamp = now
        end = commit_log.end_offset
        self.log_grew(end)
        if self._sync_flush or not dispatch:
            self._dispatcher.hold(begin, end, entries, now)
            return end
        try:
            self._dispatcher.put_appended(begin, end, entries, now)
            self._write_pending()
        except StoreError as error:
            # The messages are stored; their queues follow in a later step, at the latest at the next start.
            self._upkeep.derived_failed(error)
        return end

    def append_raw(self, offset: int, data: bytes | memoryview) -> int:
        """A slave stores its master's bytes at exactly the end. Returns the new end.

        An empty log may begin at any multiple of the file size. OffsetOutOfRange for any other offset.
        """
        end = self._log.append_raw(offset, data)
        if self._dispatcher.dispatched_offset < self._log.start_offset:
            self._dispatcher.restart_at(Mark(self._log.start_offset, -1, 0))
            self._flusher.flushed_offset = max(self._flusher.flushed_offset, self._log.start_offset)
        self.log_grew(end)
        return end

    def dispatch_step(self, limit: int = 512) -> Arrivals:
        """Make further messages visible; returns them. For SYNC_FLUSH, slaves, and appends without ``dispatch``."""
        until = self._flusher.flushed_offset if self._sync_flush else self._log.end_offset
        try:
            arrivals = self._dispatcher.step(limit, until)
            self._write_pending()
        except StoreError as error:
            self._upkeep.derived_failed(error)
            return Arrivals()
        return arrivals

    # --- flush and upkeep ----------------------------------------------------------------------------

    def flush_begin(self) -> FlushJob:
        """A job that makes safe what has been appended until now; ``run`` it in any thread, then ``flush_done``."""
        return self._flusher.begin()

    def flush_done(self, job: FlushJob) -> None:
        self._flusher.finish(job)

    def maintain_begin(self) -> MaintainJob | None:
        """The next piece of upkeep: space ahead, derived files, checkpoint. None if nothing is due."""
        if not self._sync_flush and self._dispatcher.dispatched_offset < self._log.end_offset:
            self.dispatch_step(4096)  # what an append could not dispatch
        return self._upkeep.begin(self._now_ms())

    def maintain_done(self, job: MaintainJob) -> bool:
        """True: more is due at once."""
        return self._upkeep.finish(job)

    def poison(self, reason: str) -> None:
        """A flush failed: take no more writes. Reading goes on."""
        self._log.poison(reason)
        log.error("store_poisoned", reason=reason)

    @property
    def writable(self) -> tuple[bool, str]:
        """Whether messages are taken, and if not, why."""
        reason = self._log.poison_reason or self._upkeep.refusal()
        return reason is None, reason or ""

    # --- read ----------------------------------------------------------------------------------------

    def get(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        max_count: int,
        *,
        matches: TagMatch | None = None,
        properties_match: PropertiesMatch | None = None,
        max_bytes: int | None = None,
        allow_cold: bool = False,
    ) -> GetResult:
        """See ``Reader.get``. Any thread with ``allow_cold``; ColdRead without."""
        return self._reader.get(
            topic,
            queue_id,
            offset,
            max_count,
            matches=matches,
            properties_match=properties_match,
            max_bytes=max_bytes,
            allow_cold=allow_cold,
        )

    def message_at(self, physical_offset: int, *, allow_cold: bool = True) -> StoredMessage | None:
        """The message whose record begins exactly there, if consumers may see it.

        Any thread with ``allow_cold``; ColdRead without.
        """
        if physical_offset >= self._dispatcher.dispatched_offset:
            return None
        return self._reader.message_at(physical_offset, allow_cold=allow_cold)

    def queue_units(
        self, topic: str, queue_id: int, offset: int, max_count: int, *, allow_cold: bool = True
    ) -> list[Unit]:
        """What a consume queue holds from ``offset`` on: physical offset, size and tags code of each message.

        Fewer at the end, none outside the queue; a unit (0, BLANK_SIZE, 0) stands for no message. Any thread with
        ``allow_cold``; ColdRead without.
        """
        queue = self._queues.queue(topic, queue_id)
        return [] if queue is None else queue.slice(offset, max_count, nowait=not allow_cold)

    def read_raw(self, offset: int, limit: int) -> bytes:
        """Bytes for a slave, not across a file's end, none at the log's. Any thread. OffsetOutOfRange if not held."""
        if offset == self._log.end_offset:
            return b""
        return self._log.latest(offset, limit) or self._log.read(offset, limit)

    def has_queue(self, topic: str, queue_id: int) -> bool:
        return self._queues.queue(topic, queue_id) is not None

    def min_offset(self, topic: str, queue_id: int) -> int:
        queue = self._queues.queue(topic, queue_id)
        return 0 if queue is None else queue.min_offset

    def max_offset(self, topic: str, queue_id: int) -> int:
        queue = self._queues.queue(topic, queue_id)
        return 0 if queue is None else queue.max_offset

    def _first_queue_offset(self, topic: str, queue_id: int) -> int:
        """Where numbering goes on in a queue that was not written to since the start."""
        return max(self.max_offset(topic, queue_id), self._floors.get((topic, queue_id), 0))

    def queues(self) -> Iterable[tuple[str, int]]:
        return [queue.name for queue in self._queues]

    def offset_by_time(self, topic: str, queue_id: int, timestamp_ms: int, boundary: Boundary = "NEAREST") -> int:
        """The queue offset for a store time; 0 for an unknown queue."""
        queue = self._queues.queue(topic, queue_id)
        return 0 if queue is None else queue.offset_by_time(timestamp_ms, self._reader.store_time, boundary)

    def store_time_at(self, topic: str, queue_id: int, queue_offset: int) -> int:
        """Store time in ms of a message, -1 if there is none."""
        queue = self._queues.queue(topic, queue_id)
        unit = None if queue is None else queue.unit(queue_offset)
        return -1 if unit is None else self._reader.store_time(unit[0], unit[1])

    def earliest_store_time(self, topic: str, queue_id: int) -> int:
        """Store time in ms of the first message of a queue, -1 if it has none."""
        return self.store_time_at(topic, queue_id, self.min_offset(topic, queue_id))

    def query_keys(self, topic: str, key: str, max_count: int, begin_ms: int, end_ms: int) -> QueryResult:
        """The newest messages with a key and a store time in the range, in the order of the log. Any thread.

        Other keys with an equal hash may be among them, as with the official broker; clients compare.
        """
        if self._index is None:
            return QueryResult([], 0, 0)
        found = self._index.query(topic, key, max_count, begin_ms, end_ms)
        messages = [message for message in map(self.message_at, sorted(found)) if message is not None]
        return QueryResult([message.raw for message in messages], self._index.end_timestamp, self._index.end_offset)

    def delete_queues(self, topic: str, limit: int | None = None) -> int:
        """Remove the consume queues of a topic; numbering begins at 0 again. Returns how many there were.

        Each queue takes about 0.4 ms. With a ``limit``, call it again until it returns less than that.
        """
        return self._delete([queue for queue in self._queues if queue.topic == topic], limit)

    def delete_expired_queues(self, limit: int | None = None) -> int:
        """Remove queues whose last message is deleted (CLEAN_EXPIRED_CONSUMEQUEUE); ``limit`` as above."""
        return self._delete(expired_queues(self._queues, self._log.start_offset), limit)

    def delete_unused_queues(self, topics: Container[str], limit: int | None = None) -> int:
        """Remove queues of topics that are not in ``topics`` (CLEAN_UNUSED_TOPIC); ``limit`` as above."""
        return self._delete(unused_queues(self._queues, topics), limit)

    def _delete(self, queues: list[ConsumeQueue], limit: int | None) -> int:
        doomed = queues if limit is None else queues[:limit]
        for queue in doomed:
            self._log.forget_queue(queue.topic, queue.queue_id, queue.max_offset)
            self._floors.pop(queue.name, None)
            self._queues.delete_queue(queue)
        if doomed:
            self._healer.forget()
            self._deletion_untold = True
        if self._deletion_untold and (limit is None or len(doomed) < limit):
            self._upkeep.forget_queues()
            self._deletion_untold = False
        return len(doomed)

    def request_cleaning(self) -> None:
        """Delete expired files at any hour in the next rounds (DELETE_EXPIRED_COMMITLOG)."""
        self._cleaner.retention.request_manual()

    # --- offsets -------------------------------------------------------------------------------------

    @property
    def start_offset(self) -> int:
        return self._log.start_offset

    @property
    def end_offset(self) -> int:
        return self._log.end_offset

    @property
    def flushed_offset(self) -> int:
        return self._flusher.flushed_offset

    @property
    def dispatched_offset(self) -> int:
        return self._dispatcher.dispatched_offset

    def _unit_is_true(self, topic: str, queue_id: int, queue_offset: int, physical_offset: int, size: int) -> bool:
        """Which of two records that claim one queue offset is right: not the one that left a gap in front of itself.

        No checksum covers that field of a record, so a flipped bit there shows only when the next record comes.
        """
        return not any(
            anomaly.kind == "gap" and anomaly.physical_offset == physical_offset
            for anomaly in self._queues.anomalies.noted
        )

    # --- damage found on the way ---------------------------------------------------------------------

    def _note_damaged(self, physical_offset: int, reason: str) -> None:
        self.damaged_reads += 1
        if physical_offset not in self._damaged_places and len(self._damaged_places) < 10_000:
            self._damaged_places.add(physical_offset)
            file = self._log.path(physical_offset)
            log.error("damaged_record", file=file, offset=physical_offset, reason=reason)

    def _note_damaged_stop(self, stop: Stop, good: int | None) -> None:
        self._note_damaged(stop.offset, stop.reason or "")
