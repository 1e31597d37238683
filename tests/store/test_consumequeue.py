"""Consume queues against the simplest model there is, a list per queue, and against damaged files."""

import errno
import os
import random
import struct
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path

import construct
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from store.anomalies import Anomaly
from store.commitlog import Entry
from store.consumequeue import Boundary, ConsumeQueue, ConsumeQueues
from store.errors import ColdRead, StoreError, StoreFull
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem
from store.layouts import QUEUE_UNIT
from store.queue import Unit
from store.queuefiles import BLANK_SIZE, BLANK_UNIT, UNIT, UNIT_SIZE
from tests.fakes import PowerLossFiles

FILE_UNITS = 10
FILE_SIZE = FILE_UNITS * UNIT_SIZE
RECORD = 100


class Unsynced(FileSystem):
    """Real files without the waiting for the disk, which these tests do not need."""

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: str | os.PathLike[str]) -> None:
        os.stat(path)


def open_queues(root: Path | str, fs: FileSystem | None = None, file_size: int = FILE_SIZE) -> ConsumeQueues:
    return ConsumeQueues(root, file_size, fs or Unsynced())


def loaded(root: Path | str, commitlog_min: int = 0) -> ConsumeQueues:
    queues = open_queues(root)
    queues.load(commitlog_min)
    return queues


def fill(queues: ConsumeQueues, count: int, *, topic: str = "T", queue_id: int = 0, first: int = 0) -> list[Unit]:
    """Records of 100 bytes one behind the other, as a log with one queue would hold them."""
    units = [(n * RECORD, RECORD, n) for n in range(first, first + count)]
    for n, unit in enumerate(units, first):
        queues.put(topic, queue_id, n, *unit)
    return units


def only(queues: ConsumeQueues) -> ConsumeQueue:
    (queue,) = queues
    return queue


def units_of(queue: ConsumeQueue) -> list[Unit]:
    return queue.slice(queue.min_offset, queue.max_offset - queue.min_offset)


def path(root: Path, base: int, topic: str = "T", queue_id: int = 0) -> Path:
    return root / topic / str(queue_id) / f"{base:020d}"


class TestUnit:
    @given(st.binary(max_size=UNIT_SIZE + 3))
    def test_the_twin_reads_what_the_declaration_reads(self, data: bytes) -> None:
        try:
            declared = QUEUE_UNIT.parse(data)
        except construct.ConstructError:
            with pytest.raises(struct.error):
                UNIT.unpack_from(data)
            return
        assert UNIT.unpack_from(data) == (declared.physical_offset, declared.size, declared.tags_code)

    @given(*(st.integers(-(1 << bits), (1 << bits) - 1) for bits in (63, 31, 63)))
    def test_the_twin_writes_what_the_declaration_writes(self, offset: int, size: int, tags_code: int) -> None:
        fields = {"physical_offset": offset, "size": size, "tags_code": tags_code}
        assert UNIT.pack(offset, size, tags_code) == QUEUE_UNIT.build(fields)


@st.composite
def puts(draw: st.DrawFn) -> list[Entry]:
    """Records of a log in its order, mostly each behind the one before in its queue."""
    entries: list[Entry] = []
    ends: dict[tuple[str, int], int] = {}
    physical = 0
    for _ in range(draw(st.integers(1, 30))):
        queue = draw(st.sampled_from([("A", 0), ("A", 1), ("B", 0)]))
        offset = max(-1, ends.get(queue, 0) + draw(st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 3])))
        ends[queue] = max(ends.get(queue, 0), offset + 1)
        size = draw(st.integers(91, 95))
        entries.append((*queue, offset, physical, size, -physical, ()))
        physical += size
    return entries


@given(puts(), st.lists(st.integers(0, 30), max_size=4), st.booleans())
def test_putting_many_is_putting_each(entries: list[Entry], cuts: list[int], again: bool) -> None:
    """In portions of any size, with gaps, replays and records without a place; and everything a second time."""
    portions = [entries[begin:end] for begin, end in pairwise(sorted({0, len(entries), *cuts})) if entries[begin:end]]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        single, many = open_queues(one), open_queues(other)
        for _ in range(1 + again):
            for portion in portions:
                many.put_all(portion)
                for entry in portion:
                    if entry[2] >= 0:
                        single.put(*entry[:6])
                assert many.pending_bytes == single.pending_bytes
                if again:
                    many.write_pending(1)
                    single.write_pending(1)
        assert many.anomalies.noted == single.anomalies.noted
        assert [queue.name for queue in many] == [queue.name for queue in single]
        for one_queue, other_queue in zip(many, single, strict=True):
            assert units_of(one_queue) == units_of(other_queue)
            assert one_queue.max_physical_end == other_queue.max_physical_end


def test_what_stands_in_front_of_a_failure_is_put(tmp_path: Path) -> None:
    """A queue that has to be read and cannot be ends a portion; the rest may come again."""
    queues = open_queues(tmp_path)
    fill(queues, 3, topic="A")
    fill(queues, 3, topic="B")
    queues.flush()
    faults = Failpoints()
    queues = open_queues(tmp_path, FaultyFiles(Unsynced(), faults))
    queues.load()
    queues.put(*("A", 0, 3, 300, RECORD, 0))
    faults.arm("read")
    with pytest.raises(StoreError):
        queues.put_all(
            [("A", 0, 4, 400, RECORD, 0, ()), ("B", 0, 1, 500, RECORD, 0, ()), ("A", 0, 5, 600, RECORD, 0, ())]
        )
    assert queues.pending_bytes == 2 * UNIT_SIZE
    assert [(queue.topic, queue.max_offset) for queue in queues] == [("A", 5), ("B", 3)]


class TestPut:
    def test_a_unit_is_visible_before_it_is_in_a_file(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path / "cq")
        units = fill(queues, 25)
        queue = only(queues)
        assert (queue.min_offset, queue.max_offset, queue.max_physical_end) == (0, 25, 2500)
        assert units_of(queue) == units
        assert not (tmp_path / "cq").exists()

    def test_a_queue_is_one_over_files_and_tail(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 13)
        queues.write_pending()
        units += fill(queues, 9, first=13)
        for begin in range(23):
            assert only(queues).slice(begin, 32) == units[begin:]
            assert only(queues).slice(begin, 3) == units[begin : begin + 3]

    def test_outside_the_queue_there_is_nothing(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 3)
        assert only(queues).slice(-1, 5) == []
        assert only(queues).slice(3, 5) == []
        assert only(queues).slice(1, -5) == []
        assert only(queues).unit(3) is None

    def test_putting_again_changes_nothing(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 12)
        queues.write_pending()
        fill(queues, 15)
        assert units_of(only(queues))[:12] == units
        assert only(queues).max_offset == 15
        assert queues.anomalies.noted == []

    def test_an_unknown_queue_is_made_on_demand_only(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        assert queues.queue("T", 1) is None
        made = queues.queue("T", 1, create=True)
        assert made is queues.queue("T", 1)
        assert [(queue.topic, queue.queue_id) for queue in queues] == [("T", 1)]
        assert list(tmp_path.iterdir()) == []


class TestFormat:
    def test_files_have_the_official_names_and_sizes_and_bytes(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 13)
        queues.flush()
        first, second = path(tmp_path, 0).read_bytes(), path(tmp_path, FILE_SIZE).read_bytes()
        assert first == b"".join(struct.pack(">qiq", *unit) for unit in units[:10])
        assert second == b"".join(struct.pack(">qiq", *unit) for unit in units[10:]) + bytes(7 * UNIT_SIZE)
        assert sorted(os.listdir(tmp_path / "T" / "0")) == ["00000000000000000000", "00000000000000000200"]

    def test_the_file_size_is_rounded_up_to_whole_units(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path, file_size=FILE_SIZE - 1)
        fill(queues, 1)
        queues.flush()
        assert path(tmp_path, 0).stat().st_size == FILE_SIZE

    @pytest.mark.parametrize("first", [1, 9, 10, 11, 25])
    def test_a_queue_that_begins_later_has_blanks_in_front(self, tmp_path: Path, first: int) -> None:
        queues = open_queues(tmp_path)
        queues.put("T", 0, first, 5000, RECORD, 7)
        assert (only(queues).min_offset, only(queues).max_offset) == (first, first + 1)
        queues.flush()
        base = first // 10 * FILE_SIZE
        assert os.listdir(tmp_path / "T" / "0") == [f"{base:020d}"]
        data = path(tmp_path, base).read_bytes()
        assert data == (BLANK_UNIT * (first % 10) + UNIT.pack(5000, RECORD, 7)).ljust(FILE_SIZE, b"\0")
        queue = only(loaded(tmp_path))
        assert (queue.min_offset, queue.max_offset, queue.max_physical_end) == (first, first + 1, 5100)
        assert bytes.fromhex("0000000000000000 7fffffff 0000000000000000") == BLANK_UNIT


class TestUnexpectedOffsets:
    def test_a_gap_is_filled_with_blanks_and_told(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 3)
        queues.put("T", 0, 5, 900, RECORD, 5)
        blank = (0, BLANK_SIZE, 0)
        assert units_of(only(queues)) == [*units, blank, blank, (900, RECORD, 5)]
        assert queues.anomalies.noted == [Anomaly("gap", "T", 0, 5, 3, 900, RECORD)]

    @pytest.mark.parametrize("written", [False, True])
    def test_a_record_that_was_found_after_all_takes_its_blank_place(self, tmp_path: Path, written: bool) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 3)
        queues.put("T", 0, 5, 900, RECORD, 5)
        if written:
            queues.flush()
        queues.put("T", 0, 4, 400, RECORD, 4)
        assert only(queues).unit(4) == (400, RECORD, 4)
        assert queues.safe_physical_offset(1000) == (400 if written else 0)
        queues.flush()
        assert queues.safe_physical_offset(1000) == 1000
        assert only(loaded(tmp_path)).unit(4) == (400, RECORD, 4)

    @pytest.mark.parametrize("offset", [3 + FILE_UNITS + 1, 1 << 40, (1 << 63) - 1])
    def test_a_gap_above_a_file_is_refused(self, tmp_path: Path, offset: int) -> None:
        """A flipped bit in a queue offset must not fill the disk with blanks."""
        queues = open_queues(tmp_path)
        units = fill(queues, 3)
        queues.put("T", 0, offset, 900, RECORD, 5)
        assert units_of(only(queues)) == units
        assert [anomaly.kind for anomaly in queues.anomalies.noted] == ["implausible"]

    def test_an_empty_queue_does_not_begin_beyond_any_file(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        queues.put("T", 0, 1 << 62, 900, RECORD, 5)
        assert only(queues).max_offset == 0
        assert queues.anomalies.count == 1

    def test_the_earlier_record_keeps_its_offset(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 5)
        queues.put("T", 0, 2, 900, RECORD, 9)
        assert units_of(only(queues)) == units
        assert queues.anomalies.noted == [Anomaly("conflict", "T", 0, 2, 5, 900, RECORD)]

    @pytest.mark.parametrize("written", [False, True])
    def test_a_later_record_with_offset_0_is_of_a_topic_that_was_made_anew(self, tmp_path: Path, written: bool) -> None:
        queues = open_queues(tmp_path)
        old = fill(queues, 5)
        if written:
            queues.flush()
        told: list[str] = []
        queues.floors = {("T", 0): 5}
        queues.began_anew = lambda queue: told.append(queue.topic)
        new = [(900, RECORD, 7), (1000, RECORD, 8)]
        for offset, (physical, size, code) in enumerate(new):
            queues.put("T", 0, offset, physical, size, code)
        assert units_of(only(queues)) == new
        assert (told, queues.floors) == (["T"], {})
        for offset, (physical, size, code) in enumerate(old[:3]):  # a replay
            queues.put("T", 0, offset, physical, size, code)
        assert units_of(only(queues)) == new
        queues.flush()
        assert units_of(only(loaded(tmp_path))) == new
        assert queues.anomalies.count == 0

    def test_unless_the_log_knows_nothing_of_it(self, tmp_path: Path) -> None:
        asked: list[tuple[str, int, int, int, int]] = []

        def unit_is_true(*unit: int | str) -> bool:
            asked.append(unit)  # type: ignore[arg-type]
            return False

        queues = ConsumeQueues(tmp_path, FILE_SIZE, Unsynced(), unit_is_true=unit_is_true)
        units = fill(queues, 5)
        queues.put("T", 0, 2, 900, RECORD, 9)
        assert units_of(only(queues)) == [*units[:2], (900, RECORD, 9)]
        assert asked == [("T", 0, 2, 200, RECORD)]

    def test_a_record_that_overlaps_the_one_before_is_told(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 3)
        queues.put("T", 0, 3, 250, RECORD, 9)
        assert units_of(only(queues)) == units
        assert [anomaly.kind for anomaly in queues.anomalies.noted] == ["conflict"]

    def test_anomalies_are_counted_but_only_the_first_are_kept(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 3)
        for _ in range(1010):
            queues.put("T", 0, 2, 900, RECORD, 9)
        assert (queues.anomalies.count, len(queues.anomalies.noted)) == (1010, 1000)


class CountingFiles(Unsynced):
    """Counts open descriptors and can let something happen in the middle of a read."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.between: list[object] = []
        self.synced: list[str] = []

    def _opened(self, fd: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        return fd

    def open(self, path: str | os.PathLike[str], *, create: bool = False, readonly: bool = False) -> int:
        return self._opened(super().open(path, create=create, readonly=readonly))

    def create(self, path: str | os.PathLike[str], size: int) -> int:
        return self._opened(super().create(path, size))

    def close(self, fd: int) -> None:
        self.now -= 1
        super().close(fd)

    def sync_directory(self, path: str | os.PathLike[str]) -> None:
        self.synced.append(os.fspath(path))
        super().sync_directory(path)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        while self.between:
            self.between.pop()()  # type: ignore[operator]
        return super().pread(fd, length, offset)


class TestReadingBesideTheWriter:
    def test_a_read_in_a_thread_sees_whole_units_whatever_the_writer_does(self, tmp_path: Path) -> None:
        """The writer moves the tail to a file and begins a new one while a read is on its way."""
        fs = CountingFiles()
        queues = open_queues(tmp_path, fs)
        units = fill(queues, 5)
        queues.write_pending()
        units += fill(queues, 5, first=5)

        def writer() -> None:
            queues.write_pending()
            fill(queues, 4, first=10)

        fs.between = [writer]
        assert only(queues).slice(2, 32) == units[2:]

    def test_a_read_that_would_wait_says_so(self, tmp_path: Path) -> None:
        class Cold(Unsynced):
            def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
                return None

        queues = open_queues(tmp_path, Cold())
        units = fill(queues, 5)
        assert only(queues).slice(0, 5, nowait=True) == units
        queues.write_pending()
        with pytest.raises(ColdRead):
            only(queues).slice(0, 5, nowait=True)
        assert only(queues).slice(0, 5) == units

    def test_a_file_deleted_meanwhile_reads_as_nothing(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 5)
        queues.flush()
        queues.close()
        path(tmp_path, 0).unlink()
        assert only(queues).slice(0, 5) == []


class TestFlush:
    def test_the_quick_round_takes_queues_with_two_pages(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path, file_size=6_000_000)
        units = 2 * 4096 // UNIT_SIZE  # one less than two pages
        fill(queues, units, topic="A")
        fill(queues, units + 1, topic="B")
        job = queues.begin_flush()
        assert job is not None
        assert [queue.topic for queue in job.queues] == ["B"]
        job.run()
        queues.end_flush(job)
        assert queues.begin_flush() is None
        assert queues.pending_bytes == units * UNIT_SIZE

    def test_what_is_safe_is_below_the_first_unit_that_is_not(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        for n in range(10):
            queues.put(f"T{n}", 0, 0, n * RECORD, RECORD, 0)
        assert queues.safe_physical_offset(1000) == 0
        queues.write_pending()
        assert queues.safe_physical_offset(1000) == 0, "written is not safe"
        job = queues.begin_flush(below=500, limit=3)
        assert job is not None
        queues.put("T0", 0, 1, 1000, RECORD, 0)
        assert queues.safe_physical_offset(1100) == 0, "being made safe is not safe"
        job.run()
        queues.end_flush(job)
        assert queues.safe_physical_offset(1100) == 300
        while (job := queues.begin_flush(below=500, limit=3)) is not None:
            job.run()
            queues.end_flush(job)
        assert queues.safe_physical_offset(1100) == 500
        queues.flush()
        assert queues.safe_physical_offset(1100) == 1100

    def test_a_thorough_round_ends_while_new_units_arrive(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 4)
        rounds = 0
        while (job := queues.begin_flush(below=400)) is not None:
            rounds += 1
            fill(queues, 1, first=3 + rounds)
            job.run()
            queues.end_flush(job)
        assert rounds == 1

    def test_every_file_with_units_is_synced_and_every_new_name(self, tmp_path: Path) -> None:
        class Syncing(CountingFiles):
            files: set[str]

            def fdatasync(self, fd: int) -> None:
                self.files.add(os.readlink(f"/proc/self/fd/{fd}"))
                super().fdatasync(fd)

        fs = Syncing()
        fs.files = set()
        root = tmp_path / "cq"
        queues = open_queues(root, fs)
        fill(queues, 25)
        queues.write_pending()
        fill(queues, 10, first=25)
        queues.flush()
        assert fs.files == {str(path(root, base)) for base in (0, 200, 400, 600)}
        assert set(fs.synced) >= {str(root), str(root / "T"), str(root / "T" / "0")}

    def test_a_topic_may_be_deleted_during_its_flush(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 3)
        job = queues.begin_flush(below=1 << 60)
        assert job is not None
        assert queues.delete("T") == 1
        job.run()
        queues.end_flush(job)
        queues.flush()
        assert list(tmp_path.iterdir()) == []

    def test_many_queues_share_few_descriptors(self, tmp_path: Path) -> None:
        fs = CountingFiles()
        queues = ConsumeQueues(tmp_path, FILE_SIZE, fs, max_open_files=8)
        for n in range(200):
            queues.put("T", n, 0, n, 1, 0)
        while (job := queues.begin_flush(below=1000, limit=16)) is not None:
            job.run()
            queues.end_flush(job)
        assert all(queue.slice(0, 1) == [(queue.queue_id, 1, 0)] for queue in queues)
        queues.close()
        assert fs.most <= 8 + 16 + 1
        assert fs.now == 0

    def test_tails_ask_to_be_written_at_their_bound(self, tmp_path: Path) -> None:
        queues = ConsumeQueues(tmp_path, 6_000_000, Unsynced(), max_pending_bytes=1000)
        asked = []
        for count in range(102):
            asked.append((queues.wants_write, queues.over_limit))
            fill(queues, 1, first=count)
        assert asked.index((True, False)) == 50
        assert asked.index((True, True)) == 101
        queues.write_pending()
        assert (queues.wants_write, queues.over_limit, queues.pending_bytes) == (False, False, 0)


class TestFailingDisk:
    @pytest.mark.parametrize("point", ["open", "write"])
    @pytest.mark.parametrize("torn", [None, 33])
    def test_units_stay_until_they_are_written(self, tmp_path: Path, point: str, torn: int | None) -> None:
        faults = Failpoints()
        queues = open_queues(tmp_path, FaultyFiles(Unsynced(), faults))
        units = fill(queues, 14)
        faults.arm(point, OSError(errno.ENOSPC, "full"), torn=torn, times=2)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(StoreError, match=str(tmp_path / "T" / "0" / "0000")):
                queues.write_pending()
            assert units_of(only(queues)) == units
            assert queues.pending_bytes == 14 * UNIT_SIZE
        assert queues.write_pending() == 1
        assert units_of(only(queues)) == units
        queues.flush()
        assert units_of(only(loaded(tmp_path))) == units

    def test_no_space_is_its_own_error(self, tmp_path: Path) -> None:
        faults = Failpoints()
        queues = open_queues(tmp_path, FaultyFiles(Unsynced(), faults))
        fill(queues, 1)
        faults.arm("write", OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(StoreFull, match="No space left on device"):
            queues.write_pending()

    def test_a_file_without_its_blanks_is_taken_away_again(self, tmp_path: Path) -> None:
        faults = Failpoints()
        queues = open_queues(tmp_path, FaultyFiles(Unsynced(), faults))
        queues.put("T", 0, 5, 900, RECORD, 5)
        faults.arm("write", torn=50)
        with pytest.raises(StoreError):
            queues.write_pending()
        assert not path(tmp_path, 0).exists()
        queues.write_pending()
        assert only(loaded(tmp_path)).slice(5, 1) == [(900, RECORD, 5)]

    def test_a_failed_sync_is_raised_with_the_file(self, tmp_path: Path) -> None:
        faults = Failpoints()
        queues = open_queues(tmp_path, FaultyFiles(Unsynced(), faults))
        fill(queues, 1)
        faults.arm("flush")
        job = queues.begin_flush(below=1000)
        assert job is not None
        with pytest.raises(StoreError, match=r"00000000000000000000: cannot flush"):
            job.run()
        assert queues.safe_physical_offset(100) == 0


class TestMinimum:
    @pytest.mark.parametrize("written", [False, True])
    def test_it_moves_to_the_first_unit_that_has_its_record(self, tmp_path: Path, written: bool) -> None:
        for limit in range(0, 2600, 50):
            queues = open_queues(tmp_path / str(limit))
            fill(queues, 25)
            if written:
                queues.flush()
            assert only(queues).correct_min(limit) == min(25, -(-limit // RECORD))

    def test_it_never_moves_back(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 25)
        assert only(queues).correct_min(1000) == 10
        assert only(queues).correct_min(0) == 10

    @given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 41))
    def test_blanks_of_gaps_do_not_mislead_it(self, present: list[bool], limit: int) -> None:
        with tempfile.TemporaryDirectory() as root:
            queues = open_queues(root, file_size=1000 * UNIT_SIZE)
            for n, there in enumerate(present):
                if there:
                    queues.put("T", 0, n, n * RECORD, RECORD, n)
            if not any(present):
                return
            expected = [n for n, there in enumerate(present) if there and n >= limit]
            end = only(queues).max_offset
            assert only(queues).correct_min(limit * RECORD) == (expected[0] if expected else end)

    @pytest.mark.parametrize("limit", [0, 100, 999, 1000, 1001, 1950, 2000, 2050, 3000, 9999])
    def test_loading_and_cleaning_agree(self, tmp_path: Path, limit: int) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 35)
        queues.flush()
        first = min(35, -(-limit // RECORD))
        assert only(loaded(tmp_path, commitlog_min=limit)).min_offset == first
        deleted = queues.delete_expired(only(queues), limit)
        assert only(queues).min_offset == first
        names = sorted(os.listdir(tmp_path / "T" / "0"))
        kept = range(min(first, 34) // 10 * FILE_SIZE, 800, FILE_SIZE)
        assert names == [f"{base:020d}" for base in kept]
        assert deleted == 4 - len(names)
        assert only(loaded(tmp_path, commitlog_min=limit)).min_offset == first

    def test_a_queue_whose_records_are_all_gone_goes_on_at_its_end(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 15)
        queues.flush()
        queues = loaded(tmp_path, commitlog_min=10_000)
        assert (only(queues).min_offset, only(queues).max_offset) == (15, 15)
        queues.put("T", 0, 15, 20_000, RECORD, 1)
        queues.flush()
        assert units_of(only(loaded(tmp_path, commitlog_min=10_000))) == [(20_000, RECORD, 1)]

    def test_and_one_that_lost_its_file_begins_where_the_log_says(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 15)
        queues.flush()
        queues = loaded(tmp_path, commitlog_min=10_000)
        queues.put("T", 0, 27, 20_000, RECORD, 1)
        queues.flush()
        assert os.listdir(tmp_path / "T" / "0") == [f"{400:020d}"]
        assert only(loaded(tmp_path)).slice(27, 1) == [(20_000, RECORD, 1)]


def expected_by_time(times: list[int], at: int, boundary: Boundary) -> set[int]:
    """All answers that the rule allows; equal times leave the exact hit open."""
    if boundary == "LOWER":
        return {next((n for n, time in enumerate(times) if time >= at), len(times))}
    if boundary == "UPPER":
        return {next((n for n in range(len(times) - 1, -1, -1) if times[n] <= at), 0)}
    if at in times:
        return {n for n, time in enumerate(times) if time == at}
    left = max((n for n, time in enumerate(times) if time < at), default=-1)
    right = min((n for n, time in enumerate(times) if time > at), default=-1)
    if left < 0 or right < 0:
        return {max(left, right)}
    return {right if at - times[left] > times[right] - at else left}


class TestOffsetByTime:
    @pytest.mark.parametrize("boundary", ["NEAREST", "LOWER", "UPPER"])
    @given(
        st.lists(st.integers(0, 60), min_size=1, max_size=30).map(sorted),
        st.integers(-2, 63),
        st.integers(0, 30),
    )
    def test_it_finds_what_a_scan_finds(self, boundary: Boundary, times: list[int], at: int, first: int) -> None:
        with tempfile.TemporaryDirectory() as root:
            queues = open_queues(root)
            for n in range(len(times)):
                queues.put("T", 0, first + n, n * RECORD, RECORD, n)
            found = only(queues).offset_by_time(at, lambda offset, _: times[offset // RECORD], boundary)
            assert found - first in expected_by_time(times, at, boundary)

    @pytest.mark.parametrize("boundary", ["NEAREST", "LOWER", "UPPER"])
    @given(st.lists(st.booleans(), min_size=1, max_size=25), st.integers(-1, 30))
    def test_blanks_of_gaps_are_no_answer(self, boundary: Boundary, present: list[bool], at: int) -> None:
        with tempfile.TemporaryDirectory() as root:
            queues = open_queues(root, file_size=1000 * UNIT_SIZE)
            for n, there in enumerate(present):
                if there:
                    queues.put("T", 0, n, n * RECORD, RECORD, n)
            numbers = [n for n, there in enumerate(present) if there]
            if numbers:
                found = only(queues).offset_by_time(at, lambda offset, _: offset // RECORD, boundary)
                ends = [*numbers, numbers[-1] + 1]
                assert found in {ends[n] for n in expected_by_time(numbers, at, boundary)}

    def test_an_unreadable_record_gives_zero(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 5)
        assert only(queues).offset_by_time(3, lambda _offset, _size: -1) == 0

    def test_an_empty_queue_gives_its_end(self, tmp_path: Path) -> None:
        queue = open_queues(tmp_path).queue("T", 0, create=True)
        assert queue is not None
        assert queue.offset_by_time(3, lambda _offset, _size: 1) == 0

    def test_it_is_a_binary_search(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path, file_size=6_000_000)
        fill(queues, 100_000)
        looks: list[int] = []

        def store_time_of(offset: int, _size: int) -> int:
            looks.append(offset)
            return offset

        assert only(queues).offset_by_time(777 * RECORD + 1, store_time_of) == 777
        assert len(looks) <= 17


class TestLoading:
    @pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 29, 30])
    def test_the_end_is_found_wherever_it_is(self, tmp_path: Path, count: int) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, count)
        queues.flush()
        again = loaded(tmp_path)
        assert again.damages == []
        assert [units_of(queue) for queue in again] == [units][: min(count, 1)]

    @pytest.mark.parametrize("count", [1, 203, 204, 205, 408, 409, 1631, 1632, 5000, 300_000 - 1, 300_000])
    def test_in_a_file_of_the_official_size_too(self, tmp_path: Path, count: int) -> None:
        root = tmp_path
        path(root, 0).parent.mkdir(parents=True)
        with path(root, 0).open("wb") as file:
            file.write(b"".join(UNIT.pack(n * RECORD, RECORD, n) for n in range(count)))
            file.truncate(6_000_000)
        queues = open_queues(root, file_size=6_000_000)
        queues.load()
        assert queues.damages == []
        assert (only(queues).max_offset, only(queues).max_physical_end) == (count, count * RECORD)

    def test_an_empty_last_file_does_not_hide_the_end(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 10)
        queues.flush()
        path(tmp_path, FILE_SIZE).write_bytes(bytes(FILE_SIZE))
        again = loaded(tmp_path)
        assert units_of(only(again)) == units
        assert only(again).max_physical_end == 1000
        assert again.damages == []

    def test_loading_changes_nothing(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 12)
        queues.flush()
        path(tmp_path, FILE_SIZE).write_bytes(b"\xff" * 77)
        before = {file: file.read_bytes() for file in tmp_path.rglob("0*") if file.is_file()}
        loaded(tmp_path, commitlog_min=500)
        assert {file: file.read_bytes() for file in tmp_path.rglob("0*") if file.is_file()} == before

    def test_other_directories_are_left_alone(self, tmp_path: Path) -> None:
        for name in ("T/x", "T/-1", "T/01", "U"):
            (tmp_path / name).mkdir(parents=True)
        assert len(loaded(tmp_path)) == 0


def damage(root: Path, kind: str) -> None:
    """Files of 23 units: two full ones and three units in the last."""
    last = path(root, 2 * FILE_SIZE)
    if kind == "short":
        os.truncate(last, 130)
    elif kind == "long":
        os.truncate(last, FILE_SIZE + 1)
    elif kind == "short in the middle":
        os.truncate(path(root, FILE_SIZE), 77)
    elif kind == "missing in the middle":
        path(root, FILE_SIZE).unlink()
    elif kind == "zeroed in the middle":
        path(root, FILE_SIZE).write_bytes(bytes(FILE_SIZE))
    elif kind == "garbled in the middle":
        path(root, FILE_SIZE).write_bytes(b"\x11" * FILE_SIZE)
    elif kind == "exchanged":
        first, second = path(root, 0).read_bytes(), path(root, FILE_SIZE).read_bytes()
        path(root, 0).write_bytes(second)
        path(root, FILE_SIZE).write_bytes(first)
    elif kind == "stray file":
        (root / "T" / "0" / "notes").write_text("x")
    elif kind == "no directory":
        (root / "T" / "1").write_text("x")
    elif kind == "topic no directory":
        (root / "U").write_text("x")
    else:
        data = bytearray(last.read_bytes())
        begin, replacement = {
            "garbled": (0, b"\xa5" * FILE_SIZE),
            "zeroed begin": (0, bytes(UNIT_SIZE)),
            "hole": (UNIT_SIZE, bytes(UNIT_SIZE)),
            "falling": (2 * UNIT_SIZE, UNIT.pack(50, RECORD, 1)),
            "rest": (3 * UNIT_SIZE, b"\x80"),
        }[kind]
        data[begin : begin + len(replacement)] = replacement
        last.write_bytes(data)


DAMAGE = [
    "short",
    "long",
    "short in the middle",
    "missing in the middle",
    "zeroed in the middle",
    "garbled in the middle",
    "exchanged",
    "stray file",
    "no directory",
    "topic no directory",
    "garbled",
    "zeroed begin",
    "hole",
    "falling",
    "rest",
]


class TestDamage:
    @pytest.mark.parametrize("kind", DAMAGE)
    def test_it_is_noticed_and_named(self, tmp_path: Path, kind: str) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 23)
        queues.flush()
        damage(tmp_path, kind)
        again = loaded(tmp_path)
        assert again.damages
        assert all(found.file.startswith(str(tmp_path)) and found.reason for found in again.damages)

    @pytest.mark.parametrize(
        ("kind", "limit", "end"),
        [
            ("garbled", 2300, 20),
            ("zeroed begin", 2000, 20),
            ("hole", 2100, 21),
            ("short", 2300, 23),
            ("rest", 2300, 23),
            ("garbled in the middle", 1000, 10),
        ],
    )
    def test_a_bad_end_is_cut(self, tmp_path: Path, kind: str, limit: int, end: int) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 23)
        queues.flush()
        damage(tmp_path, kind)
        again = loaded(tmp_path)
        again.truncate_from_physical(limit, mend_tails=True)
        assert units_of(only(again)) == units[:end]
        fill(again, 23)
        again.flush()
        assert loaded(tmp_path).damages == []

    @pytest.mark.parametrize("kind", DAMAGE[2:7] + DAMAGE[10:])
    def test_a_queue_begun_anew_is_whole_again(self, tmp_path: Path, kind: str) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 23)
        queues.flush()
        damage(tmp_path, kind)
        again = loaded(tmp_path)
        again.reset("T", 0)
        fill(again, 23)
        again.flush()
        assert units_of(only(again)) == units
        assert again.verify(only(again)) == []
        assert loaded(tmp_path).damages == []

    @pytest.mark.parametrize("unit", range(23))
    @pytest.mark.parametrize("replacement", [bytes(UNIT_SIZE), b"\xff" * UNIT_SIZE, UNIT.pack(0, RECORD, 0)])
    def test_verify_finds_one_bad_unit_anywhere(self, tmp_path: Path, unit: int, replacement: bytes) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 23, first=1)
        queues.flush()
        queue = only(queues)
        assert queues.verify(queue) == []
        at = (unit + 1) * UNIT_SIZE
        with path(tmp_path, at - at % FILE_SIZE).open("r+b") as file:
            file.seek(at % FILE_SIZE)
            file.write(replacement)
        found = queues.verify(queue)
        if unit or replacement != UNIT.pack(0, RECORD, 0):
            assert found
            assert found[-1].file == str(path(tmp_path, at - at % FILE_SIZE)) or unit > 19

    def test_verify_reads_behind_the_end(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 3)
        queues.flush()
        with path(tmp_path, 0).open("r+b") as file:
            file.seek(FILE_SIZE - 1)
            file.write(b"\1")
        (found,) = queues.verify(only(queues))
        assert (found.position, found.reason) == (FILE_SIZE - 1, "not empty behind the last unit")
        assert loaded(tmp_path).damages == [found]


class TestCutting:
    @pytest.mark.parametrize("written", [False, True])
    @pytest.mark.parametrize("limit", [0, 1, 100, 950, 1000, 1001, 2000, 2299, 2300, 5000])
    def test_units_of_records_at_or_above_the_limit_go(self, tmp_path: Path, written: bool, limit: int) -> None:
        queues = open_queues(tmp_path)
        units = fill(queues, 23)
        if written:
            queues.flush()
        keep = [unit for unit in units if unit[0] < limit]
        assert queues.truncate_from_physical(limit) == (len(keep) < 23)
        assert units_of(only(queues)) == keep
        assert only(queues).max_physical_end == len(keep) * RECORD
        units = keep + fill(queues, 30 - len(keep), first=len(keep))
        queues.flush()
        assert units_of(only(loaded(tmp_path))) == units
        assert queues.verify(only(queues)) == []

    @pytest.mark.parametrize("first", [0, 1, 9, 10, 15, 20])
    @pytest.mark.parametrize("written", [False, True])
    def test_an_empty_queue_keeps_its_offset_and_no_file_without_units(
        self, tmp_path: Path, first: int, written: bool
    ) -> None:
        queues = open_queues(tmp_path)
        for n in range(15):
            queues.put("T", 0, first + n, 5000 + n * RECORD, RECORD, n)
        queues.flush() if written else queues.write_pending(0)
        queues.truncate_from_physical(0)
        queues.flush()
        assert all(any(file.read_bytes()[:UNIT_SIZE]) for file in tmp_path.rglob("0*") if file.is_file())
        again = loaded(tmp_path, commitlog_min=5000)
        assert again.damages == []
        if first and written:
            assert (only(again).min_offset, only(again).max_offset) == (first, first)
            assert only(again).max_physical_end == 0
        again.put("T", 0, first, 5000, RECORD, 0)
        again.flush()
        assert units_of(only(loaded(tmp_path))) == [(5000, RECORD, 0)]

    @settings(max_examples=150)
    @given(st.data())
    def test_power_loss_leaves_any_subset_of_sectors(self, data: st.DataObject) -> None:
        """Units below the checkpoint are safe; behind it any sector may be missing. Replay makes it whole."""
        sector = 64
        count = data.draw(st.integers(1, 60), label="units")
        vouched = data.draw(st.integers(0, count), label="safe units")
        first = data.draw(st.integers(0, 25), label="first offset")
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            base = data.draw(st.sampled_from([0, 1 << 33]), label="log begin")
            units = [(base + n * RECORD, RECORD, n) for n in range(count)]
            queues = open_queues(root)
            for n in range(vouched):
                queues.put("T", 0, first + n, *units[n])
            queues.flush()
            safe = {file: file.read_bytes() for file in root.rglob("0*") if file.is_file()}
            for n in range(vouched, count):
                queues.put("T", 0, first + n, *units[n])
            queues.write_pending()
            for file in [file for file in root.rglob("0*") if file.is_file()]:
                now = bytearray(file.read_bytes())
                old = safe.get(file, bytes(FILE_SIZE))
                if file not in safe and data.draw(st.booleans(), label="lost name"):
                    file.unlink()
                    continue
                for at in range(0, FILE_SIZE, sector):
                    if now[at : at + sector] != old[at : at + sector] and data.draw(st.booleans(), label="lost"):
                        now[at : at + sector] = old[at : at + sector]
                file.write_bytes(now)

            queues = loaded(root)
            queues.truncate_from_physical(base + vouched * RECORD, mend_tails=True)
            for n in range(vouched, count):
                queues.put("T", 0, first + n, *units[n])
            queues.flush()
            assert queues.anomalies.noted == []
            assert units_of(only(queues)) == units
            assert queues.verify(only(queues)) == []
            again = loaded(root)
            assert again.damages == []
            assert units_of(only(again)) == units


class TestDeleting:
    def test_a_topic_goes_with_its_directory(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 12, topic="A")
        fill(queues, 12, topic="A", queue_id=1)
        fill(queues, 3, topic="B")
        queues.flush()
        fill(queues, 1, topic="A", first=12)
        assert queues.delete("A") == 2
        assert sorted(os.listdir(tmp_path)) == ["B"]
        assert queues.queue("A", 0) is None
        assert queues.pending_bytes == 0
        queues.flush()
        assert [queue.topic for queue in loaded(tmp_path)] == ["B"]

    def test_a_topic_that_comes_back_begins_where_the_log_says(self, tmp_path: Path) -> None:
        queues = open_queues(tmp_path)
        fill(queues, 12)
        queues.delete("T")
        fill(queues, 1, first=12)
        assert (only(queues).min_offset, only(queues).max_offset) == (12, 13)


def test_an_idle_queue_is_small(tmp_path: Path) -> None:
    queues = open_queues(tmp_path)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for topic in range(250):
            for queue_id in range(8):
                queues.put(f"Topic{topic}", queue_id, 1 << 33, (1 << 40) + topic * 800 + queue_id * 100, 100, 0)
        while queues.write_pending():
            pass
        queues.close()
        size = (tracemalloc.get_traced_memory()[0] - before) / len(queues)
    finally:
        tracemalloc.stop()
    # Dirty marks (about 100 bytes a queue) are still counted here: nothing was flushed.
    assert size < 600


class QueueModel(RuleBasedStateMachine):
    """A list per queue, and a log that knows every record: what the files hold must always be that."""

    @initialize()
    def begin(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.queues = open_queues(self._directory.name)
        self.model: dict[tuple[str, int], list[Unit]] = {}
        self.begins: dict[tuple[str, int], int] = {}
        self.end = 0
        self.minimum = 0
        self.safe = 0

    def teardown(self) -> None:
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    @rule(topic=st.sampled_from("AB"), queue_id=st.integers(0, 1), count=st.integers(1, 25), size=st.integers(91, 99))
    def put(self, topic: str, queue_id: int, count: int, size: int) -> None:
        units = self.model.setdefault((topic, queue_id), [])
        begin = self.begins.setdefault((topic, queue_id), 0)
        for _ in range(count):
            unit = (self.end, size, -self.end)
            self.queues.put(topic, queue_id, begin + len(units), *unit)
            units.append(unit)
            self.end += size

    @rule(limit=st.integers(1, 3))
    def write(self, limit: int) -> None:
        self.queues.write_pending(limit)

    @rule(limit=st.integers(1, 3), puts=st.integers(0, 2))
    def flush_some(self, limit: int, puts: int) -> None:
        job = self.queues.begin_flush(below=self.end, limit=limit)
        if job is None:
            assert self.queues.safe_physical_offset(self.end) == self.end
            return
        for _ in range(puts):
            self.put("A", 0, 3, 95)
        job.run()
        self.queues.end_flush(job)

    @rule()
    def restart_in_order(self) -> None:
        self.queues.flush()
        assert self.queues.safe_physical_offset(self.end) == self.end
        self.queues = loaded(self._directory.name, self.minimum)
        assert self.queues.damages == []

    @rule()
    def restart_after_a_kill(self) -> None:
        """Tails are gone; everything from the safe offset on is put again."""
        safe = self.queues.safe_physical_offset(self.end)
        self.queues = loaded(self._directory.name, self.minimum)
        self.queues.truncate_from_physical(safe, mend_tails=True)
        for (topic, queue_id), units in self.model.items():
            for n, unit in enumerate(units):
                if unit[0] >= safe:
                    self.queues.put(topic, queue_id, self.begins[topic, queue_id] + n, *unit)
        assert self.queues.anomalies.noted == []

    def _record_at(self, part: float) -> int:
        """Where a record begins or the log ends."""
        begins = sorted(unit[0] for units in self.model.values() for unit in units if unit[0] >= self.minimum)
        return [*begins, self.end][int(part * len(begins))]

    @precondition(lambda self: self.end > self.minimum)
    @rule(part=st.floats(0, 1))
    def cut(self, part: float) -> None:
        limit = self._record_at(part)
        self.queues.truncate_from_physical(limit)
        for units in self.model.values():
            while units and units[-1][0] >= limit:
                units.pop()
        self.end = limit

    @precondition(lambda self: self.end > self.minimum)
    @rule(part=st.floats(0, 1))
    def expire(self, part: float) -> None:
        self.minimum = self._record_at(part)
        for queue in self.queues:
            self.queues.delete_expired(queue, self.minimum)

    @rule(topic=st.sampled_from("AB"))
    def delete(self, topic: str) -> None:
        self.queues.delete(topic)
        for name in [name for name in self.model if name[0] == topic]:
            self.begins[name] += len(self.model.pop(name))

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "model"):
            return
        for name, units in self.model.items():
            queue = self.queues.queue(*name)
            begin = self.begins[name]
            alive = [n for n, unit in enumerate(units, begin) if unit[0] >= self.minimum]
            if queue is None:
                assert not units
                continue
            if alive:
                assert queue.max_offset == begin + len(units)
                assert queue.min_offset <= alive[0]
                assert queue.slice(alive[0], len(alive)) == units[alive[0] - begin :]
        tails = sum(len(queue.tail.units) for queue in self.queues if queue.tail is not None)
        assert self.queues.pending_bytes == tails


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_removing_a_queue_forgets_no_name_of_the_topic() -> None:
    """Another queue of the topic was made just before: its directory's name is still to be made safe."""
    disk = PowerLossFiles()
    disk.makedirs("/s")
    queues = ConsumeQueues("/s/consumequeue", 400, disk)
    for queue_id in (0, 1):
        queues.put("T", queue_id, 0, 100 * queue_id, 100, 0)
    queues.write_pending()
    queue = queues.queue("T", 0)
    assert queue is not None
    queues.delete_queue(queue)
    queues.flush()
    assert queues.safe_physical_offset(200) == 200
    for seed in range(30):
        after = disk.lose_power(random.Random(seed))
        assert after.listdir("/s/consumequeue/T") == ["1"]
        assert after.listdir("/s/consumequeue/T/1") == [f"{0:020d}"]


def test_anomalies_are_told_once(tmp_path: Path) -> None:
    """The first ones each, the rest as a number; those that come later with the next report."""
    queues = open_queues(tmp_path)
    fill(queues, 2)
    with structlog.testing.capture_logs() as logs:
        queues.anomalies.report()
        assert logs == []
        for number in range(50):
            queues.put("T", 0, 1, 1000 + number, RECORD, 0)
        queues.anomalies.report()
        assert [entry["event"] for entry in logs] == ["consume_queue_conflict"] * 20 + ["consume_queue_anomalies"]
        assert (logs[0]["physical_offset"], logs[-1]["count"]) == (1000, 50)
        logs.clear()
        queues.anomalies.report()
        assert logs == []
        queues.put("T", 0, 1 << 40, 2000, RECORD, 0)
        queues.anomalies.forget()
        assert [entry["event"] for entry in logs] == ["consume_queue_implausible"]
        assert (queues.anomalies.noted, queues.anomalies.count) == ([], 51)
        logs.clear()
        for number in range(2000):
            queues.put("T", 0, 1, 3000 + number, RECORD, 0)
        queues.anomalies.report()
        assert len(logs) == 21
        assert (logs[0]["physical_offset"], logs[-1]["count"]) == (3000, 2000)


@pytest.mark.parametrize("alive", range(4))
def test_blanks_between_units_do_not_hide_what_is_in_front_of_them(tmp_path: Path, alive: int) -> None:
    """The minimum after a load is the first unit whose record is left, however many offsets were lost behind it."""
    queues = open_queues(tmp_path)
    for number in range(4):
        queues.put("T", 0, number, number * RECORD, RECORD, 0)
    queues.put("T", 0, 9, 4 * RECORD, RECORD, 0)
    queues.flush()
    again = open_queues(tmp_path)
    again.load(alive * RECORD)
    assert (only(again).min_offset, only(again).max_offset) == (alive, 10)
    again = open_queues(tmp_path)
    again.load(4 * RECORD)
    assert only(again).min_offset == 9
