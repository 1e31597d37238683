"""Appending: the declared bytes, numbering, rolling, room, and what a failure leaves."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from protocol.message import HEAD, MAGIC_BLANK, NewMessage, decode_record, encode_record
from store.commitlog import BLANK_ROOM, CommitLog
from store.errors import MessageIllegal, OffsetOutOfRange, StoreFull, StorePoisoned
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem
from tests.fakes import PowerLossFiles
from tests.store.making import message

SIZE = 4096


def make(path: Path, fs: FileSystem | None = None, **changes: Any) -> CommitLog:
    values: dict[str, Any] = {"first_queue_offset": lambda topic, queue_id: 0, "reserve_step": 1024}
    path.mkdir(exist_ok=True)
    return CommitLog(str(path), SIZE, fs or FileSystem(), **(values | changes))


def of_size(size: int, **changes: Any) -> NewMessage:
    """A message whose record takes exactly so many bytes."""
    return message(b"x" * (size - 92), **changes)


def test_writes_the_declared_bytes(tmp_path: Path) -> None:
    """What lies in the file is what the record's encoder gives, for IPv6 hosts and properties too."""
    log = make(tmp_path)
    batch = [
        message(b"one", properties=b"TAGS\x01a", flag=7),
        message(b"", topic="Other", queue_id=3),
        message(b"three", sys_flag=0x30, born_host=bytes(range(20)), store_host=bytes(20)),
    ]
    entries = log.append(batch, 1234)
    assert log.read(0, 5000) == b"".join(encode_record(item) for item in batch)
    assert [item.store_timestamp for item in batch] == [1234] * 3
    assert [entry[3:5] for entry in entries] == [(item.physical_offset, item.size) for item in batch]
    assert log.end_offset == sum(item.size for item in batch)


def test_numbers_each_queue_on_its_own(tmp_path: Path) -> None:
    """Numbering goes on where the consume queue ends; commits are numbered, prepared and rollback are not."""
    log = make(tmp_path, first_queue_offset=lambda topic, queue_id: 10 * queue_id)
    batch = [message(queue_id=number) for number in (0, 1, 0, 1)]
    batch += [message(queue_id=1, sys_flag=kind) for kind in (4, 8, 12)]
    entries = log.append(batch, 1)
    assert [item.queue_offset for item in batch] == [0, 10, 1, 11, 0, 12, 0]
    assert [entry[2] for entry in entries] == [0, 10, 1, 11, -1, 12, -1]
    log.append(last := [message(queue_id=1)], 1)
    assert last[0].queue_offset == 13
    log.forget_queue("T", 1, 13)
    log.append(last, 1)
    assert last[0].queue_offset == 14, "a message is on its way to the queue"
    log.forget_queue("T", 1, 15)
    log.append(last, 1)
    assert last[0].queue_offset == 10
    log.append(others := [message(queue_id=0)], 1)
    assert others[0].queue_offset == 2, "another queue is not concerned"


def test_rolls_when_record_and_filler_head_do_not_fit(tmp_path: Path) -> None:
    """A record may end exactly 8 bytes before the file's end, and no later."""
    log = make(tmp_path)
    log.append([of_size(SIZE - BLANK_ROOM)], 1)
    assert log.end_offset == SIZE - BLANK_ROOM
    log.append([of_size(100)], 1)
    assert log.end_offset == SIZE + 100
    assert HEAD.unpack(log.read(SIZE - 8, 8)) == (8, MAGIC_BLANK)
    assert decode_record(log.read(SIZE, 100)).physical_offset == SIZE
    log.append([of_size(SIZE - 100 - BLANK_ROOM + 1)], 1)  # one byte too long
    assert log.end_offset == 2 * SIZE + SIZE - 100 - BLANK_ROOM + 1
    assert HEAD.unpack(log.read(SIZE + 100, 8)) == (SIZE - 100, MAGIC_BLANK)
    assert log.bases() == [0, SIZE, 2 * SIZE]
    assert sorted(path.stat().st_size for path in tmp_path.iterdir()) == [SIZE] * 3


def test_one_list_over_several_files(tmp_path: Path) -> None:
    """Each file gets its part in one write; nothing is torn between files."""
    log = make(tmp_path)
    batch = [of_size(1000) for _ in range(10)]
    log.append(batch, 1)
    assert [item.physical_offset for item in batch] == [
        file * SIZE + at for file in range(3) for at in (0, 1000, 2000, 3000)
    ][:10]
    for item in batch:
        assert log.read(item.physical_offset, 1000) == encode_record(item)


def test_atomic_lists_stay_together(tmp_path: Path) -> None:
    """All records of a batch send are contiguous in one file; a batch longer than a file is illegal."""
    log = make(tmp_path)
    log.append([of_size(3000)], 1)
    batch = [of_size(500) for _ in range(3)]
    log.append(batch, 1, atomic=True)
    assert [item.physical_offset for item in batch] == [SIZE, SIZE + 500, SIZE + 1000]
    assert log.read(SIZE, 1500) == b"".join(encode_record(item) for item in batch)
    assert HEAD.unpack(log.read(3000, 8)) == (SIZE - 3000, MAGIC_BLANK)
    end = log.end_offset
    with pytest.raises(MessageIllegal):
        log.append([of_size(1500) for _ in range(3)], 1, atomic=True)
    assert log.end_offset == end
    log.append(last := [of_size(100)], 1)
    assert (last[0].physical_offset, last[0].queue_offset) == (end, 4)


def test_illegal_messages_use_no_offset(tmp_path: Path) -> None:
    """A topic of 128 bytes, a record longer than a file, a number that does not fit: all or nothing."""
    log = make(tmp_path)
    with pytest.raises(MessageIllegal, match="128 bytes"):
        log.append([message(), message(topic="t" * 128)], 1)
    with pytest.raises(MessageIllegal, match="do not fit"):
        log.append([message(), of_size(SIZE)], 1)
    with pytest.raises(Exception, match="format requires"):
        log.append([message(), message(flag=2**40)], 1)
    assert log.end_offset == 0
    log.append(good := [message()], 1)
    assert (good[0].queue_offset, good[0].physical_offset) == (0, 0)


class Disk:
    """A log over a file system with failpoints."""

    def __init__(self, path: Path) -> None:
        self.faults = Failpoints()
        self.log = make(path, FaultyFiles(FileSystem(), self.faults))

    def append(self, *sizes: int) -> list[NewMessage]:
        batch = [of_size(size) for size in sizes]
        self.log.append(batch, 1)
        return batch


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "log")


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_no_space_refuses_the_message_whole(disk: Disk) -> None:
    """Space is reserved before anything is written; when it returns, numbering has no hole."""
    disk.append(100)
    disk.faults.arm("reserve", full(), times=100)
    disk.append(200)  # the reserved room suffices
    writes = disk.faults.passed["write"]
    with pytest.raises(StoreFull, match="No space left"):
        disk.append(500, 500)
    assert disk.faults.passed["write"] == writes
    assert disk.log.end_offset == 300
    assert disk.log.poison_reason is None
    disk.faults.disarm("reserve")
    (back,) = disk.append(1000)
    assert (back.physical_offset, back.queue_offset) == (300, 2)


def test_takes_the_last_bytes_when_a_whole_step_is_too_much(disk: Disk) -> None:
    """A step that cannot be reserved is tried again with just what is needed."""
    disk.append(100)
    disk.faults.arm("reserve", full(), times=1)
    disk.append(1500)
    assert disk.log.end_offset == 1600


def test_no_space_for_the_next_file(disk: Disk) -> None:
    """The list is refused before its first part is written."""
    disk.append(SIZE - 1000)
    disk.faults.arm("reserve", full(), skip=1, times=100)
    with pytest.raises(StoreFull):
        disk.append(900, 900)
    assert disk.log.end_offset == SIZE - 1000
    disk.faults.disarm("reserve")
    disk.append(900, 900)
    assert disk.log.end_offset == SIZE + 900


def test_full_in_spite_of_the_reservation_leaves_zeros(disk: Disk) -> None:
    """A file system that promises what it does not have: what was half written is taken back."""
    disk.append(100)
    disk.faults.arm("write", torn=40)
    original = FaultyFiles.pwrite

    def no_space(self: FaultyFiles, fd: int, data: Any, offset: int) -> int:
        try:
            return original(self, fd, data, offset)
        except OSError as error:
            raise OSError(errno.ENOSPC, "No space left on device") from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaultyFiles, "pwrite", no_space)
        with pytest.raises(StoreFull):
            disk.append(200)
    assert Path(disk.log.path(0)).read_bytes()[100:] == bytes(SIZE - 100)
    disk.append(50 + 92)
    assert disk.log.end_offset == 242


def test_a_failed_write_poisons(disk: Disk) -> None:
    """What the disk holds is unknown: every later append is refused with the first reason."""
    disk.append(100)
    disk.faults.arm("write", torn=40)
    with pytest.raises(StorePoisoned, match="write failed"):
        disk.append(200)
    with pytest.raises(StorePoisoned, match="write failed"):
        disk.append(200)
    with pytest.raises(StorePoisoned):
        disk.log.append_raw(100, b"x")
    assert disk.log.end_offset == 100
    assert len(disk.log.read(0, 1000)) == 100


def test_a_read_only_disk_refuses_and_recovers(disk: Disk) -> None:
    """Nothing was written, so nothing is unknown."""
    disk.append(100)
    with pytest.MonkeyPatch.context() as patch:

        def read_only(self: FaultyFiles, fd: int, data: Any, offset: int) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

        patch.setattr(FaultyFiles, "pwrite", read_only)
        for _ in range(2):
            with pytest.raises(StoreFull, match="Read-only"):
                disk.append(200)
    (taken,) = disk.append(200)
    assert (taken.physical_offset, taken.queue_offset) == (100, 1)


def test_an_empty_list_is_nothing(disk: Disk) -> None:
    """No file is made for it."""
    assert disk.append() == []
    assert disk.log.bases() == []


def test_reserving_ahead_makes_the_next_file(disk: Disk) -> None:
    """Step by step, so that an append finds room; one step ahead is enough."""
    assert disk.log.wants_room
    disk.log.reserve_ahead()
    assert disk.log.bases() == [0]
    disk.append(1000)
    disk.append(2500)
    for _ in range(3):
        disk.log.reserve_ahead()
    assert disk.log.bases() == [0, SIZE]
    reserved = disk.faults.passed["reserve"]
    disk.append(1000)
    assert disk.log.end_offset == SIZE + 1000
    assert disk.faults.passed["reserve"] == reserved


def test_closing_removes_the_file_made_ahead(disk: Disk, tmp_path: Path) -> None:
    """An official broker does the same; a file without a message would only confuse."""
    disk.append(3500)
    disk.log.reserve_ahead()
    disk.log.reserve_ahead()
    assert len(list((tmp_path / "log").iterdir())) == 2
    disk.log.close()
    assert [path.name for path in (tmp_path / "log").iterdir()] == [f"{0:020d}"]


def test_raw_bytes_of_a_master(tmp_path: Path) -> None:
    """A slave's log is byte-identical, however the frames are cut; other offsets are refused."""
    master = make(tmp_path / "master")
    for number in range(12):
        master.append([of_size(900 + number)], 1)
    slave = make(tmp_path / "slave")
    offset = 0
    for length in [1, 2, 3, 500, SIZE, 700] * 10:
        data = master.read_or_nothing(offset, length)
        offset = slave.append_raw(offset, data)
    assert offset == slave.end_offset == master.end_offset
    for base in master.bases():
        name = f"{base:020d}"
        assert (tmp_path / "slave" / name).read_bytes() == (tmp_path / "master" / name).read_bytes()
    with pytest.raises(OffsetOutOfRange):
        slave.append_raw(offset + 1, b"x")
    with pytest.raises(OffsetOutOfRange):
        slave.append_raw(offset - 1, b"x")


def test_raw_bytes_over_a_file_end(tmp_path: Path) -> None:
    """One frame may fill a file and go on in the next."""
    slave = make(tmp_path)
    data = bytes(range(256)) * 20
    assert slave.append_raw(0, data) == len(data)
    assert slave.read(0, SIZE) + slave.read(SIZE, SIZE) == data


def test_an_empty_slave_begins_at_any_file(tmp_path: Path) -> None:
    """An official master sends its last file first."""
    slave = make(tmp_path)
    with pytest.raises(OffsetOutOfRange):
        slave.append_raw(SIZE + 1, b"x")
    assert slave.append_raw(3 * SIZE, b"abc") == 3 * SIZE + 3
    assert slave.start_offset == 3 * SIZE
    assert slave.read(3 * SIZE, 10) == b"abc"


def test_an_append_after_a_raw_end_at_a_file_end(tmp_path: Path) -> None:
    """The next record begins the next file, without a filler."""
    log = make(tmp_path)
    log.append_raw(0, bytes(SIZE))
    log.append(batch := [of_size(100)], 1)
    assert batch[0].physical_offset == SIZE


def test_reading_outside_the_log(tmp_path: Path) -> None:
    """Reads end at the end of the log and at a file's end."""
    log = make(tmp_path)
    for _ in range(3):
        log.append([of_size(3000)], 1)
    assert len(log.read(SIZE + 2990, 100)) == 100
    assert len(log.read(2 * SIZE + 2990, 100)) == 10
    assert len(log.read(SIZE - 10, 100)) == 10
    for offset in (-1, log.end_offset, 10 * SIZE):
        with pytest.raises(OffsetOutOfRange):
            log.read(offset, 1)
        assert log.read_or_nothing(offset, 1) == b""
    assert log.read_cached(0, 100) == log.read(0, 100)


def test_what_was_written_last_is_read_from_memory_only_where_it_is_the_same(tmp_path: Path) -> None:
    """Whatever is asked for, what follows the log gets the file's bytes; small, big, split and raw writes."""
    log = make(tmp_path)
    for write in (
        lambda: log.append([of_size(300), of_size(200)], 1),
        lambda: log.append([of_size(3000), of_size(3000)], 1),
        lambda: log.append([of_size(100)], 1),
        lambda: log.append_raw(log.end_offset, b"raw" * 700),
        lambda: log.append_raw(log.end_offset, b"r"),
    ):
        before = log.end_offset
        write()
        hits = 0
        for offset in range(0, log.end_offset):
            for length in (1, log.end_offset - before, 10_000):
                data = log.latest(offset, length)
                hits += bool(data)
                assert data in (b"", log.read(offset, length))
                assert log.latest_or_read(offset, length) == log.read(offset, length)
        assert hits in (0, 2, 3)
        assert hits or before // SIZE < (log.end_offset - 1) // SIZE
    assert log.latest_or_read(log.end_offset, 1) == b""


def test_the_first_file_can_go(tmp_path: Path) -> None:
    """The log begins at the next one; the file being written stays."""
    log = make(tmp_path)
    for _ in range(3):
        log.append([of_size(3000)], 1)
    assert log.detach_first_file() == str(tmp_path / f"{0:020d}")
    assert log.start_offset == SIZE
    with pytest.raises(OffsetOutOfRange):
        log.read(0, 1)
    log.detach_first_file()
    with pytest.raises(ValueError, match="being written"):
        log.detach_first_file()


def test_dirty_files(tmp_path: Path) -> None:
    """Exactly the files with bytes at or above an offset."""
    log = make(tmp_path)
    for _ in range(3):
        log.append([of_size(3000)], 1)
    assert len(log.dirty_files(0)) == 3
    assert len(log.dirty_files(SIZE - 1)) == 3
    assert len(log.dirty_files(SIZE)) == 2
    assert len(log.dirty_files(log.end_offset)) == 1


def test_a_new_file_is_safe_before_it_is_used() -> None:
    """Its name and its size survive power loss, so that no later file can be there without it."""
    disk = PowerLossFiles()
    disk.makedirs("/log")
    log = CommitLog("/log", SIZE, disk, first_queue_offset=lambda topic, queue_id: 0)
    for _ in range(3):
        log.append([of_size(3000)], 1)
    log.reserve_ahead()
    for seed in range(30):
        after = disk.lose_power(random.Random(seed))
        names = after.listdir("/log")
        assert names == disk.listdir("/log")
        assert {after.stat(f"/log/{name}").size for name in names} == {SIZE}  # type: ignore[union-attr]


def test_a_new_file_whose_name_cannot_be_made_safe(disk: Disk) -> None:
    """It is a failed flush: nothing is written, and no second try is believed."""
    disk.append(3500)
    disk.faults.arm("flush")
    with pytest.raises(StoreFull, match="injected"):
        disk.append(3500)
    with pytest.raises(StorePoisoned, match="flush failed"):
        disk.append(3500)


def test_too_many_open_files_refuses_and_recovers(disk: Disk) -> None:
    """A new file needs a descriptor: nothing is written without one, and later it works."""
    disk.append(3500)
    disk.faults.arm("open", OSError(errno.EMFILE, "Too many open files"), times=2)
    for _ in range(2):
        with pytest.raises(StoreFull, match="Too many open files"):
            disk.append(1000)
    (taken,) = disk.append(1000)
    assert (taken.physical_offset, taken.queue_offset) == (SIZE, 1)
    assert disk.log.poison_reason is None


def test_a_flush_needs_no_new_descriptor(disk: Disk) -> None:
    """The files that are not flushed are held, however many others are opened in between."""
    disk.log._open._limit = 1
    for _ in range(4):
        disk.append(3500)
    disk.faults.arm("open", OSError(errno.EMFILE, "Too many open files"), times=100)
    assert len(disk.log.dirty_files(0)) == 4
    disk.append(100)
    disk.log.flushed(2 * SIZE + 10)
    assert len(disk.log.dirty_files(0)) == 2
