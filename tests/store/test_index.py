"""The key index against a plain list of what was put, in files that must be the official ones to the byte."""

import errno
import os
import struct
import tempfile
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import construct
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from store.commitlog import Entry
from store.errors import StoreError, StoreFull
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem
from store.index import KeyIndex
from store.indexfile import ENTRY, HEADER, HEADER_SIZE, IndexFile, SlotTable
from store.keyhash import key_hash
from store.layouts import INDEX_ENTRY, INDEX_HEADER

SLOTS = 2000  # two pages
CAPACITY = 50
NOW = 1_700_000_000_123
FOREVER = (0, 1 << 62)


class Unsynced(FileSystem):
    """Real files without the waiting for the disk."""

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: str | os.PathLike[str]) -> None:
        os.stat(path)


class Put(NamedTuple):
    topic: str
    keys: tuple[str, ...]
    offset: int
    time: int


def make(root: Path | str, fs: FileSystem | None = None, slots: int = SLOTS, entries: int = CAPACITY) -> KeyIndex:
    return KeyIndex(root, fs or Unsynced(), slots, entries, now_ms=lambda: NOW)


def loaded(root: Path | str, slots: int = SLOTS, entries: int = CAPACITY) -> KeyIndex:
    index = make(root, slots=slots, entries=entries)
    index.load()
    return index


def put_all(index: KeyIndex, puts: list[Put]) -> None:
    for put in puts:
        index.put(*put)


def numbered(count: int, *, first: int = 0, keys: int = 1, topic: str = "T") -> list[Put]:
    """Records of 100 bytes, a second and a half apart, each with its own keys."""
    return [
        Put(topic, tuple(f"key{n}-{k}" for k in range(keys)), n * 100, 1000 + n * 1500)
        for n in range(first, first + count)
    ]


def found_all(index: KeyIndex, puts: list[Put]) -> bool:
    return all(index.query(put.topic, key, 99, *FOREVER) == [put.offset] for put in puts for key in put.keys)


def java_index(puts: list[Put], slots: int, capacity: int) -> list[bytes]:
    """Files as the facts about IndexFile tell, one entry at a time and with the declared layouts."""
    files: list[bytearray] = []
    header: construct.Container | None = None
    for put in puts:
        for key in put.keys:
            if header is None or header.index_count >= capacity:
                previous = header
                files.append(bytearray(HEADER_SIZE + 4 * slots + 20 * capacity))
                header = construct.Container(
                    begin_timestamp=previous.end_timestamp if previous else 0,
                    end_timestamp=0,
                    begin_physical_offset=0,
                    end_physical_offset=0,
                    used_slots=0,
                    index_count=1,
                )
            data = files[-1]
            hashed = key_hash(f"{put.topic}#{key}")
            at = HEADER_SIZE + 4 * (hashed % slots)
            (previous_entry,) = struct.unpack_from(">i", data, at)
            if header.index_count == 1:
                header.begin_timestamp, header.begin_physical_offset = put.time, put.offset
            entry = {
                "key_hash": hashed,
                "physical_offset": put.offset,
                "seconds": (put.time - header.begin_timestamp) // 1000,
                "previous": previous_entry,
            }
            place = HEADER_SIZE + 4 * slots + 20 * header.index_count
            data[place : place + 20] = INDEX_ENTRY.build(entry)
            struct.pack_into(">i", data, at, header.index_count)
            header.used_slots += previous_entry == 0
            header.index_count += 1
            header.end_timestamp, header.end_physical_offset = put.time, put.offset
            data[:HEADER_SIZE] = INDEX_HEADER.build(header)
    return [bytes(data) for data in files]


class TestLayout:
    @given(st.binary(min_size=20, max_size=20))
    def test_entry_twin(self, data: bytes) -> None:
        declared = INDEX_ENTRY.parse(data)
        assert ENTRY.unpack(data) == (
            declared.key_hash,
            declared.physical_offset,
            declared.seconds,
            declared.previous,
        )
        assert INDEX_ENTRY.build(declared) == data

    @given(st.binary(min_size=40, max_size=40))
    def test_header_twin(self, data: bytes) -> None:
        declared = INDEX_HEADER.parse(data)
        fields = [value for name, value in declared.items() if not name.startswith("_")]
        assert HEADER.unpack(data) == tuple(fields)
        assert INDEX_HEADER.build(declared) == data

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["T", "Topic-ü"]),
                st.lists(st.text("ab", max_size=3) | st.text("0123456789ABCDEF", min_size=32, max_size=32), max_size=4),
                st.integers(1, 99),
                st.integers(0, 5000),
            ),
            max_size=40,
        )
    )
    def test_files_are_those_of_the_official_broker(self, steps: list[tuple[str, list[str], int, int]]) -> None:
        puts, offset, time = [], 0, NOW
        for topic, keys, size, pause in steps:
            puts.append(Put(topic, tuple(keys), offset, time))
            offset, time = offset + size, time + pause
        with tempfile.TemporaryDirectory() as root:
            index = make(f"{root}/index", slots=37, entries=20)
            put_all(index, puts)
            index.flush()
            files = [file.read_bytes() for file in sorted(Path(root).rglob("2*"))]
        assert files == java_index(puts, 37, 20)

    def test_the_official_size(self, tmp_path: Path) -> None:
        index = KeyIndex(tmp_path, Unsynced())
        index.put("T", ("k",), 0, NOW)
        index.flush()
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size == 420_000_040
        assert file.stat().st_blocks * 512 < 100_000

    def test_names_are_the_local_time_and_rise(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=3)
        put_all(index, numbered(5))
        index.flush()
        names = sorted(file.name for file in tmp_path.iterdir())
        first = datetime.fromtimestamp(NOW / 1000)
        expected = [first + timedelta(milliseconds=n) for n in range(3)]
        assert names == [f"{moment:%Y%m%d%H%M%S}{moment.microsecond // 1000:03d}" for moment in expected]


class TestPut:
    def test_nothing_is_made_before_the_first_key(self, tmp_path: Path) -> None:
        index = make(tmp_path / "index")
        index.load()
        index.put("T", (), 0, NOW)
        index.flush()
        assert not (tmp_path / "index").exists()

    def test_found_at_once_and_after_each_step_to_disk(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        puts = numbered(20, keys=2)
        put_all(index, puts)
        assert found_all(index, puts)
        index.write_pending()
        assert found_all(index, puts)
        index.flush()
        assert found_all(index, puts)
        assert found_all(loaded(tmp_path), puts)

    def test_a_record_is_indexed_once(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        puts = numbered(10)
        put_all(index, puts)
        put_all(index, puts)
        index.flush()
        index = loaded(tmp_path)
        put_all(index, puts)
        assert found_all(index, puts)
        assert index.files[0].count == 11

    def test_keys_of_one_record_may_end_in_two_files(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=4)
        puts = numbered(5, keys=2)
        put_all(index, puts)
        assert [file.count for file in index.files] == [4, 4, 4, 2]
        assert found_all(index, puts)
        index.flush()
        assert found_all(loaded(tmp_path, entries=4), puts)

    def test_appending_goes_on_in_the_newest_file(self, tmp_path: Path) -> None:
        for first in range(0, 90, 30):
            index = loaded(tmp_path)
            put_all(index, numbered(30, first=first))
            index.flush()
            index.close()
        index = loaded(tmp_path)
        assert len(index.files) == 2
        assert found_all(index, numbered(90))

    def test_times_out_of_order_stay_in_range(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        index.put("T", ("a",), 0, NOW)
        index.put("T", ("b",), 1, NOW - 5000)
        index.put("T", ("c",), 2, NOW + (1 << 45))
        seconds = [index.files[0].entry(number)[2] for number in (1, 2, 3)]
        assert seconds == [0, 0, 0x7FFFFFFF]


def same_hash(count: int) -> list[str]:
    """Different keys with one hash: "Aa" and "BB" are alike to Java."""
    return [f"{n:b}".replace("0", "Aa").replace("1", "BB").rjust(8, "x")[:8] for n in range(8, 8 + count)]


class TestQuery:
    def test_newest_first_up_to_the_limit(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=8)
        for n in range(30):
            index.put("T", ("same",), n * 10, 1000 + n)
        assert index.query("T", "same", 12, *FOREVER) == [n * 10 for n in range(29, 17, -1)]
        assert index.query("T", "same", 0, *FOREVER) == []

    def test_equal_hashes_are_returned_together(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        keys = same_hash(4)
        assert len({key_hash(f"T#{key}") for key in keys}) == 1
        for n, key in enumerate(keys):
            index.put("T", (key,), n, NOW)
        assert index.query("T", keys[0], 32, *FOREVER) == [3, 2, 1, 0]

    def test_the_topic_is_part_of_the_key(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        index.put("A", ("k",), 0, NOW)
        assert index.query("B", "k", 32, *FOREVER) == []

    @given(st.lists(st.integers(0, 4000), min_size=1, max_size=30), st.integers(0, 9), st.integers(0, 9))
    def test_time_range(self, pauses: list[int], begin: int, end: int) -> None:
        """An entry's time is the file's begin plus whole seconds, as in the official file."""
        times = [NOW + sum(pauses[: n + 1]) for n in range(len(pauses))]
        with tempfile.TemporaryDirectory() as root:
            index = make(root)
            for n, time in enumerate(times):
                index.put("T", ("k",), n, time)
            low, high = NOW + begin * 1000, NOW + end * 1000
            kept = [times[0] + (time - times[0]) // 1000 * 1000 for time in times]
            overlaps = low <= times[-1] and high >= times[0]
            expected = [n for n, time in enumerate(kept) if low <= time <= high and overlaps]
            assert index.query("T", "k", 99, low, high) == expected[::-1]

    def test_older_files_than_the_range_are_not_read(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=10)
        put_all(index, numbered(40))
        index.flush()
        index = loaded(tmp_path, entries=10)
        for old in index.files[:-1]:
            os.unlink(old.path)
        newest = index.files[-1].begin_timestamp
        assert index.query("T", "key38-0", 9, newest + 1, 1 << 62) == [3800]

    def test_a_chain_that_runs_in_circles_ends(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        put_all(index, [Put("T", ("k",), n, NOW) for n in range(3)])
        index.flush()
        index.close()
        (path,) = tmp_path.iterdir()
        with path.open("r+b") as file:
            file.seek(HEADER_SIZE + 4 * SLOTS + 20 * 1 + 16)
            file.write(struct.pack(">i", 3))
        assert loaded(tmp_path).query("T", "k", 99, *FOREVER) == [2, 1, 0]

    def test_a_file_deleted_meanwhile_is_an_empty_one(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        put_all(index, numbered(3))
        index.flush()
        index = loaded(tmp_path)
        index.close()
        os.unlink(index.files[0].path)
        assert index.query("T", "key1-0", 9, *FOREVER) == []


class TestFlush:
    def test_what_is_safe(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        assert index.safe_physical_offset(77) == 77
        put_all(index, numbered(5))
        assert index.safe_physical_offset(600) == 0
        index.write_pending()
        assert index.safe_physical_offset(600) == 0, "written is not safe"
        job = index.begin_flush()
        assert job is not None
        put_all(index, numbered(1, first=7))
        assert index.safe_physical_offset(900) == 0, "being made safe is not safe"
        assert index.flushed_timestamp == 0
        job.run()
        index.end_flush(job)
        assert index.safe_physical_offset(900) == 401
        assert index.flushed_timestamp == 7000
        index.flush()
        assert index.safe_physical_offset(900) == 900
        assert index.begin_flush() is None

    def test_only_changed_pages_of_slots_are_written(self, tmp_path: Path) -> None:
        class Counting(Unsynced):
            written = 0

            def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
                self.written += len(data)
                return super().pwrite(fd, data, offset)

        fs = Counting()
        index = make(tmp_path, fs, slots=1_000_000)
        index.put("T", ("k",), 0, NOW)
        index.flush()
        assert fs.written == 20 + 4096 + 40

    def test_a_full_file_gives_its_slots_back(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=10)
        put_all(index, numbered(25))
        assert [file.table is not None for file in index.files] == [True, True, True]
        index.flush()
        assert [file.table is not None for file in index.files] == [False, False, True]
        assert found_all(index, numbered(25))

    def test_entries_ask_to_be_written_at_their_bound(self, tmp_path: Path) -> None:
        index = KeyIndex(tmp_path, Unsynced(), SLOTS, 100_000, max_pending_bytes=100)
        asked = []
        for put in numbered(400):
            asked.append((index.wants_write, index.over_limit))
            index.put(*put)
        assert asked.index((True, False)) == 5
        assert asked.index((True, True)) == 320
        index.write_pending()
        assert (index.wants_write, index.over_limit, index.pending_bytes) == (False, False, 0)

    @pytest.mark.parametrize("skip", [0, 1, 2])  # entries, slots, header
    @pytest.mark.parametrize("torn", [None, 7])
    def test_a_full_disk_loses_nothing(self, tmp_path: Path, torn: int | None, skip: int) -> None:
        faults = Failpoints()
        index = make(tmp_path, FaultyFiles(Unsynced(), faults))
        puts = numbered(30)
        put_all(index, puts)
        faults.arm("write", OSError(errno.ENOSPC, "full"), torn=torn, skip=skip)
        with pytest.raises(StoreError if torn else StoreFull, match=str(tmp_path)):
            index.begin_flush()
        assert found_all(index, puts)
        assert index.safe_physical_offset(3000) == 0
        index.flush()
        assert found_all(loaded(tmp_path), puts)

    def test_a_failed_sync_names_the_file(self, tmp_path: Path) -> None:
        faults = Failpoints()
        index = make(tmp_path, FaultyFiles(Unsynced(), faults))
        put_all(index, numbered(1))
        job = index.begin_flush()
        assert job is not None
        faults.arm("flush")
        with pytest.raises(StoreError, match=r"cannot flush"):
            job.run()


class TestLoading:
    def test_it_changes_nothing_and_reads_no_slots(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        put_all(index, numbered(9))
        index.flush()
        before = [file.read_bytes() for file in tmp_path.iterdir()]
        index = loaded(tmp_path)
        assert index.damages == []
        assert index.files[0].table is None
        assert (index.next_offset, index.end_offset, index.end_timestamp) == (801, 800, 13_000)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == before

    @pytest.mark.parametrize(
        ("position", "data"),
        [
            (36, struct.pack(">i", CAPACITY + 1)),
            (0, struct.pack(">q", -1)),
            (0, struct.pack(">q", 1 << 50)),
            (16, struct.pack(">q", 1 << 50)),
            (32, struct.pack(">i", -4)),
        ],
    )
    def test_an_impossible_header_is_named(self, tmp_path: Path, position: int, data: bytes) -> None:
        index = make(tmp_path)
        put_all(index, numbered(9))
        index.flush()
        with Path(index.files[0].path).open("r+b") as file:
            file.seek(position)
            file.write(data)
        index = loaded(tmp_path)
        assert [damage.file for damage in index.damages] == [str(next(tmp_path.iterdir()))]
        assert index.files == []

    @pytest.mark.parametrize("size", [0, 39, 40, 8000])
    def test_a_file_of_another_size_is_named_and_can_be_removed(self, tmp_path: Path, size: int) -> None:
        index = make(tmp_path)
        put_all(index, numbered(9))
        index.flush()
        os.truncate(index.files[0].path, size)
        (tmp_path / "notes").write_text("x")
        index = loaded(tmp_path)
        assert len(index.damages) == 2
        index.reset()
        assert list(tmp_path.iterdir()) == []
        put_all(index, numbered(9))
        index.flush()
        assert found_all(loaded(tmp_path), numbered(9))

    def test_an_official_file_without_entries(self, tmp_path: Path) -> None:
        (tmp_path / "20260101000000000").write_bytes(bytes(HEADER_SIZE + 4 * SLOTS + 20 * CAPACITY))
        index = loaded(tmp_path)
        assert (index.damages, index.next_offset) == ([], 0)
        put_all(index, numbered(3))
        assert found_all(index, numbered(3))


class TestRecovery:
    def crash(self, tmp_path: Path) -> KeyIndex:
        """30 keys safe, 15 more with their entries in the file and nothing else."""
        index = make(tmp_path)
        put_all(index, numbered(30))
        index.flush()
        put_all(index, numbered(15, first=30))
        index.write_pending()
        index.close()
        return loaded(tmp_path)

    def test_after_a_kill_putting_goes_on_where_the_flush_was(self, tmp_path: Path) -> None:
        index = self.crash(tmp_path)
        assert index.recover(4500, trusted=3000) == 2901
        put_all(index, numbered(45))
        assert found_all(index, numbered(45))
        assert index.damages == []
        index.flush()
        index = loaded(tmp_path)
        assert index.files[0].count == 46
        assert found_all(index, numbered(45))

    def test_a_good_file_is_not_made_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        index = self.crash(tmp_path)
        monkeypatch.setattr(IndexFile, "rebuild", lambda *_: pytest.fail("rebuilt"))
        index.recover(4500, trusted=3000)

    @pytest.mark.parametrize("header", [False, True])
    def test_a_kill_in_the_middle_of_a_flush(self, tmp_path: Path, header: bool) -> None:
        """Slots of the next flush with the header of the last one, or the other way round."""
        index = self.crash(tmp_path)
        old = Path(index.files[0].path).read_bytes()
        put_all(index, numbered(15, first=30))
        index.flush()
        path = Path(index.files[0].path)
        new = path.read_bytes()
        index.close()
        if header:
            path.write_bytes(new[:HEADER_SIZE] + old[HEADER_SIZE : HEADER_SIZE + 4 * SLOTS] + new[8040:])
        else:
            path.write_bytes(old[:HEADER_SIZE] + new[HEADER_SIZE:])
        index = loaded(tmp_path)
        assert index.recover(4500, trusted=3000) == 2901
        put_all(index, numbered(45))
        assert found_all(index, numbered(45))
        index.flush()
        assert Path(index.files[0].path).read_bytes() == new

    @pytest.mark.parametrize("lost", range(30, 44))
    @pytest.mark.parametrize("trusted", [3000, 4400])
    @pytest.mark.parametrize("what", [bytes(20), b"\xff" * 20, struct.pack(">iqii", 5, 1, 0, 0)])
    def test_entries_that_power_loss_took_are_put_again(
        self, tmp_path: Path, lost: int, trusted: int, what: bytes
    ) -> None:
        index = self.crash(tmp_path)
        put_all(index, numbered(15, first=30))
        index.flush()
        index.close()
        path = Path(index.files[0].path)
        good = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(HEADER_SIZE + 4 * SLOTS + 20 * (lost + 1))
            file.write(what)
        index = loaded(tmp_path)
        again = index.recover(4500, trusted)
        assert again <= lost * 100
        # The first entry that is not vouched for cannot be told from the last that is.
        assert len(index.damages) == (trusted == 4400 or lost == 30)
        put_all(index, [put for put in numbered(45) if put.offset >= again])
        index.flush()
        assert path.read_bytes()[HEADER_SIZE:] == good[HEADER_SIZE:]
        assert found_all(loaded(tmp_path), numbered(45))

    def test_a_full_file_that_was_not_safe_is_looked_at_too(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=20)
        put_all(index, numbered(45, keys=1))
        index.flush()
        index.close()
        path = Path(index.files[1].path)
        with path.open("r+b") as file:
            file.seek(HEADER_SIZE)
            file.write(bytes(4 * SLOTS))
        index = loaded(tmp_path, entries=20)
        assert index.recover(4500, trusted=3700) == 3601
        put_all(index, numbered(45))
        assert found_all(index, numbered(45))
        index.flush()
        assert [file.table is not None for file in index.files] == [False, False, True]
        assert found_all(loaded(tmp_path, entries=20), numbered(45))

    def test_files_behind_one_that_lost_entries_are_made_again(self, tmp_path: Path) -> None:
        index = make(tmp_path, entries=20)
        put_all(index, numbered(45))
        index.flush()
        index.close()
        with Path(index.files[0].path).open("r+b") as file:
            file.seek(HEADER_SIZE + 4 * SLOTS + 20 * 7)
            file.write(bytes(40))
        index = loaded(tmp_path, entries=20)
        assert index.recover(4500, trusted=1200) == 401
        assert len(index.files) == 1
        put_all(index, [put for put in numbered(45) if put.offset >= 401])
        assert found_all(index, numbered(45))

    @pytest.mark.parametrize("limit", range(0, 4600, 250))
    @pytest.mark.parametrize("flushed", [False, True])
    def test_a_log_that_was_cut(self, tmp_path: Path, limit: int, flushed: bool) -> None:
        index = make(tmp_path, entries=20)
        put_all(index, numbered(45))
        if flushed:
            index.flush()
            index = loaded(tmp_path, entries=20)
            assert index.recover(limit, trusted=None) <= limit
        else:
            index.truncate_from_physical(limit)
        kept = [put for put in numbered(45) if put.offset < limit]
        assert found_all(index, kept)
        assert all(not index.query("T", f"key{n}-0", 9, *FOREVER) for n in range(len(kept), 45))
        put_all(index, numbered(45 - len(kept), first=len(kept)))
        assert found_all(index, numbered(45))
        index.flush()
        assert found_all(loaded(tmp_path, entries=20), numbered(45))
        fresh = make(tmp_path / "fresh", entries=20)
        put_all(fresh, numbered(45))
        fresh.flush()
        mine = [Path(file.path).read_bytes() for file in index.files]
        assert mine == [Path(file.path).read_bytes() for file in fresh.files]

    def test_progress_is_told(self, tmp_path: Path) -> None:
        index = make(tmp_path)
        put_all(index, numbered(45))
        index.flush()
        told: list[int] = []
        loaded(tmp_path).recover(4500, trusted=0, progress=told.append)
        assert told == [1]


class TestRemoving:
    @pytest.mark.parametrize("limit", [0, 1800, 1801, 3700, 3701, 9999])
    def test_files_whose_records_are_gone(self, tmp_path: Path, limit: int) -> None:
        index = make(tmp_path, entries=20)
        put_all(index, numbered(45))
        index.flush()
        ends = [1800, 3700]
        gone = sum(end < limit for end in ends)
        assert index.delete_expired(limit) == gone
        assert len(list(tmp_path.iterdir())) == 3 - gone
        assert found_all(index, numbered(45)[19 * gone :])


class TestSlotTable:
    def test_untouched_pages_cost_nothing(self) -> None:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        before = resident()
        table = SlotTable(5_000_000)
        table.slots[4_999_999] = 1
        table.fill(0, bytes(4096))
        assert resident() - before < 5_000_000

    @given(st.dictionaries(st.integers(0, 4999), st.integers(1, 1 << 30), max_size=30))
    def test_runs_are_what_changed_in_file_order(self, values: dict[int, int]) -> None:
        table = SlotTable(5000)
        for slot, value in values.items():
            table.slots[slot] = value
            table.dirty[slot // 1024] = 1
        written = {}
        runs = list(table.dirty_runs())
        for first, data in runs:
            for n, (value,) in enumerate(struct.iter_unpack(">i", data), first):
                if value:
                    written[n] = value
        assert written == values
        assert all(a[0] + len(a[1]) // 4 <= b[0] for a, b in pairwise(runs))
        assert list(table.dirty_runs()) == []
        again = SlotTable(5000)
        for first, data in runs:
            again.fill(first, data)
        assert {n: value for n, value in enumerate(again.slots) if value} == values


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "Aa", "BB", *(f"{n:032X}" for n in range(4))]), max_size=3), max_size=30
    ),
    st.lists(st.integers(0, 30), max_size=4),
    st.sampled_from(["T", "U"]),
)
def test_putting_many_is_putting_each(keys: list[list[str]], cuts: list[int], topic: str) -> None:
    """In portions of any size, over several files, and everything a second time."""
    entries: list[Entry] = [
        (topic if n % 3 else "T", 0, n, n * 100, 100, 0, tuple(each)) for n, each in enumerate(keys)
    ]
    portions = [entries[begin:end] for begin, end in pairwise(sorted({0, len(entries), *cuts})) if entries[begin:end]]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        single, many = make(one, slots=11, entries=9), make(other, slots=11, entries=9)
        for portion in portions:
            for _ in range(2):
                many.put_all(portion, portion[0][2] * 700)
                for entry in portion:
                    single.put(entry[0], entry[6], entry[3], portion[0][2] * 700)
        assert many.next_offset == single.next_offset
        many.flush()
        single.flush()
        assert [Path(file.path).read_bytes() for file in many.files] == [
            Path(file.path).read_bytes() for file in single.files
        ]


class IndexModel(RuleBasedStateMachine):
    """A list of puts; queries must give what a walk over the list gives, through restarts, kills and cuts."""

    @initialize()
    def begin(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.index = make(self._directory.name, slots=11, entries=9)
        self.puts: list[Put] = []
        self.end = 0
        self.time = NOW
        self.minimum = 0

    def teardown(self) -> None:
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    @rule(keys=st.lists(st.sampled_from(["a", "b", "Aa", "BB", "0123456789ABCDEF" * 2]), max_size=3, unique=True))
    def put(self, keys: list[str]) -> None:
        put = Put("T", tuple(keys), self.end, self.time)
        self.index.put(*put)
        self.puts.append(put)
        self.end += 100
        self.time += 700

    @rule()
    def write(self) -> None:
        self.index.write_pending()

    @rule()
    def flush(self) -> None:
        job = self.index.begin_flush()
        if job is not None:
            self.put(["a"])
            job.run()
            self.index.end_flush(job)

    @rule()
    def restart_in_order(self) -> None:
        self.index.flush()
        assert self.index.safe_physical_offset(self.end) == self.end
        self.index = loaded(self._directory.name, slots=11, entries=9)
        assert self.index.damages == []
        assert self.index.recover(self.end, trusted=None) <= self.end

    @rule(begun=st.booleans())
    def restart_after_a_kill(self, begun: bool) -> None:
        if begun:
            self.index.begin_flush()
        safe = self.index.safe_physical_offset(self.end)
        self.index = loaded(self._directory.name, slots=11, entries=9)
        again = min(safe, self.index.recover(self.end, trusted=safe))
        put_all(self.index, [put for put in self.puts if put.offset >= again])

    @precondition(lambda self: self.puts)
    @rule(part=st.floats(0, 1, exclude_max=True))
    def cut(self, part: float) -> None:
        limit = max(self.minimum, self.puts[int(part * len(self.puts))].offset)
        self.index.truncate_from_physical(limit)
        self.puts = [put for put in self.puts if put.offset < limit]
        self.end = limit

    @precondition(lambda self: self.puts)
    @rule(part=st.floats(0, 1, exclude_max=True))
    def expire(self, part: float) -> None:
        self.minimum = max(self.minimum, self.puts[int(part * len(self.puts))].offset)
        self.index.delete_expired(self.minimum)

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "puts"):
            return
        for key in ("a", "b", "Aa", "0123456789ABCDEF" * 2):
            alike = {"Aa": ("Aa", "BB")}.get(key, (key,))
            found = [offset for offset in self.index.query("T", key, 999, *FOREVER) if offset >= self.minimum]
            expected = [put.offset for put in self.puts for name in put.keys if name in alike]
            assert found == sorted((offset for offset in expected if offset >= self.minimum), reverse=True)


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
