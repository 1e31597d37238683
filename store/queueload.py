"""Look at the files of a consume queue without changing them: where it begins and ends, and what is wrong.

Owns: finding the last unit of a queue with a few small reads (10,000 queues must load in about a second), and
the complete check of one queue. Decides nothing: what is found is returned as values, recovery and the ``check``
tool act on them.

Why bisection is right: units are written in order and the rest of a file is zero, so "is there a unit" changes
once, from yes to no. Damage can break that. Therefore the units that were looked at must also have rising
physical offsets, the unit behind the end must be zero, and an unclean stop makes recovery cut every queue to what
the checkpoint vouches for (``ConsumeQueues.truncate_from_physical``) instead of believing what is found here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from store.queuefiles import (
    BLANK_SIZE,
    BLANK_UNIT,
    PLACE_UNIT,
    UNIT,
    UNIT_SIZE,
    QueueFiles,
    file_base,
    store_error,
)

_PAGE_UNITS = 4096 // UNIT_SIZE
_PAGE_SIZE = _PAGE_UNITS * UNIT_SIZE
_BLOCK = 4096
_REST_STEP = 64 << 10
_SAMPLES = 32  # units of each older file that are looked at
_LAST_UNITS = 4  # units in front of the end that are compared with each other


class QueueDamage(NamedTuple):
    """Something in a queue's files that a good store cannot have."""

    topic: str
    queue_id: int
    file: str
    position: int  # byte in that file; -1: the file as a whole
    reason: str
    at_end: bool = False  # in the newest file: ``truncate_from_physical`` and putting again can heal it


class QueueExtent(NamedTuple):
    """What the files of a queue hold. Offsets are unit numbers; min == max: no message."""

    min_offset: int
    max_offset: int
    max_physical_end: int


EMPTY = QueueExtent(0, 0, 0)


class _FileExtent(NamedTuple):
    """Units of one file: how many, the first that is alive (``end``: none), and where the last one's record ends."""

    end: int
    first: int
    physical_end: int


def is_unit(data: bytes, at: int = 0) -> bool:
    """Whether a unit stands there, as the official recovery decides: offset ≥ 0 and size > 0. A blank is one."""
    if len(data) < at + UNIT_SIZE:
        return False
    physical, size, _ = UNIT.unpack_from(data, at)
    return bool(physical >= 0 and size > 0)


def bisect(low: int, high: int, true_at: Callable[[int], bool]) -> int:
    """First number in [low, high) for which ``true_at`` is false, if it changes once from true to false."""
    while low < high:
        middle = (low + high) // 2
        if true_at(middle):
            low = middle + 1
        else:
            high = middle
    return low


class _OneFile:
    """The units of one open file, read page by page."""

    __slots__ = ("_fd", "_files", "_page", "_page_units", "path", "seen", "size")

    def __init__(self, files: QueueFiles, path: str) -> None:
        self._files = files
        self.path = path
        self._fd = files.fs.open(path, readonly=True)
        self._page = -1
        self._page_units = b""
        self.seen: list[tuple[int, int]] = []  # (unit, physical offset) of the units looked at
        try:
            self.size = files.fs.size(self._fd)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._files.fs.close(self._fd)

    def unit(self, index: int) -> bytes:
        """Bytes of one unit; fewer behind the file's end."""
        page, inside = divmod(index, _PAGE_UNITS)
        if page != self._page:
            self._page_units = self._files.fs.pread(self._fd, _PAGE_SIZE, page * _PAGE_SIZE)
            self._page = page
        return self._page_units[inside * UNIT_SIZE : (inside + 1) * UNIT_SIZE]

    def has_unit(self, index: int) -> bool:
        data = self.unit(index)
        if len(data) < UNIT_SIZE:
            return False
        physical, size, _ = UNIT.unpack(data)
        if physical < 0 or size <= 0:
            return False
        if size != BLANK_SIZE and data != PLACE_UNIT:
            self.seen.append((index, physical))
        return True

    def end(self) -> int:
        """Number of units up to the first place without one."""
        capacity = self._files.file_size // UNIT_SIZE
        pages = 1  # pages that are full; doubled first, because most queues of many are short
        while pages * _PAGE_UNITS <= capacity and self.has_unit(pages * _PAGE_UNITS - 1):
            pages *= 2
        page = bisect(
            pages // 2, min(pages, capacity // _PAGE_UNITS), lambda at: self.has_unit((at + 1) * _PAGE_UNITS - 1)
        )
        first = page * _PAGE_UNITS
        return bisect(first, min(first + _PAGE_UNITS, capacity), self.has_unit)

    def blanks(self, end: int) -> int:
        """Number of blank units that the file begins with."""
        if self.unit(0) not in (BLANK_UNIT, PLACE_UNIT):
            return 0
        found = bisect(0, end, lambda index: self.unit(index) == BLANK_UNIT)
        return found + (found < end and self.unit(found) == PLACE_UNIT)

    def after_blanks(self, begin: int, end: int) -> int:
        """The first unit from ``begin`` on that is no blank."""
        while begin < end and self.unit(begin) == BLANK_UNIT:
            begin += 1
        return begin

    def first_alive(self, begin: int, end: int, commitlog_min: int) -> int:
        """The first unit whose record is not below ``commitlog_min``; ``end`` if there is none.

        Blanks may stand between units; they are as old as what follows them.
        """

        def dead(index: int) -> bool:
            at = self.after_blanks(index, end)
            return at < end and bool(UNIT.unpack(self.unit(at))[0] < commitlog_min)

        return self.after_blanks(bisect(begin, end, dead), end)

    def physical_end(self, blanks: int, end: int) -> int:
        """Where the record of the last unit that is no blank ends; 0 without one."""
        for index in range(end - 1, blanks - 1, -1):
            physical, size, _ = UNIT.unpack(self.unit(index))
            if size != BLANK_SIZE:
                return int(physical + size)
        return 0

    def sample(self) -> int | None:
        """Look at units all over a file that must be full; the first place without one."""
        capacity = self._files.file_size // UNIT_SIZE
        for index in range(0, capacity, max(1, capacity // _SAMPLES)):
            if not self.has_unit(index):
                return index
        return None if self.has_unit(capacity - 1) else capacity - 1

    def complaint(self, end: int) -> tuple[int, str] | None:
        """(byte, reason) if what was seen cannot be right, or something stands behind the end."""
        begin = max(0, end - _LAST_UNITS)
        for index in range(begin, end):
            if not self.has_unit(index):
                return index * UNIT_SIZE, "a hole between units"
        last = -1
        for index, physical in sorted(set(self.seen)):
            if physical <= last:
                return index * UNIT_SIZE, "the commitlog offset does not rise"
            last = physical
        behind = self._first_byte(end * UNIT_SIZE)
        return None if behind is None else (behind, "not empty behind the last unit")

    def _first_byte(self, position: int) -> int | None:
        """Where the first byte that is not zero stands; holes are not read."""
        fs, fd = self._files.fs, self._fd
        self.unit(position // UNIT_SIZE)
        data = self._page_units[position - self._page * _PAGE_SIZE :]
        at: int | None = position
        while at is not None:
            if data.count(0) != len(data):
                return at + len(data) - len(data.lstrip(b"\0"))
            at += len(data)
            if at >= self.size or (at := fs.next_data(fd, at)) is None:
                return None
            # Up to the end of a block first: behind it there is mostly a hole, which need not be read.
            data = fs.pread(fd, -at % _BLOCK or _REST_STEP, at)
            if not data:
                return None
        return None


class QueueLoader:
    """Loads one queue after the other; what is wrong collects in ``damages``."""

    def __init__(self, files: QueueFiles) -> None:
        self._files = files
        self.damages: list[QueueDamage] = []

    def load(self, topic: str, queue_id: int, commitlog_min: int) -> QueueExtent | None:
        """None if the entry is no directory or is empty.

        ``commitlog_min``: units below it count as deleted, so ``min_offset`` is behind them.
        """
        try:
            names = self._files.fs.listdir(self._files.directory(topic, queue_id))
        except NotADirectoryError:
            self._complain(topic, queue_id, self._files.directory(topic, queue_id), -1, "not a directory")
            return None
        bases = self._bases(topic, queue_id, names)
        if not bases:
            return EMPTY if names else None
        path = ""
        try:
            seen = -1
            for base in bases[:-1]:
                path = self._files.path(topic, queue_id, base)
                seen = self._look_through(topic, queue_id, base, seen)
            for base in reversed(bases):
                path = self._files.path(topic, queue_id, base)
                last = self._look(topic, queue_id, base, commitlog_min, newest=base == bases[-1])
                if last.end or base == bases[0]:
                    break
            max_offset = base // UNIT_SIZE + last.end
            for first_base in bases:
                path = self._files.path(topic, queue_id, first_base)
                if first_base == base:
                    first = last
                    break
                first = self._look(topic, queue_id, first_base, commitlog_min, newest=False)
                if first.first < first.end:
                    break
        except OSError as error:
            raise store_error(error, path, "read") from error
        return QueueExtent(min(first_base // UNIT_SIZE + first.first, max_offset), max_offset, last.physical_end)

    def _bases(self, topic: str, queue_id: int, names: list[str]) -> list[int]:
        directory = self._files.directory(topic, queue_id)
        bases = []
        for name in names:
            base = file_base(name)
            if base is None or base % self._files.file_size:
                self._complain(topic, queue_id, f"{directory}/{name}", -1, "not the name of a queue file")
            else:
                bases.append(base)
        for before, after in itertools.pairwise(bases):
            if after != before + self._files.file_size:
                missing = self._files.path(topic, queue_id, before + self._files.file_size)
                self._complain(topic, queue_id, missing, -1, "missing between other files")
        return bases

    def _look_through(self, topic: str, queue_id: int, base: int, before: int) -> int:
        """A file with files behind it; returns the last offset seen, which the next file must be above."""
        file = _OneFile(self._files, self._files.path(topic, queue_id, base))
        try:
            hole = file.sample() if self._right_size(topic, queue_id, file, newest=False) else None
            last = before
            for index, physical in sorted(set(file.seen)):
                if physical <= last:
                    position = index * UNIT_SIZE
                    self._complain(topic, queue_id, file.path, position, "the commitlog offset does not rise")
                    break
                last = physical
            if hole is not None:
                self._complain(topic, queue_id, file.path, hole * UNIT_SIZE, "no unit in front of the next file")
            return last
        finally:
            file.close()

    def _right_size(self, topic: str, queue_id: int, file: _OneFile, newest: bool) -> bool:
        if file.size != self._files.file_size:
            reason = f"{file.size} bytes long instead of {self._files.file_size}"
            self._complain(topic, queue_id, file.path, -1, reason, newest)
        return file.size == self._files.file_size

    def _look(self, topic: str, queue_id: int, base: int, commitlog_min: int, newest: bool) -> _FileExtent:
        file = _OneFile(self._files, self._files.path(topic, queue_id, base))
        try:
            self._right_size(topic, queue_id, file, newest)
            end = file.end()
            wrong = file.complaint(end)
            if wrong is not None:
                self._complain(topic, queue_id, file.path, *wrong, newest)
            first = file.blanks(end)
            physical_end = file.physical_end(first, end)
            if first < end and UNIT.unpack(file.unit(first))[0] < commitlog_min:
                first = file.first_alive(first, end, commitlog_min)
            return _FileExtent(end, first, physical_end)
        finally:
            file.close()

    def _complain(self, topic: str, queue_id: int, file: str, position: int, reason: str, at_end: bool = False) -> None:
        self.damages.append(QueueDamage(topic, queue_id, file, position, reason, at_end))


def verify(files: QueueFiles, topic: str, queue_id: int, extent: QueueExtent) -> list[QueueDamage]:
    """Read every unit of a queue (about 3 million units a second) and everything behind its end."""
    loader = QueueLoader(files)
    found = loader.load(topic, queue_id, 0)
    damages = loader.damages
    if found is None:
        return damages if extent.max_offset == extent.min_offset else [_missing(files, topic, queue_id)]
    last = -1
    begin = extent.min_offset * UNIT_SIZE
    end = extent.max_offset * UNIT_SIZE
    read_until = begin
    for position, data in files.chunks(topic, queue_id, begin, end):
        for index, (physical, size, _) in enumerate(UNIT.iter_unpack(data)):
            if physical == 0 and size == BLANK_SIZE:
                continue
            if physical <= last or size <= 0:
                reason = "not a unit" if physical < 0 or size <= 0 else "the commitlog offset does not rise"
                damages.append(_at(files, topic, queue_id, position + index * UNIT_SIZE, reason))
                return damages
            last = physical
        read_until = position + len(data)
    if read_until < end:
        damages.append(_at(files, topic, queue_id, read_until, "missing up to the queue's end"))
    return damages


def _at(files: QueueFiles, topic: str, queue_id: int, position: int, reason: str) -> QueueDamage:
    base = files.base_of(position)
    return QueueDamage(topic, queue_id, files.path(topic, queue_id, base), position - base, reason)


def _missing(files: QueueFiles, topic: str, queue_id: int) -> QueueDamage:
    return QueueDamage(topic, queue_id, files.directory(topic, queue_id), -1, "missing")
