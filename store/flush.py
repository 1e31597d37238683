"""Up to where the log is safe on disk, and the jobs that move that mark.

Owns ``flushed_offset`` and the rule of group commit: a job takes its target when it begins, so one fdatasync covers
everything that was appended before, from whichever connection it came.

A job has three parts: ``begin`` and ``done`` on the thread that appends, ``run`` in any thread. Only one job
of a kind is under way at a time. A flush that failed is never tried again: the kernel may have dropped the pages,
and a second fdatasync would then report success for bytes that are lost. The log is poisoned instead.
"""

from __future__ import annotations

from store.commitlog import CommitLog
from store.errors import StorePoisoned
from store.files import FileSystem, OpenFile


class FlushJob:
    """One flush of the log up to ``target``."""

    __slots__ = ("_directory", "_files", "_fs", "_refusal", "done", "target")

    def __init__(
        self,
        target: int,
        files: list[OpenFile],
        directory: str | None,
        fs: FileSystem,
        refusal: str | None = None,
    ) -> None:
        self.target = target
        self.done = False
        self._refusal = refusal
        self._files = files
        self._directory = directory
        self._fs = fs

    def run(self) -> None:
        """Any thread. OSError: poison the store, nothing about ``target`` is known. StorePoisoned: it is already."""
        if self._refusal is not None:
            raise StorePoisoned(self._refusal)
        for file in self._files:
            self._fs.fdatasync(file.fd)
        if self._directory is not None:
            self._fs.sync_directory(self._directory)
        self.done = True


class Flusher:
    """The flush state of one log."""

    def __init__(self, log: CommitLog, fs: FileSystem, flushed_offset: int) -> None:
        self.flushed_offset = flushed_offset
        self._log = log
        self._fs = fs

    @property
    def dirty_bytes(self) -> int:
        return self._log.end_offset - self.flushed_offset

    def begin(self) -> FlushJob:
        """A job for everything appended so far (perhaps nothing). After a failure, one that only raises."""
        if self._log.poison_reason is not None:
            return FlushJob(self.flushed_offset, [], None, self._fs, self._log.poison_reason)
        target = self._log.end_offset
        files = self._log.dirty_files(self.flushed_offset) if target > self.flushed_offset else []
        directory = self._log.directory if self._log.take_new_names() else None
        return FlushJob(target, files, directory, self._fs)

    def finish(self, job: FlushJob) -> None:
        """The job's ``run`` returned."""
        if not job.done:
            raise ValueError("the flush did not run to its end")
        self.flushed_offset = max(self.flushed_offset, job.target)
        self._log.flushed(self.flushed_offset)
