"""The file ``abort``: there while a store is open, so that the next start knows how the last run ended.

Official programs look only at whether it is there. What ours writes into it tells the end of a process from a loss of
power: as long as the page cache that took the writes lives, everything written is there, also what was never flushed.

The note is believed only where nothing contradicts it. It names the boot; itself and the commitlog's directory, so that
neither may be a copy; and when ``lock`` was last changed, which an official 4.x broker does at each start, leaving
``abort`` as it is. After a failed write or flush the note goes: the page cache may have dropped what it could not
write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Final

import structlog

from store.files import FileSystem

log = structlog.get_logger(__name__)

NOTE_BYTES: Final = 256  # always, so that one write replaces one note by another


class Ending(Enum):
    """How the last run ended, and so what its newest records may have become."""

    CLOSED = "closed"
    """In order: nothing is missing."""
    KILLED = "killed"
    """The process ended: the last write may be there in part, whole pages of it."""
    KILLED_REPLICA = "killed as a replica"
    """The same, and what a master sends may end anywhere inside a record."""
    UNKNOWN = "unknown"
    """Power may have been lost: what was not flushed may read as zeros, sector by sector."""


class AbortFile:
    """The ``abort`` of one store. Methods raise OSError unless they say otherwise."""

    def __init__(self, root: str, commit_log: str, fs: FileSystem) -> None:
        """``commit_log``: the directory of the commitlog, which may lie elsewhere."""
        self._path = f"{root}/abort"
        self._lock_path = f"{root}/lock"
        self._commit_log = commit_log
        self._fs = fs

    def ending(self) -> Ending:
        """How the run ended that left the file, or took it away."""
        if self._fs.stat(self._path) is None:
            return Ending.CLOSED
        with suppress(OSError):
            content = self._content()
            for ending in (Ending.KILLED, Ending.KILLED_REPLICA):
                if content == self._note(ending):
                    return ending
        return Ending.UNKNOWN

    def make(self) -> None:
        """The store is open; to be followed by a sync of its directory."""
        if self._fs.stat(self._path) is None:
            self._fs.close(self._fs.open(self._path, create=True))

    @contextmanager
    def recovering(self, *, replica: bool) -> Iterator[None]:
        """Around what brings the log in order. Afterwards it can be trusted, and so can what is written to it as long
        as the page cache lives.

        ``replica``: from then on a master's bytes are written, not own records.
        """
        try:
            yield
        except OSError:
            self.distrust()
            raise
        ending = Ending.KILLED_REPLICA if replica else Ending.KILLED
        try:
            self._vouch(self._note(ending))
        except OSError as error:
            if self.ending() not in (ending, Ending.UNKNOWN):
                raise
            log.warning("abort_file_not_written", file=self._path, reason=str(error))

    def distrust(self) -> None:
        """A write or a flush failed: what is in the page cache is no longer what was written. Never raises."""
        try:
            fd = self._fs.open(self._path)
            try:
                self._fs.truncate(fd, 0)
            finally:
                self._fs.close(fd)
        except OSError as error:
            log.warning("abort_file_not_written", file=self._path, reason=str(error))

    def remove(self) -> None:
        """The store is closed; to be followed by a sync of its directory."""
        self._fs.unlink(self._path)

    def _note(self, ending: Ending) -> bytes:
        """What the file holds during a run that would end so."""
        fs = self._fs
        abort, commit_log, lock = map(fs.identity, (self._path, self._commit_log, self._lock_path))
        life = (fs.boot_id(), abort.device, abort.inode, commit_log.device, commit_log.inode, lock.changed_ns)
        return " ".join(map(str, (*life, ending.value))).encode().ljust(NOTE_BYTES - 1) + b"\n"

    def _content(self) -> bytes:
        fd = self._fs.open(self._path, readonly=True)
        try:
            return self._fs.pread(fd, NOTE_BYTES + 1, 0)
        finally:
            self._fs.close(fd)

    def _vouch(self, note: bytes) -> None:
        """Leaves a note alone that says the same: a process may end between two calls."""
        if self._content() == note:
            return
        fd = self._fs.open(self._path)
        try:
            self._fs.write_all(fd, note, 0)
            self._fs.truncate(fd, len(note))
        finally:
            self._fs.close(fd)
