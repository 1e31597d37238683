"""Delete what retention lets go: old commitlog files, then what was derived from them.

Owns the rhythm of cleaning and the order of deletion. A file leaves the log first (nobody finds it any more), then the
disk (in a thread: removing a gigabyte takes its time), then the queues' minimum offsets follow and their
old files go, some queues a round so that ten thousand do not stop the loop; at last index files.
"""

from __future__ import annotations

from typing import Final

import structlog

from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.errors import StoreError
from store.files import FileSystem
from store.index import KeyIndex
from store.options import StoreOptions
from store.queue import ConsumeQueue
from store.retention import FORCED_PERCENT, FULL_PERCENT, Retention

log = structlog.get_logger(__name__)

QUEUES_A_ROUND: Final = 500


class Cleaner:
    """The cleaning of one store."""

    def __init__(
        self,
        options: StoreOptions,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        index: KeyIndex | None,
        fs: FileSystem,
    ) -> None:
        self._log = commit_log
        self._queues = queues
        self._index = index
        self._fs = fs
        self._root = options.store_path_root_dir
        self._options = options
        self._next_ms = 0
        self._log_min = commit_log.start_offset
        self._waiting: list[ConsumeQueue] = []  # their minimum offset may be too low
        self.retention = Retention(options)
        self.disk_percent = 0

    @property
    def is_correcting(self) -> bool:
        """Minimum offsets of some queues are still those from before the last deletion."""
        return bool(self._waiting)

    def refusal(self) -> str | None:
        """Why no message is taken, if the disk is too full."""
        if not self.retention.disk_full:
            return None
        return (
            f"disk full: {self.disk_percent} % of the commitlog's file system is used, "
            f"messages are refused above {FULL_PERCENT} % until it is {FORCED_PERCENT} % again"
        )

    def begin(self, now_ms: int) -> list[str]:
        """One round. Returns the files to remove from disk: pass them to ``remove`` in any thread. OSError."""
        if self._waiting:
            self._correct_queues()
        if 0 <= self._next_ms - now_ms <= self._options.clean_resource_interval:
            return []
        self._next_ms = now_ms + self._options.clean_resource_interval
        return self._detach(now_ms)

    def _detach(self, now_ms: int) -> list[str]:
        was_full = self.retention.disk_full
        self.disk_percent = self._fs.usage(self._log.directory).percent
        modified_ms: list[int] = []
        for base in self._log.bases():
            if base >= self._log.end_offset:
                break  # made ahead
            status = self._fs.stat(self._log.path(base))
            modified_ms.append(now_ms if status is None else status.mtime_ns // 1_000_000)
        queues_percent = self._fs.usage(self._root).percent
        verdict = self.retention.decide(now_ms, modified_ms, self.disk_percent, queues_percent)
        if self.retention.disk_full != was_full:
            log.warning("disk_full" if not was_full else "disk_has_space", percent=self.disk_percent)
        paths = [self._log.detach_first_file() for _ in range(verdict.files)]
        for path in paths:
            log.info("commitlog_file_deleted", file=path, reason=verdict.reason)
        if self._log.start_offset > self._log_min:
            self._log_min = self._log.start_offset
            self._waiting = list(self._queues)
        return paths

    def remove(self, paths: list[str]) -> None:
        """Any thread. OSError: the file comes back into the log at the next start.

        One file's removal is safe before the next one's, so that a loss of power leaves no hole in the log.
        """
        for path in paths:
            self._fs.unlink(path)
            self._fs.sync_directory(self._log.directory)

    def _correct_queues(self) -> None:
        """Minimum offsets behind the deleted records, and the queue files that are wholly below them."""
        try:
            for _ in range(min(QUEUES_A_ROUND, len(self._waiting))):
                self._queues.delete_expired(self._waiting[-1], self._log_min)
                self._waiting.pop()
            if not self._waiting and self._index is not None:
                self._index.delete_expired(self._log_min)
        except StoreError as error:
            log.warning("cleaning_failed", reason=str(error))
