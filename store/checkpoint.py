"""The ``checkpoint`` file: up to where everything is known to be on disk, so that recovery reads only the rest.

Owns the file's 4,096 bytes. The first 24 are the official ones: three store times in ms, up to which the commitlog,
the consume queues and the index are safe. They lead recovery to a *file* of the commitlog. Behind them, where the
official brokers read nothing, stands ``Vouched``: the offset itself, which leads it to a record.

An official broker that used the directory in between has rewritten the times. ``Vouched`` therefore repeats the
times it was written with, and counts only if they still agree; it carries a CRC. The page is rewritten in place:
a torn write leaves either old times or new ones, which are both true, and a ``Vouched`` that no longer counts.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple
from zlib import crc32

from store.files import FileSystem

SIZE: Final = 4096
_TIMES = struct.Struct(">qqq")
# 5.x keeps two offsets at 24 and 32; far away from them and in a sector of its own:
_OWN_AT = 1024
_OWN = struct.Struct(">8sqqqqq?")
_MAGIC = b"PocketMQ"
_CRC = struct.Struct(">I")
_FUTURE_MS = 86_400_000  # a time further ahead than a day was never written by a broker


class Times(NamedTuple):
    """Store times in ms up to which commitlog, consume queues and index are on disk; 0 vouches for nothing."""

    physic_ms: int = 0
    logics_ms: int = 0
    index_ms: int = 0


class Vouched(NamedTuple):
    """Our own promise: commitlog, consume queues and index are on disk for every record below ``offset``.

    ``last_record``: where the record that ends at ``offset`` begins, -1 if there is none. ``clean``: the store was
    closed in order, so ``offset`` is the end of the log.
    """

    offset: int
    last_record: int
    clean: bool


class Checkpoint(NamedTuple):
    """What the file says."""

    times: Times
    vouched: Vouched | None


NOTHING: Final = Checkpoint(Times(), None)


def encode(checkpoint: Checkpoint) -> bytes:
    page = bytearray(SIZE)
    _TIMES.pack_into(page, 0, *checkpoint.times)
    if checkpoint.vouched is not None:
        own = _OWN.pack(_MAGIC, *checkpoint.times, *checkpoint.vouched)
        page[_OWN_AT : _OWN_AT + len(own)] = own
        _CRC.pack_into(page, _OWN_AT + len(own), crc32(own))
    return bytes(page)


def decode(page: bytes, now_ms: int) -> Checkpoint:
    """What can be believed of the bytes; ``NOTHING`` if that is nothing. Never fails."""
    if len(page) < _TIMES.size:
        return NOTHING
    times = Times(*_TIMES.unpack_from(page))
    if any(not 0 <= time <= now_ms + _FUTURE_MS for time in times):
        return NOTHING
    own = page[_OWN_AT : _OWN_AT + _OWN.size]
    crc = page[_OWN_AT + _OWN.size : _OWN_AT + _OWN.size + _CRC.size]
    if len(own) == _OWN.size and crc == _CRC.pack(crc32(own)):
        magic, physic, logics, index, offset, last_record, clean = _OWN.unpack(own)
        if magic == _MAGIC and (physic, logics, index) == times:
            return Checkpoint(Times(physic, logics, index), Vouched(offset, last_record, clean))
    return Checkpoint(times, None)


class CheckpointFile:
    """The file in a store directory. ``write`` may run in a thread; nothing else writes it meanwhile."""

    def __init__(self, path: str, fs: FileSystem) -> None:
        self._path = path
        self._fs = fs

    def read(self, now_ms: int) -> Checkpoint:
        """A missing, short or damaged file vouches for nothing."""
        try:
            fd = self._fs.open(self._path, readonly=True)
        except FileNotFoundError:
            return NOTHING
        try:
            return decode(self._fs.pread(fd, SIZE, 0), now_ms)
        finally:
            self._fs.close(fd)

    def write(self, checkpoint: Checkpoint) -> None:
        """On disk when it returns. The file keeps its two 5.x offsets. OSError."""
        is_new = True
        try:
            fd = self._fs.create(self._path, SIZE)
        except FileExistsError:
            fd = self._fs.open(self._path)
            is_new = False
        try:
            page = bytearray(encode(checkpoint))
            page[24:40] = self._fs.pread(fd, 40, 0)[24:40].ljust(16, b"\0")
            self._fs.write_all(fd, page, 0)
            self._fs.fdatasync(fd)
        finally:
            self._fs.close(fd)
        if is_new:
            # Without its name a start would read the whole log, and a first life may be long.
            self._fs.sync_directory(os.path.dirname(self._path) or ".")
