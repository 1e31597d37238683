"""What has to be done now and then: space ahead, derived files to disk, the checkpoint.

Owns when which of these is due, and the order in which things become safe: first the log, then what is derived from
it, then the checkpoint that vouches for both. That is a *round*. It takes one job, or several when there are
many queues; a checkpoint is written only by the job that ends its round.

A job has three parts: ``begin`` and ``finish`` on the thread that appends, ``run`` in any thread; one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog

from store.checkpoint import Checkpoint, CheckpointFile, Times, Vouched
from store.cleaning import Cleaner
from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueue, ConsumeQueues, QueueFlush
from store.dispatch import Dispatcher, Mark
from store.errors import StoreError, StorePoisoned
from store.files import FileSystem
from store.flush import Flusher, FlushJob
from store.healing import Healer
from store.index import IndexFlush, KeyIndex
from store.manifest import NOWHERE, KnownQueue, Manifest, newest_change, snapshot
from store.manifest import load as load_manifest
from store.manifest import save as save_manifest
from store.options import StoreOptions

log = structlog.get_logger(__name__)

ROUND_BYTES: Final = 64 << 20  # so much log behind the checkpoint makes a round due
LEAST_PAUSE_MS: Final = 5000
MOST_PAUSE_MS: Final = 30_000
QUEUES_IN_JOB: Final = 128  # a few milliseconds on the thread that appends
FEW_FILES: Final = 8  # so many are made on the way


class MaintainJob:
    """Steps that may wait for the disk. ``run`` in any thread, then ``MessageStore.maintain_done``."""

    __slots__ = (
        "checkpoint",
        "deletion",
        "error",
        "index_flush",
        "log_flush",
        "made_files",
        "make",
        "mark",
        "queue_flush",
        "ran",
        "reserve",
        "unsafe",
    )

    def __init__(self) -> None:
        self.reserve: Callable[[], object] | None = None
        self.deletion: Callable[[], None] | None = None
        self.made_files: list[str] = []
        self.make: Callable[[], None] | None = None
        self.log_flush: FlushJob | None = None
        self.queue_flush: QueueFlush | None = None
        self.index_flush: IndexFlush | None = None
        self.checkpoint: Callable[[], None] | None = None
        self.mark: Mark | None = None
        self.error: str | None = None
        self.unsafe = False  # the error leaves unknown what is on disk
        self.ran = False

    def __bool__(self) -> bool:
        flushes = (self.log_flush, self.queue_flush, self.index_flush)
        return any(part is not None for part in (self.reserve, self.deletion, self.make, *flushes, self.checkpoint))

    def run(self) -> None:
        """Never raises: what failed is in ``error``."""
        self.ran = True
        try:
            if self.deletion is not None:
                self.deletion()
            if self.reserve is not None:
                self.reserve()
        except OSError as error:
            self.error = f"{error.filename or 'no space reserved ahead'}: {error.strerror or error}"
        try:
            if self.make is not None:
                self.make()
        except StoreError as error:  # the files are made on the way then, or the round waits for space
            self.error = str(error)
        try:
            self.unsafe = True
            if self.log_flush is not None:
                self.log_flush.run()
            if self.queue_flush is not None:
                self.queue_flush.run()
            if self.index_flush is not None:
                self.index_flush.run()
            self.unsafe = False
            if self.checkpoint is not None:
                self.checkpoint()
        except OSError as error:
            self.error = f"flush failed: {error.strerror or error}"
        except StoreError as error:
            self.error = str(error)


class Upkeep:
    """The upkeep of one store."""

    def __init__(
        self,
        options: StoreOptions,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        index: KeyIndex | None,
        flusher: Flusher,
        dispatcher: Dispatcher,
        checkpoint: CheckpointFile,
        cleaner: Cleaner,
        healer: Healer,
        fs: FileSystem,
    ) -> None:
        self._cleaner = cleaner
        self._healer = healer
        self._root = options.store_path_root_dir
        self._fs = fs
        self.floors: Mapping[tuple[str, int], int] = {}
        self._log = commit_log
        self._queues = queues
        self._index = index
        self._flusher = flusher
        self._dispatcher = dispatcher
        self._checkpoint = checkpoint
        self._options = options
        self._job: MaintainJob | None = None  # begun and not finished
        self._round: Mark | None = None
        self._manifest: Manifest | None = None  # of the round that is under way
        self._manifest_lock = threading.Lock()
        self._to_make: list[str] = []  # queue files to be made before the round's tails are written
        self._vouched = -1  # offset of the last checkpoint
        self._round_began_ms = 0
        self.derived_error: str | None = None

    def resume(self, vouched: int) -> None:
        """The checkpoint on disk, and the manifest beside it, speak for what is below this offset."""
        self._vouched = vouched

    def derived_failed(self, error: StoreError) -> None:
        """Consume queues or index could not be written; it is tried again, and sends are refused if that lasts."""
        if self.derived_error is None:
            log.error("derived_files_failed", reason=str(error))
        self.derived_error = str(error)

    def refusal(self) -> str | None:
        """Why messages cannot be taken now, if so."""
        if self._queues.over_limit or (self._index is not None and self._index.over_limit):
            return self.derived_error or "consume queues or index cannot be written"
        return self._cleaner.refusal()

    def begin(self, now_ms: int) -> MaintainJob | None:
        """The next job; None if nothing is due or the store is poisoned."""
        if self._log.poison_reason is not None:
            return None
        job = MaintainJob()
        if self._log.wants_room:
            job.reserve = self._log.reserve_ahead
        try:
            doomed = self._cleaner.begin(now_ms)
            if doomed:
                job.deletion = partial(self._cleaner.remove, doomed)
        except OSError as error:
            log.warning("cleaning_failed", file=error.filename, reason=error.strerror)
        self._queues.anomalies.report()
        try:
            self._healer.apply()
            if self._round is None and self._is_due(now_ms):
                self._round = self._dispatcher.mark
                self._manifest = self._describe(self._round)
                missing = self._queues.files_to_make()
                self._to_make = missing if len(missing) > FEW_FILES else []
                self._round_began_ms = now_ms
            if self._round is None:
                job.queue_flush = self._queues.begin_flush()
            else:
                self._begin_round_job(job, self._round)
            self.derived_error = None
        except StoreError as error:
            self.derived_failed(error)
        self._job = job or None
        return self._job

    def _is_due(self, now_ms: int) -> bool:
        behind = self._dispatcher.dispatched_offset - max(self._vouched, self._log.start_offset)
        waited = now_ms - self._round_began_ms
        if behind <= 0 or (waited < LEAST_PAUSE_MS and waited >= 0):
            return False
        pause_ms = min(MOST_PAUSE_MS, self._options.flush_consume_queue_thorough_interval)
        return behind >= ROUND_BYTES or not 0 <= waited < pause_ms

    def _begin_round_job(self, job: MaintainJob, mark: Mark) -> None:
        if self._flusher.flushed_offset < mark.offset:
            job.log_flush = self._flusher.begin()
        if self._to_make:
            job.made_files, self._to_make = self._to_make[:QUEUES_IN_JOB], self._to_make[QUEUES_IN_JOB:]
            job.make = partial(self._queues.make_files, job.made_files)
            return
        job.queue_flush = self._queues.begin_flush(mark.offset, QUEUES_IN_JOB)
        if job.queue_flush is not None and len(job.queue_flush.queues) == QUEUES_IN_JOB:
            return  # there may be more
        if self._index is not None:
            job.index_flush = self._index.begin_flush()
        job.mark = mark
        job.checkpoint = partial(self._end_round, self._manifest, self._vouch(mark, clean=False))

    def _end_round(self, manifest: Manifest | None, checkpoint: Checkpoint) -> None:
        """Any thread."""
        if manifest is not None:
            with self._manifest_lock:
                save_manifest(self._root, manifest, self._fs)
        self._checkpoint.write(checkpoint)

    def _describe(self, mark: Mark) -> Manifest:
        index = self._index
        return Manifest(
            mark.offset,
            NOWHERE if self._cleaner.is_correcting else self._log.start_offset,
            0 if index is None else index.end_offset,
            [] if index is None else [file.path.rpartition("/")[2] for file in index.files],
            snapshot(self._queues, self.floors),
        )

    def queue_began_anew(self, queue: ConsumeQueue) -> None:
        """What the manifest knows of it is of messages that are gone."""
        self._healer.forget()
        try:
            self.forget_queues(queue)
        except OSError as error:  # the next manifest knows better; a kill before it skips queue offsets
            log.warning("manifest_not_written", reason=str(error))

    def forget_queues(self, and_this: ConsumeQueue | None = None) -> None:
        """Queues were deleted on purpose: say so at once, or the next start would make them again. OSError.

        The manifest on disk speaks for its checkpoint, so it only loses those queues. So does the one of a round that
        is under way, whose job may be about to write it.
        """
        with self._manifest_lock:
            if self._manifest is not None:
                self._manifest.queues = self._still_there(self._manifest, and_this)
            known = load_manifest(self._root, self._fs)
            if known is not None:
                known.queues = self._still_there(known, and_this)
                save_manifest(self._root, known, self._fs)

    def _still_there(self, manifest: Manifest, but: ConsumeQueue | None) -> list[KnownQueue]:
        queues = ((known, self._queues.queue(known.topic, known.queue_id)) for known in manifest.queues)
        return [known for known, queue in queues if queue is not None and queue is not but]

    def _vouch(self, mark: Mark, *, clean: bool) -> Checkpoint:
        index_ms = mark.timestamp if self._index is None else self._index.end_timestamp
        times = Times(mark.timestamp, mark.timestamp, index_ms)
        return Checkpoint(times, Vouched(mark.offset, mark.last_record, clean))

    def finish(self, job: MaintainJob) -> bool:
        """Take over what the job reached. True: a round is under way, the next job may follow at once."""
        self._job = None
        self._queues.note_made(job.made_files)
        if job.error is not None:
            log.error("upkeep_failed", reason=job.error)
            if job.unsafe:
                self._log.poison(job.error)
                return False
        if job.log_flush is not None:
            self._flusher.finish(job.log_flush)
        if job.queue_flush is not None:
            self._queues.end_flush(job.queue_flush)
        if job.index_flush is not None and self._index is not None:
            self._index.end_flush(job.index_flush)
        if job.mark is not None:
            self._round = None
            if job.error is None:
                self._vouched = job.mark.offset
        return self._round is not None

    def checkpoint(self, *, clean: bool) -> None:
        """Everything safe, and a checkpoint that says so. The log is flushed already. StoreError, OSError.

        ``clean``: nothing follows, so that the next start may compare what it finds with what is written here.
        """
        if self._job is not None:  # its caller was cancelled
            if not self._job.ran:
                self._job.run()
            self.finish(self._job)
        if self._log.poison_reason is not None:
            raise StorePoisoned(self._log.poison_reason)
        self._queues.flush()
        if self._index is not None:
            self._index.flush()
        mark = self._dispatcher.mark
        complete = mark.offset == self._log.end_offset
        manifest = self._describe(mark)
        if clean:
            for known in manifest.queues:
                known.changed_ns = newest_change(self._root, known, self._fs)
        self._end_round(manifest, self._vouch(mark, clean=clean and complete))
        self._vouched = mark.offset
