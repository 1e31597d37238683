"""The file ``abort``: there while a store is open, so that the next start knows how the last run ended.

Official programs look only at whether it is there. What ours writes into it tells the end of a process from a loss of
power: as long as the page cache that took the writes lives, everything written is there, also what was never flushed.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import structlog

from store.files import FileSystem

log = structlog.get_logger(__name__)

_LONGEST: Final = 256


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
    """The ``abort`` of one store. All methods: OSError unless they say otherwise."""

    def __init__(self, path: str, fs: FileSystem) -> None:
        self._path = path
        self._fs = fs

    def ending(self) -> Ending:
        """How the run ended that left the file, or took it away."""
        if self._fs.stat(self._path) is None:
            return Ending.CLOSED
        life = self._fs.cache_life(self._path)
        endings = {_note(life, ending): ending for ending in (Ending.KILLED, Ending.KILLED_REPLICA)} if life else {}
        return endings.get(self._content(), Ending.UNKNOWN)

    def _content(self) -> bytes:
        fd = self._fs.open(self._path, readonly=True)
        try:
            return self._fs.pread(fd, _LONGEST, 0)
        finally:
            self._fs.close(fd)

    def make(self) -> None:
        """The store is open; to be followed by a sync of its directory."""
        self._fs.close(self._fs.open(self._path, create=True))

    def vouch(self, *, replica: bool) -> None:
        """What is in the log can be trusted now, and so can what is written to it in this life of the page cache.

        ``replica``: a master's bytes are written, not own records. Never raises: without its content the file says
        the same as an official one.
        """
        ending = Ending.KILLED_REPLICA if replica else Ending.KILLED
        try:
            fd = self._fs.open(self._path)
            try:
                self._fs.truncate(fd, 0)
                self._fs.write_all(fd, _note(self._fs.cache_life(self._path), ending), 0)
            finally:
                self._fs.close(fd)
        except OSError as error:
            log.warning("abort_file_not_written", file=self._path, reason=str(error))

    def remove(self) -> None:
        """The store is closed; to be followed by a sync of its directory."""
        self._fs.unlink(self._path)


def _note(life: str, ending: Ending) -> bytes:
    """What the file holds during a run that would end so."""
    return f"{life} {ending.value}\n".encode()
