"""Up to where the log is safe on disk, and the jobs that move that mark.

Owns ``flushed_offset`` and the rule of group commit: a job takes its target when it begins, so one fdatasync covers
everything that was appended before, from whichever connection it came.

A job has three parts: ``begin`` and ``finish`` on the thread that appends, ``run`` in any thread. Two jobs may be
under way at once (a send's and the upkeep's) and end in any order, but their ``run``s exclude each other, and none
follows one that failed. A flush that failed is never tried again: the kernel may have dropped the pages, and reports
it once only; a second fdatasync would then report success for bytes that are lost. The log is poisoned instead.

The names of the log's files are no concern here: they are safe before anything is written under them.
"""

from __future__ import annotations

import threading

from store.commitlog import CommitLog
from store.errors import StorePoisoned
from store.files import FileSystem, OpenFile


class _Lane:
    """What the jobs of one log share: one runs at a time, and none after a failure."""

    __slots__ = ("failure", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failure: str | None = None


class FlushJob:
    """One flush of the log up to ``target``."""

    __slots__ = ("_files", "_fs", "_lane", "_refusal", "done", "target")

    def __init__(
        self,
        target: int,
        files: list[OpenFile],
        fs: FileSystem,
        lane: _Lane,
        refusal: str | None = None,
    ) -> None:
        self.target = target
        self.done = False
        self._lane = lane
        self._refusal = refusal
        self._files = files
        self._fs = fs

    def run(self) -> None:
        """Any thread. OSError: poison the store, nothing about ``target`` is known. StorePoisoned: it is already."""
        with self._lane.lock:
            refusal = self._refusal or self._lane.failure
            if refusal is not None:
                raise StorePoisoned(refusal)
            try:
                for file in self._files:
                    self._fs.fdatasync(file.fd)
            except OSError as error:
                self._lane.failure = f"an earlier flush failed: {error.strerror or error}"
                raise
        self.done = True


class Flusher:
    """The flush state of one log."""

    def __init__(self, log: CommitLog, fs: FileSystem, flushed_offset: int) -> None:
        self.flushed_offset = flushed_offset
        self._log = log
        self._fs = fs
        self._lane = _Lane()

    @property
    def dirty_bytes(self) -> int:
        return self._log.end_offset - self.flushed_offset

    def begin(self) -> FlushJob:
        """A job for everything appended so far (perhaps nothing). After a failure, one that only raises."""
        if self._log.poison_reason is not None:
            return FlushJob(self.flushed_offset, [], self._fs, self._lane, self._log.poison_reason)
        target = self._log.end_offset
        files = self._log.dirty_files(self.flushed_offset) if target > self.flushed_offset else []
        return FlushJob(target, files, self._fs, self._lane)

    def finish(self, job: FlushJob) -> None:
        """The job's ``run`` returned."""
        if not job.done:
            raise ValueError("the flush did not run to its end")
        self.flushed_offset = max(self.flushed_offset, job.target)
        self._log.flushed(self.flushed_offset)
