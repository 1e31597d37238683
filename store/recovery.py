"""Find out what a stop left of the commitlog; decide first, then change the disk.

Owns the verdict: where the log ends, which bytes behind the end are cut, which places are damaged. ``inspect``
only reads. ``apply`` does what the verdict says, and keeps a copy of every byte that it takes away under
``pocketmq-recovered/`` in the store's root, which official brokers do not look at.

What the checkpoint vouches for is not read again. From there on:
- Only zeros follow: the log ends here.
- Something else follows, and no good record behind it: a torn tail. It is cut off.
- A filler with nothing behind it is cut off, too: official 4.8 leaves old bytes in fillers, of which a slave may not
  have got all, and then it would differ from its master (official brokers end the log in front of it as well).
- Good records follow behind the bad place. Then it matters how the bad place looks. Power loss forgets whole
  sectors, and what was never flushed there reads as zeros; then nothing behind it was promised to anybody, and
  the log ends in front of it, so that what remains is always a prefix. Anything else, and zeros where power was
  not lost, is damage to what had been written: it is reported, stays where it is, and the messages behind it are
  kept with their offsets.

The official broker ends the log at the first bad byte in either case, whatever good messages follow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple

import msgspec
import structlog

from protocol.message import MAGIC_V1, MAGIC_V2, PREFIX_V4
from store.abortfile import Ending
from store.checkpoint import Checkpoint
from store.files import FileSystem, sync_if_allowed
from store.logfiles import LogFiles, find_record_in_files
from store.scan import CHUNK, FIXED_PARTS, FIXED_V4, SECTOR, Record, Scanner

log = structlog.get_logger(__name__)

KEPT_DIRECTORY: Final = "pocketmq-recovered"
TELLING: Final = 3  # a record may well begin with two zeros, as its size does, but hardly with three
SLACK_MS: Final = 3000  # the official broker goes back this far behind its checkpoint

Progress = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in all): called now and then."""


class LoggedProgress:
    """Says every few seconds how far a long piece of work is, and how fast."""

    EVERY_SECONDS: Final = 3.0

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._what = ""
        self._began = self._told = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._began, self._told = what, now, now
        if now - self._told >= self.EVERY_SECONDS:
            self._told = now
            rate = round(done / 1e6 / (now - self._began), 1)
            log.info("recovery_progress", what=what, percent=min(100, done * 100 // max(1, total)), mb_per_second=rate)


class Place(NamedTuple):
    """Bytes of the log, and what is wrong with them."""

    file: str
    offset: int  # in the log, not in the file
    length: int
    reason: str


class LogVerdict(msgspec.Struct):
    """What ``inspect`` decided about the commitlog."""

    bases: list[int]  # files that stay
    begin: int  # the first byte that was read
    end: int  # where the log goes on
    clean: bool  # the store had been closed in order and nothing contradicts it
    vouched: bool = False  # ``begin`` is the offset of our own checkpoint
    last_record: int = -1  # begin of the last good record that was seen
    last_timestamp: int = 0  # its store time
    records: int = 0
    seconds: float = 0.0
    cuts: list[Place] = msgspec.field(default_factory=list)
    damages: list[Place] = msgspec.field(default_factory=list)
    empty: list[str] = msgspec.field(default_factory=list)  # files made ahead: removed
    short: list[str] = msgspec.field(default_factory=list)  # brought to their full size
    strangers: list[str] = msgspec.field(default_factory=list)  # entries that are no log files: left alone


def first_record_time(files: LogFiles, base: int) -> int:
    """Store time of the record that begins a file; 0 if none does."""
    data = files.read(base, PREFIX_V4.size + 24)
    if len(data) < PREFIX_V4.size + 24:
        return 0
    fixed = FIXED_V4.unpack_from(data)
    if fixed[1] not in (MAGIC_V1, MAGIC_V2):
        return 0
    return int(FIXED_PARTS[fixed[6] & 0x30].unpack_from(data)[7])


def _vouched_begin(files: LogFiles, checkpoint: Checkpoint) -> tuple[int, Record | None] | None:
    """The offset of our own checkpoint and the record in front of it, if the log still agrees with it."""
    vouched = checkpoint.vouched
    if vouched is None or not files.bases:
        return None
    base = vouched.offset - vouched.offset % files.file_size
    if vouched.last_record < 0:
        return (vouched.offset, None) if vouched.offset == files.bases[0] else None
    if base not in files.sizes and base - files.file_size not in files.sizes:
        return None
    scanner = Scanner(files.read, files.file_size, vouched.last_record)
    records = scanner.next_records(1)
    if not records or records[0].physical_offset != vouched.last_record:
        return None
    end = vouched.last_record + records[0].size
    filler = end < vouched.offset == base
    return (vouched.offset, records[0]) if end == vouched.offset or filler else None


def scan_begin(files: LogFiles, checkpoint: Checkpoint) -> tuple[int, Record | None, bool]:
    """Where reading must begin, the record in front of it if known, and whether our own checkpoint says so."""
    vouched = _vouched_begin(files, checkpoint)
    if vouched is not None:
        return *vouched, True
    times = checkpoint.times
    safe = min(times.physic_ms, times.logics_ms) - SLACK_MS
    for base in reversed(files.bases):
        if 0 < first_record_time(files, base) <= safe:
            return base, None, False
    return (files.bases[0] if files.bases else 0), None, False


class _Inspection:
    """One pass over the part of the log that nobody vouches for."""

    def __init__(self, files: LogFiles, begin: int, record: Record | None, ending: Ending) -> None:
        self.files = files
        self.ending = ending
        self.verdict = LogVerdict(list(files.bases), begin, begin, ending is Ending.CLOSED)
        if record is not None:
            self.verdict.last_record = record.physical_offset
            self.verdict.last_timestamp = record.store_timestamp
        self.read_end = begin

    def run(self, check_crc: bool, progress: Progress) -> LogVerdict:
        files, verdict = self.files, self.verdict
        total = sum(files.sizes[base] for base in files.bases if base + files.file_size > verdict.begin)
        at: int | None = verdict.begin
        while at is not None:
            scanner = Scanner(files.read, files.file_size, at, check_crc=check_crc, ending=self.ending)
            while records := scanner.next_records():
                verdict.last_record = records[-1].physical_offset
                verdict.last_timestamp = records[-1].store_timestamp
                verdict.records += len(records)
                progress("reading the commitlog", scanner.offset - verdict.begin, total)
            verdict.end = scanner.offset
            reason = scanner.stop.reason if scanner.stop is not None else None
            at = self._behind(scanner.offset, reason, scanner.filler_at)
        self._sort_files()
        return verdict

    def _behind(self, end: int, reason: str | None, filler_at: int | None) -> int | None:
        """The records stop at ``end``: where they go on, or None if that is the end of the log."""
        files, verdict = self.files, self.verdict
        if files.next_nonzero(end, glance=self.ending is Ending.CLOSED) is None:
            if filler_at is not None:
                self._cut(filler_at, "a filler that may not be there whole")
                verdict.end = filler_at
            return None
        good = find_record_in_files(files, end + 1 if reason is not None else end)
        if good is None:
            self._cut(end, reason or "bytes behind the end of the log")
            return None
        if self.ending is Ending.UNKNOWN and self._was_never_written(end, good):
            self._cut(end, f"{reason or 'a file is missing'}, as after a loss of power")
            return None
        why = reason or "a file is missing"
        verdict.damages.append(Place(files.path(end), end, good - end, why))
        verdict.clean = False
        return good

    def _was_never_written(self, begin: int, good: int) -> bool:
        """Whether a sector between the two reads as it was before anything was written to it.

        The one that ``good`` begins in counts whole: a record may begin with the zeros of its size.
        """
        file_size = self.files.file_size
        position = begin
        while position < good:
            inside = position % file_size
            base = position - inside
            stop = min(base + inside - inside % SECTOR + SECTOR, base + file_size)
            data = self.files.read(position, stop - position)
            if not data:  # no file
                stop = base + file_size
            elif data.count(0) == len(data) and len(data) >= TELLING:
                return True
            position = stop
        return False

    def _cut(self, end: int, reason: str) -> None:
        """Everything from ``end`` on goes. One place for each file that has something."""
        files = self.files
        for base in files.bases:
            if base + files.file_size <= end:
                continue
            begin = max(end, base)
            stop = files.end_of_data(base, begin)
            if stop > begin:
                self.verdict.cuts.append(Place(files.path(base), begin, stop - begin, reason))
        self.verdict.clean = False

    def _sort_files(self) -> None:
        """Which files are kept: all that hold something, or the write position."""
        files, verdict = self.files, self.verdict
        end_base = verdict.end - verdict.end % files.file_size
        verdict.strangers = list(files.strangers)
        for base in files.bases:
            if base > end_base or (base == verdict.end and base != files.bases[0]):
                verdict.bases.remove(base)
                verdict.empty.append(files.path(base))
            elif files.sizes[base] != files.file_size:
                verdict.short.append(files.path(base))
                if base + files.sizes[base] < verdict.end:
                    verdict.clean = False


def inspect(
    files: LogFiles,
    checkpoint: Checkpoint,
    *,
    ending: Ending,
    check_crc: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> LogVerdict:
    """Decide about the log. Reads only; OSError or StoreDamaged if that is not possible."""
    started = monotonic()
    begin, record, ours = scan_begin(files, checkpoint)
    vouched = checkpoint.vouched
    if ending is Ending.CLOSED and not (vouched is not None and vouched.clean and vouched.offset == begin):
        ending = Ending.UNKNOWN  # official programs leave no word of how far they flushed
    verdict = _Inspection(files, begin, record, ending).run(check_crc, progress)
    verdict.vouched = ours
    if verdict.end != begin:
        verdict.clean = False
    verdict.seconds = monotonic() - started
    return verdict


def report(verdict: LogVerdict, ending: Ending) -> None:
    """Say what was found, before anything is changed."""
    length = verdict.end - verdict.begin
    log.info(
        "commitlog_inspected",
        clean=verdict.clean,
        ending=ending.value,
        begin=verdict.begin,
        end=verdict.end,
        records=verdict.records,
        records_per_second=int(verdict.records / verdict.seconds) if verdict.seconds else 0,
        mb_per_second=round(length / 1e6 / verdict.seconds, 1) if verdict.seconds else 0.0,
    )
    for place in verdict.damages:
        log.error("commitlog_damaged", **place._asdict())
    for path in verdict.short:
        log.warning("commitlog_file_short", file=path)
    for path in verdict.strangers:
        log.warning("commitlog_entry_ignored", file=path, reason="not a commitlog file")


def apply(verdict: LogVerdict, files: LogFiles, root: str, now_ms: int) -> None:
    """Make the log what the verdict says. Copies first, then cuts; OSError leaves the log as it was or cut.

    Afterwards all of the log is on disk: what a killed process had not flushed is read from the page cache, and
    must not be shown to anybody before it is safe.
    """
    fs = files.fs
    files.open.clear()
    for cut in verdict.cuts:
        _keep(fs, cut, files, root, now_ms)
    for path in verdict.empty:
        fs.unlink(path)
    end_path = files.path(verdict.end)
    cut_paths = {cut.file for cut in verdict.cuts}
    for base in verdict.bases:
        path = files.path(base)
        repair = path in verdict.short or (path == end_path and path in cut_paths)
        if repair or base + files.file_size > verdict.begin:
            _settle(fs, path, files, verdict.end - base if path == end_path and path in cut_paths else None, repair)
    # Also for names that a process before made and did not live to sync.
    fs.sync_directory(files.directory)
    sync_if_allowed(fs, os.path.dirname(files.directory) or ".")


def _settle(fs: FileSystem, path: str, files: LogFiles, cut_at: int | None, repair: bool) -> None:
    """Bring one file to its full size, with zeros from ``cut_at`` on, and to the disk."""
    status = fs.stat(path)
    if status is None:
        return
    fd = fs.open(path)
    try:
        if cut_at is not None:
            fs.truncate(fd, min(status.size, cut_at))
        if repair:
            fs.truncate(fd, files.file_size)
        fs.fdatasync(fd)
    finally:
        fs.close(fd)
    if repair and cut_at is None:
        fs.set_mtime(path, status.mtime_ns)


def _keep(fs: FileSystem, cut: Place, files: LogFiles, root: str, now_ms: int) -> None:
    """Copy the bytes to ``pocketmq-recovered/<time>/commitlog-<offset>``."""
    directory = f"{root}/{KEPT_DIRECTORY}/{now_ms}"
    fs.makedirs(directory)
    target = os.path.join(directory, f"commitlog-{cut.offset:020d}")
    fd = fs.open(target, create=True)
    try:
        done = 0
        while done < cut.length:
            data = files.read(cut.offset + done, min(CHUNK, cut.length - done))
            if not data:
                break
            fs.write_all(fd, data, done)
            done += len(data)
        fs.fdatasync(fd)
    finally:
        fs.close(fd)
    fs.sync_directory(directory)
    log.warning(
        "commitlog_cut",
        file=cut.file,
        offset=cut.offset,
        length=cut.length,
        reason=cut.reason,
        kept_as=target,
    )
