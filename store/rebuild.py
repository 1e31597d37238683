"""Bring consume queues and index in step with the log when a store is opened.

Owns the judgement of derived files: which can be used as they are, which are made again from the log, and from where
dispatch goes on. ``judge`` loads and looks; ``mend`` then cuts, deletes and puts again.

What is believed
- Our checkpoint agrees with the directory and its manifest is there: everything below its offset, as far as it has
  at least the queues, offsets and index files of the manifest and its files look sound. What looks wrong behind that
  (a torn tail) is cut off and put again with the end of the log; only damage in front of it makes the whole log be
  read. After an orderly stop, a queue whose files were changed since is read completely.
- Otherwise (an official broker wrote last, the checkpoint is lost) nothing: the whole log is walked once and the
  extent of every queue compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import msgspec
import structlog

from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.dispatch import Dispatcher, Mark
from store.files import FileSystem
from store.floors import Floors, seen_floors, settle
from store.index import KeyIndex
from store.jsonfile import load_json
from store.manifest import KnownQueue, Manifest, newest_change, withdraw
from store.queue import ConsumeQueue
from store.queuefiles import UNIT_SIZE, file_base
from store.queueload import QueueDamage
from store.recovery import KEPT_DIRECTORY, LogVerdict, Progress
from store.scan import Record, walk

log = structlog.get_logger(__name__)

QueueName = tuple[str, int]
_SYSTEM: Final = ("RMQ_SYS_", "SCHEDULE_TOPIC_")


class DerivedVerdict(NamedTuple):
    """What is to be made again."""

    queues: dict[QueueName, str]  # with the reason
    index_reason: str | None  # None if the index is good
    compare: bool  # nothing vouches for the queues: compare all of them with the log


class Derived:
    """The opening of one store's derived files."""

    def __init__(
        self,
        root: str,
        fs: FileSystem,
        verdict: LogVerdict,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        index: KeyIndex | None,
        dispatcher: Dispatcher,
        progress: Progress,
        damaged: Callable[[int, int, str], None],
    ) -> None:
        self._root = root
        self._fs = fs
        self._log_verdict = verdict
        self._log = commit_log
        self._queues = queues
        self._index = index
        self._dispatcher = dispatcher
        self._progress = progress
        self._damaged = damaged
        self._begin = max(min(verdict.begin, verdict.end), commit_log.start_offset)
        self._indexed_until = 0
        self._put_count = 0
        self.rebuilt = False  # the next checkpoint is due at once
        self.floors: Floors = {}
        self._vouched_ends: dict[QueueName, int] | None = None  # of each queue; None if nothing vouches for them
        self._cuts: list[QueueName] = []  # bad only behind what is vouched for
        self._loose_index_files: list[str] = []  # the same

    # --- judge ---------------------------------------------------------------------------------------

    def judge(self, manifest: Manifest | None) -> DerivedVerdict:
        """Load the derived files and compare them with what is known. Changes nothing on disk. StoreError."""
        self._queues.load(self._log.start_offset)
        log_verdict = self._log_verdict
        self.floors = seen_floors(self._queues, manifest, log_verdict.end, self._log.file_size)
        self._queues.floors = self.floors
        trusted = manifest is not None and manifest.vouches and log_verdict.vouched
        if manifest is not None and trusted and manifest.offset >= log_verdict.begin:
            self._vouched_ends = {(known.topic, known.queue_id): known.max_offset for known in manifest.queues}
        bad: dict[QueueName, str] = {}
        torn: dict[QueueName, str] = {}
        for damage in self._queues.damages:
            if damage.queue_id >= 0 and not self._is_file(damage):
                kind = torn if self._is_behind_vouched(damage) else bad
                kind.setdefault((damage.topic, damage.queue_id), f"{damage.file}: {damage.reason}")
        if manifest is not None:
            topics = None if trusted else configured_topics(self._root, self._fs)
            for known in manifest.queues:
                reason = self._complaint(known, manifest)
                if reason is None:
                    continue
                if _was_deleted(known.topic, topics):  # by an official broker, which does not know the manifest
                    self.floors.pop((known.topic, known.queue_id), None)
                else:
                    bad.setdefault((known.topic, known.queue_id), reason)
            self._add_changed(manifest, bad)
        self._cuts = [name for name in torn if name not in bad]
        for topic, queue_id in self._cuts:
            log.info("consume_queue_tail_torn", topic=topic, queue_id=queue_id, reason=torn[topic, queue_id])
        return DerivedVerdict(bad, self._judge_index(manifest if trusted else None), not trusted)

    def _is_behind_vouched(self, damage: QueueDamage) -> bool:
        """Whether everything in front of the damage is vouched for, and the rest comes with the end of the log."""
        if self._vouched_ends is None:
            return False
        base = file_base(damage.file.rpartition("/")[2])
        if base is None:
            return False
        if damage.at_end and damage.position < 0:
            return True  # the newest file has a wrong size; what is vouched for must be there all the same
        end = self._vouched_ends.get((damage.topic, damage.queue_id), 0)
        return base + max(damage.position, 0) >= end * UNIT_SIZE

    def _is_file(self, damage: QueueDamage) -> bool:
        """Whether something lies where a queue's directory belongs."""
        status = self._fs.stat(self._directory_of(damage))
        return status is not None and not status.is_directory

    def _directory_of(self, damage: QueueDamage) -> str:
        return f"{self._root}/consumequeue/{damage.topic}/{damage.queue_id}"

    def _put_aside_files(self) -> None:
        """Move what is in the way of a queue's directory to where recovery keeps things."""
        for damage in self._queues.damages:
            if damage.queue_id >= 0 and self._is_file(damage):
                kept = f"{self._root}/{KEPT_DIRECTORY}/consumequeue-{damage.topic}-{damage.queue_id}"
                self._fs.makedirs(f"{self._root}/{KEPT_DIRECTORY}")
                self._fs.rename(self._directory_of(damage), kept)
                log.warning("consume_queue_entry_moved", file=damage.file, reason=damage.reason, kept_as=kept)

    def _complaint(self, known: KnownQueue, manifest: Manifest) -> str | None:
        queue = self._queues.queue(known.topic, known.queue_id)
        if not known.max_offset:
            return None  # nothing is known but its floor
        if queue is None:
            return f"the queue is missing, it had offsets up to {known.max_offset}"
        if queue.max_offset < known.max_offset:
            return f"the queue ends at {queue.max_offset}, it had offsets up to {known.max_offset}"
        if queue.min_offset > known.min_offset and manifest.log_begin == self._log.start_offset:
            return f"the queue begins at {queue.min_offset}, it had offsets from {known.min_offset}"
        return None

    def _add_changed(self, manifest: Manifest, bad: dict[QueueName, str]) -> None:
        """After an orderly stop: read the queues that somebody else touched since."""
        for known in manifest.queues:
            name = (known.topic, known.queue_id)
            if not known.changed_ns or name in bad:
                continue
            if newest_change(self._root, known, self._fs) != known.changed_ns:
                queue = self._queues.queue(*name)
                for damage in self._queues.verify(queue) if queue is not None else ():
                    bad.setdefault(name, f"{damage.file} at {damage.position}: {damage.reason}")

    def _judge_index(self, manifest: Manifest | None) -> str | None:
        index = self._index
        if index is None:
            return None
        index.load()
        for damage in index.damages:
            name = damage.file.rpartition("/")[2]
            if manifest is None or self._vouched_ends is None or name in manifest.index_files or not name.isdigit():
                return f"{damage.file}: {damage.reason}"
            self._loose_index_files.append(damage.file)
        if self._log.start_offset >= self._begin:
            return None
        if manifest is None:
            return "nothing vouches for it"
        self._indexed_until = manifest.index_end
        there = {file.path.rpartition("/")[2] for file in index.files}
        missing = [name for name in manifest.index_files if name not in there]
        if missing:
            return f"index file {missing[0]} is missing"
        # The newest file may have its name and not its header.
        end = max((file.end_offset for file in index.files), default=0)
        if end < manifest.index_end:
            return f"the index ends at {end}, it had reached {manifest.index_end}"
        return None

    # --- mend ----------------------------------------------------------------------------------------

    def mend(self, verdict: DerivedVerdict) -> None:
        """Make the derived files what the log says, up to its end. StoreError."""
        started = monotonic()
        clean = self._log_verdict.clean
        end = self._log_verdict.end
        compare = verdict.compare and end > self._log.start_offset
        if verdict.queues or verdict.index_reason is not None or compare:
            # A stop in the middle of this must not leave a manifest that speaks for what is gone.
            withdraw(self._root, self._fs, self.floors)
            self.rebuilt = True
        self._put_aside_files()
        for (topic, queue_id), reason in verdict.queues.items():
            log.warning("consume_queue_rebuilt", topic=topic, queue_id=queue_id, reason=reason)
            self._queues.reset(topic, queue_id)
        self._cut_tails()
        self._queues.truncate_from_physical(end if clean else self._begin, mend_tails=not clean)
        keys_from = self._mend_index(verdict.index_reason)
        wanted = set(verdict.queues)
        everything = verdict.compare and len(self._queues) == len(wanted)
        if verdict.compare and not everything:
            wanted |= self._compare_with_log()
        begin = self._log.start_offset if wanted or everything else keys_from
        if begin < self._begin:
            self._put_again(begin, keys_from, wanted, everything)
        self._walk("dispatching the end of the commitlog", self._begin, end, self._put)
        self._dispatcher.restart_at(
            Mark(max(end, self._begin), self._log_verdict.last_record, self._log_verdict.last_timestamp)
        )
        if self.rebuilt or self._put_count:
            seconds = monotonic() - started
            log.info(
                "derived_files_ready",
                rebuilt_queues=len(wanted),
                rebuilt_index=verdict.index_reason is not None,
                records=self._put_count,
                records_per_second=int(self._put_count / seconds) if seconds else 0,
            )
        self._queues.anomalies.forget()
        if settle(self.floors, self._queues):
            self.rebuilt = True

    def _cut_tails(self) -> None:
        """Back to what is vouched for; the end of the log is put again anyway."""
        assert self._vouched_ends is not None or not self._cuts
        for name in self._cuts:
            end = (self._vouched_ends or {}).get(name, 0)
            queue = self._queues.queue(*name)
            if queue is None or end == 0:
                self._queues.reset(*name)
            else:
                self._queues.cut(queue, end)

    def _remove_loose_index_files(self, index: KeyIndex) -> None:
        """Files that were made after the checkpoint and did not reach the disk whole."""
        for path in self._loose_index_files:
            log.info("index_file_torn", file=path)
            self._fs.unlink(path)
        if self._loose_index_files:
            self._fs.sync_directory(f"{self._root}/index")
            index.load()

    def _mend_index(self, reason: str | None) -> int:
        """Cut or empty the index. Returns the begin of a record from which on keys are missing."""
        index = self._index
        if index is None:
            return self._begin
        if reason is not None:
            log.warning("index_rebuilt", reason=reason)
            index.reset()
            return self._log.start_offset
        self._remove_loose_index_files(index)
        if self._log_verdict.clean:
            index.recover(self._log_verdict.end, None)
            return self._begin
        # What was put after the checkpoint may be there in part: all of it is put again.
        index.recover(self._begin, self._begin)
        if not index.damages and index.end_offset >= self._indexed_until:
            return self._begin
        return max(index.end_offset, self._log.start_offset)

    def _walk(self, what: str, begin: int, end: int, take: Callable[[Record], None]) -> None:
        for records in walk(self._log.read_or_nothing, self._log.file_size, begin, end, self._damaged):
            for record in records:
                take(record)
            self._put_count += len(records)
            self._write_pending()
            self._progress(what, records[-1].physical_offset - begin, end - begin)

    def _compare_with_log(self) -> set[QueueName]:
        """Queues whose extent is not what the log says, emptied; only records below ``_begin`` count."""
        seen: dict[tuple[bytes, int], list[int]] = {}

        def take(record: Record) -> None:
            if record.sys_flag & 0xC in (0, 8):
                extent = seen.get((record.topic, record.queue_id))
                if extent is None:
                    seen[record.topic, record.queue_id] = [record.queue_offset, record.queue_offset]
                else:
                    extent[1] = record.queue_offset

        self._walk("comparing the queues with the commitlog", self._log.start_offset, self._begin, take)
        topics = configured_topics(self._root, self._fs)
        wrong: set[QueueName] = set()
        for (topic_data, queue_id), (first, last) in seen.items():
            topic = topic_data.decode("utf-8", "replace")
            queue = self._queues.queue(topic, queue_id)
            if queue is None and _was_deleted(topic, topics):
                continue
            reason = self._compare(queue, first, last)
            if reason is not None:
                wrong.add((topic, queue_id))
                log.warning("consume_queue_rebuilt", topic=topic, queue_id=queue_id, reason=reason)
                self._queues.reset(topic, queue_id)
        return wrong

    def _compare(self, queue: ConsumeQueue | None, first: int, last: int) -> str | None:
        """What is wrong with a queue of which the log has the offsets from ``first`` to ``last``."""
        if queue is None:
            return "the queue is missing"
        if queue.max_offset <= last:
            return f"the queue ends at {queue.max_offset}, the log has offset {last}"
        if queue.min_offset > first:
            return f"the queue begins at {queue.min_offset}, the log has offset {first}"
        damages = self._queues.verify(queue)
        return f"{damages[0].file} at {damages[0].position}: {damages[0].reason}" if damages else None

    def _put_again(self, begin: int, keys_from: int, names: set[QueueName], everything: bool) -> None:
        """Put records below ``_begin`` into the named queues (or into all), from ``keys_from`` into the index."""
        wanted = {(topic.encode(), queue_id) for topic, queue_id in names}
        put = self._dispatcher.put_record

        def take(record: Record) -> None:
            if everything or (record.topic, record.queue_id) in wanted:
                put(record)
            elif record.physical_offset >= keys_from:
                put(record, queues=False)

        self._walk("rebuilding consume queues and index", begin, self._begin, take)

    def _put(self, record: Record) -> None:
        self._dispatcher.put_record(record)

    def _write_pending(self) -> None:
        if self._queues.wants_write:
            self._queues.write_pending()
        if self._index is not None and self._index.wants_write:
            self._index.write_pending()


def _was_deleted(topic: str, topics: frozenset[str] | None) -> bool:
    """Whether queues of the topic are missing because it was deleted, and they with it."""
    return topics is not None and topic not in topics and not topic.startswith(_SYSTEM)


class _TopicsFile(msgspec.Struct, rename="camel"):
    topic_config_table: dict[str, msgspec.Raw]


def configured_topics(root: str, fs: FileSystem) -> frozenset[str] | None:
    """The names in ``config/topics.json``; None if it cannot be read, so that every topic counts as wanted."""
    data = load_json(f"{root}/config/topics.json", fs=fs)
    try:
        return None if data is None else frozenset(msgspec.json.decode(data, type=_TopicsFile).topic_config_table)
    except msgspec.DecodeError:
        return None
