"""From tails to safe files: when units of consume queues are written, and which files a flush must sync.

Owns: the tails, how much they hold together, and for each queue the first commitlog offset whose unit is not safe on
disk. Only ``QueueFlush.run`` may happen in another thread.
"""

from __future__ import annotations

from contextlib import suppress

from store.files import FileSystem, OpenFile
from store.queue import ConsumeQueue, Tail
from store.queuefiles import UNIT_SIZE, QueueFiles, store_error

_LEAST_FLUSH_BYTES = 2 * 4096


class QueueFlush:
    """Files to be made safe. ``run`` belongs into a thread; then ``ConsumeQueues.end_flush``."""

    __slots__ = ("_directories", "_files", "_fs", "queues")

    def __init__(
        self,
        fs: FileSystem,
        queues: dict[ConsumeQueue, int],
        files: dict[str, OpenFile],
        directories: set[str],
    ) -> None:
        self._fs = fs
        self.queues = queues
        self._files = files
        self._directories = directories

    def run(self) -> None:
        """fdatasync each file, and the directories of files that were made. StoreError with the name.

        Lets go of the files at the end, so that the next flush may open as many.
        """
        path = ""
        try:
            for path in self._files:
                self._fs.fdatasync(self._files[path].fd)
            for path in sorted(self._directories, reverse=True):  # what is inside first
                with suppress(FileNotFoundError):  # the topic was deleted meanwhile
                    self._fs.sync_directory(path)
        except OSError as error:
            raise store_error(error, path, "flush") from error
        self._files.clear()


class QueueWriter:
    """All tails of a store, and what of its queues is not safe."""

    __slots__ = ("_dirty", "_files", "_in_flight", "_other_files", "_tails", "pending_bytes")

    def __init__(self, files: QueueFiles) -> None:
        self._files = files
        self._tails: dict[ConsumeQueue, None] = {}  # queues with a tail, oldest tail first
        # First physical offset of each queue that is not safe on disk: waiting, and inside a running flush.
        self._dirty: dict[ConsumeQueue, int] = {}
        self._in_flight: dict[ConsumeQueue, int] = {}
        self._other_files: set[str] = set()  # files with unsafe bytes that are not the last of their queue
        self.pending_bytes = 0

    def append(self, queue: ConsumeQueue, units: bytes, physical_offset: int) -> None:
        """Units at the end of a queue, which may have no tail yet. The queue's physical end is the caller's."""
        tail = queue.tail
        if tail is None:
            tail = queue.tail = Tail(queue.max_offset)
            self._tails[queue] = None
            self._dirty.setdefault(queue, physical_offset)
        tail.units += units
        queue.max_offset += len(units) // UNIT_SIZE
        self.pending_bytes += len(units)

    def overwrite(self, queue: ConsumeQueue, offset: int, unit: bytes, physical_offset: int) -> None:
        """Replace one unit inside a queue. StoreFull or StoreError; nothing counts as changed then."""
        tail = queue.tail
        if tail is not None and offset >= tail.start:
            at = (offset - tail.start) * UNIT_SIZE
            tail.units[at : at + UNIT_SIZE] = unit
        else:
            position = offset * UNIT_SIZE
            self._files.write(queue.topic, queue.queue_id, position, unit)
            base = self._files.base_of(position)
            self._other_files.add(self._files.path(queue.topic, queue.queue_id, base))
        self._mark(queue, physical_offset)

    def cut(self, queue: ConsumeQueue, offset: int) -> None:
        """Take everything from ``offset`` on out of tail and files; the queue's ends are the caller's."""
        tail = queue.tail
        if tail is not None:
            keep = max(0, (offset - tail.start) * UNIT_SIZE)
            self.pending_bytes -= len(tail.units) - min(keep, len(tail.units))
            del tail.units[keep:]
            if not tail.units:
                queue.tail = None
                del self._tails[queue]
        if queue.tail is None:
            changed = self._files.cut(queue.topic, queue.queue_id, offset * UNIT_SIZE)
            if changed is not None:
                self._other_files.add(changed)

    def mark_cut(self, queue: ConsumeQueue) -> None:
        """A cut is unsafe like an append: what was cut off must not come back after power loss."""
        self._mark(queue, queue.max_physical_end)

    def doubt(self, queue: ConsumeQueue) -> None:
        """Nobody knows whether the queue's files, as they are, are on disk: the next flush makes them so."""
        directory = self._files.directory(queue.topic, queue.queue_id)
        self._files.made_directories.update((directory, directory.rpartition("/")[0], self._files.root))
        self._mark(queue, queue.max_physical_end)

    def _mark(self, queue: ConsumeQueue, physical_offset: int) -> None:
        self._dirty[queue] = min(self._dirty.get(queue, physical_offset), physical_offset)

    def forget(self, queue: ConsumeQueue) -> None:
        """The queue is about to be deleted or begun anew."""
        if queue.tail is not None:
            self.pending_bytes -= len(queue.tail.units)
            queue.tail = None
            del self._tails[queue]
        self._dirty.pop(queue, None)
        self._in_flight.pop(queue, None)

    def write_oldest(self, limit: int) -> int:
        """Write up to ``limit`` tails, oldest first; returns how many. StoreFull or StoreError, units stay then."""
        written = 0
        while written < limit and self._tails:
            self._write_tail(next(iter(self._tails)))
            written += 1
        return written

    def _write_tail(self, queue: ConsumeQueue) -> None:
        tail = queue.tail
        if tail is None:
            return
        position = tail.start * UNIT_SIZE
        self._files.write(queue.topic, queue.queue_id, position, tail.units)
        last = self._files.base_of(position + len(tail.units) - 1)
        for base in range(self._files.base_of(position), last, self._files.file_size):
            self._other_files.add(self._files.path(queue.topic, queue.queue_id, base))
        self.pending_bytes -= len(tail.units)
        queue.tail = None
        del self._tails[queue]

    def files_to_make(self) -> list[str]:
        """The files that begin inside a tail: writing it would have to make them."""
        size = self._files.file_size
        paths: list[str] = []
        for queue in self._tails:
            tail = queue.tail
            if tail is not None:
                begin = tail.start * UNIT_SIZE
                bases = range(begin + -begin % size, begin + len(tail.units), size)
                paths += [self._files.path(queue.topic, queue.queue_id, base) for base in bases]
        self._files.removed_directories = set() if paths else None
        return paths

    def begin_flush(self, below: int | None, limit: int) -> QueueFlush | None:
        """See ``ConsumeQueues.begin_flush``."""
        assert not self._in_flight, "one flush at a time"
        chosen: list[ConsumeQueue] = []
        for queue, unsafe_from in self._dirty.items():
            tail = queue.tail
            if unsafe_from < below if below is not None else tail is not None and len(tail.units) >= _LEAST_FLUSH_BYTES:
                chosen.append(queue)
                if len(chosen) == limit:
                    break
        if not chosen and (below is None or not (self._other_files or self._files.made_directories)):
            return None
        for queue in chosen:
            self._write_tail(queue)
        files = self._open_for_flush(chosen)
        self._in_flight = {queue: self._dirty.pop(queue) for queue in chosen}
        job = QueueFlush(self._files.fs, self._in_flight, files, self._files.made_directories)
        self._files.made_directories = set()
        self._other_files = set()
        return job

    def _open_for_flush(self, queues: list[ConsumeQueue]) -> dict[str, OpenFile]:
        paths = set(self._other_files)
        for queue in queues:
            base = self._files.base_of(max(0, queue.max_offset * UNIT_SIZE - 1))
            paths.add(self._files.path(queue.topic, queue.queue_id, base))
        files: dict[str, OpenFile] = {}
        for path in sorted(paths):
            try:
                files[path] = self._files.open.get(path)
            except FileNotFoundError:
                continue  # a queue without units, or deleted since
            except OSError as error:
                raise store_error(error, path, "open") from error
        return files

    def end_flush(self, job: QueueFlush) -> None:
        """See ``ConsumeQueues.end_flush``."""
        assert job.queues is self._in_flight
        self._in_flight = {}

    def safe_physical_offset(self, dispatched: int) -> int:
        """See ``ConsumeQueues.safe_physical_offset``."""
        return min((dispatched, *self._dirty.values(), *self._in_flight.values()))
