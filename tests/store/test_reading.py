"""Pulls: every status, every limit, filters, and what is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from protocol.message import decode_record, java_hash
from store.engine import ColdRead, GetResult, GetStatus, MessageStore
from store.files import FileSystem
from tests.fakes import Clock
from tests.store.making import bodies, drain, message, open_store

BIG: dict[str, Any] = {"mapped_file_size_commit_log": 1 << 22, "mapped_file_size_consume_queue": 20 * 2000}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MessageStore]:
    store = open_store(tmp_path, **BIG)
    yield store
    store.close()


def fill(store: MessageStore, count: int, size: int = 10, **changes: Any) -> None:
    store.append([message(b"%06d" % number + b"x" * (size - 6), **changes) for number in range(count)])


def numbers(result: GetResult) -> list[int]:
    data = b"".join(result.data)
    found, at = [], 0
    while at < len(data):
        record = decode_record(data, at)
        found.append(int(record.body[:6]))
        at += record.total_size
    assert (len(found), at) == (result.count, result.size)
    return found


def get(store: MessageStore, offset: int, count: int = 32, **how: Any) -> GetResult:
    return store.get("T", 0, offset, count, allow_cold=True, **how)


def test_statuses_of_an_unknown_and_an_empty_queue(store: MessageStore) -> None:
    """Next offset 0."""
    assert get(store, 5) == GetResult(GetStatus.NO_MATCHED_LOGIC_QUEUE, 0, 0, 0, [])
    store._queues.queue("T", 0, create=True)
    assert get(store, 5) == GetResult(GetStatus.NO_MESSAGE_IN_QUEUE, 0, 0, 0, [])


def test_statuses_outside_the_offsets(store: MessageStore) -> None:
    """Below the minimum, at the maximum, above it."""
    fill(store, 5)
    queue = store._queues.queue("T", 0)
    assert queue is not None
    queue.min_offset = 2
    assert get(store, 1) == GetResult(GetStatus.OFFSET_TOO_SMALL, 2, 2, 5, [])
    assert get(store, -1) == GetResult(GetStatus.OFFSET_TOO_SMALL, 2, 2, 5, [])
    assert get(store, 5) == GetResult(GetStatus.OFFSET_OVERFLOW_ONE, 5, 2, 5, [])
    assert get(store, 6) == GetResult(GetStatus.OFFSET_OVERFLOW_BADLY, 5, 2, 5, [])
    assert get(store, 2**62) == GetResult(GetStatus.OFFSET_OVERFLOW_BADLY, 5, 2, 5, [])
    assert get(store, 2).status is GetStatus.FOUND


@pytest.mark.parametrize("tagged", [False, True])
def test_offsets_of_lost_messages_are_passed_over(store: MessageStore, tagged: bool) -> None:
    """Wherever in the gap a pull begins; all messages on both sides come, also in one pull.

    The official broker passes over such units too, but then, in that pull, also over messages that lie in the
    log's first file (it goes on behind the file that the unit seems to be in).
    """
    fill(store, 5, tag="A")
    store._log.forget_queue("T", 0, 5)
    store._floors["T", 0] = 3000
    fill(store, 5, tag="A")
    matches = (lambda code: code == java_hash("A")) if tagged else None
    assert [record.queue_offset for record in drain(store)] == [0, 1, 2, 3, 4, *range(3000, 3005)]
    for begin in (5, 6, 1500, 2999, 3000):
        at = begin
        found: list[int] = []
        while len(found) < 5:
            result = get(store, at, matches=matches)
            assert result.next_offset > at
            found += numbers(result)
            at = result.next_offset
        assert (found, at) == ([0, 1, 2, 3, 4], 3005)


def test_found(store: MessageStore) -> None:
    """Whole records, one behind the other, and where to go on."""
    fill(store, 50)
    result = get(store, 10, 20)
    assert (result.status, result.next_offset, result.min_offset, result.max_offset) == (GetStatus.FOUND, 30, 0, 50)
    assert numbers(result) == list(range(10, 30))
    assert not result.fell_behind_memory
    assert numbers(get(store, 49)) == [49]
    assert numbers(get(store, 0, 0)) == [0]  # the first message always fits
    assert numbers(get(store, 0, 1000)) == list(range(32))


def test_memory_limits(tmp_path: Path) -> None:
    """maxTransferBytesOnMessageInMemory and …CountOnMessageInMemory; max_bytes lowers them."""
    store = open_store(tmp_path, **BIG, max_transfer_bytes_on_message_in_memory=1000)
    fill(store, 50, size=108)  # 200 bytes a record
    assert numbers(get(store, 0)) == [0, 1, 2, 3, 4]
    assert numbers(get(store, 0, max_bytes=600)) == [0, 1, 2]
    assert numbers(get(store, 0, max_bytes=1)) == [0]
    assert numbers(get(store, 0, max_bytes=0)) == [0, 1, 2, 3, 4]
    store.close()


def test_disk_limits(tmp_path: Path) -> None:
    """What lies further back than 40 % of the memory counts as on disk: 8 messages, and the reader is slow."""

    class Small(FileSystem):
        def physical_memory(self) -> int:
            return 10_000

    store = open_store(tmp_path, fs=Small(), **BIG)
    fill(store, 100, size=108)
    result = get(store, 0)
    assert numbers(result) == list(range(8))
    assert result.fell_behind_memory
    assert numbers(get(store, 90)) == list(range(90, 100))
    assert not get(store, 90).fell_behind_memory
    store.close()
    store = open_store(tmp_path, fs=Small(), **BIG, max_transfer_bytes_on_message_in_disk=500)
    assert numbers(get(store, 0)) == [0, 1]
    store.close()


def test_tags(store: MessageStore) -> None:
    """The filter sees the units' codes; what does not match is skipped, up to 800 units a pull."""
    for number in range(2000):
        tag = "A" if number % 1000 == 999 else "B"
        store.append([message(b"%06d" % number, tag=tag)])

    def wanted(code: int) -> bool:
        return code == java_hash("A")

    result = get(store, 0, matches=wanted)
    assert (result.status, result.next_offset, result.count) == (GetStatus.NO_MATCHED_MESSAGE, 800, 0)
    result = get(store, 800, matches=wanted)
    assert (numbers(result), result.next_offset) == ([999], 1600)
    assert numbers(get(store, 0, matches=lambda code: True)) == list(range(32))


def test_properties(store: MessageStore) -> None:
    """The filter sees the properties of what the tags let through."""
    for number in range(60):
        store.append([message(b"%06d" % number, properties=b"n\x01%d" % (number % 10))])
    result = get(store, 0, properties_match=lambda properties: properties["n"] == "3")
    assert numbers(result) == [3, 13, 23, 33, 43, 53]
    assert result.next_offset == 60
    result = get(store, 0, 2, properties_match=lambda properties: properties["n"] == "3")
    assert numbers(result) == [3, 13]
    assert 14 <= result.next_offset <= 23


def test_a_pull_ends_at_its_queue_file(tmp_path: Path) -> None:
    """As the official broker's, whose buffer ends there."""
    store = open_store(tmp_path)
    fill(store, 50)
    assert get(store, 15).next_offset == 20
    assert numbers(get(store, 20)) == list(range(20, 40))
    store.close()


def test_other_queues_lie_between(store: MessageStore) -> None:
    """Neighbours in one read, far ones in several: never somebody else's message."""
    for number in range(40):
        store.append([message(b"%06d" % number), message(b"y" * (number * 1500), queue_id=1)])
    assert numbers(get(store, 0)) == list(range(32))
    assert [record.body for record in drain(store, "T", 1)] == [b"y" * (number * 1500) for number in range(40)]


def test_messages_longer_than_a_span(store: MessageStore) -> None:
    """One at a time."""
    for number in range(4):
        store.append([message(b"%06d" % number + b"z" * 300_000)])
    assert [numbers(get(store, offset)) for offset in range(4)] == [[0], [1], [2], [3]]


def test_deleted_records_are_passed_over(tmp_path: Path) -> None:
    """Units whose records went with a file, before the minimum offset follows."""
    store = open_store(tmp_path)
    fill(store, 60, size=60)
    first_kept = next(record.queue_offset for record in drain(store) if record.physical_offset >= 4096)
    store._log.detach_first_file()
    result = get(store, 0)
    assert (result.status, result.count) == (GetStatus.MESSAGE_WAS_REMOVING, 0)
    found = drain(store)
    assert found[0].queue_offset == first_kept
    assert store.damaged_reads == 0
    store.close()


def test_damaged_records_are_passed_over(store: MessageStore, tmp_path: Path) -> None:
    """Told with place and reason, once; the others are served."""
    fill(store, 10, size=30)
    places = [record.physical_offset for record in drain(store)]
    path = tmp_path / "commitlog" / f"{0:020d}"

    def change(data: bytearray) -> None:
        data[places[2] + 88] ^= 1  # body
        data[places[4] + 4] ^= 1  # magic
        data[places[6] + 31] ^= 1  # physical offset
        data[places[8] + 3] ^= 1  # size

    fd = store._fs.open(path)
    data = bytearray(store._fs.pread(fd, 5000, 0))
    change(data)
    store._fs.write_all(fd, data, 0)
    store._fs.close(fd)
    assert numbers(get(store, 0)) == [0, 1, 3, 5, 7, 9]
    assert numbers(get(store, 0)) == [0, 1, 3, 5, 7, 9]


def test_nothing_is_read_from_the_disk_without_leave(tmp_path: Path) -> None:
    """ColdRead, and the same call in a thread gives the answer."""

    class Cold(FileSystem):
        cold = False

        def pread_cached(self, fd: int, length: int, offset: int) -> bytes | bytearray | None:
            return None if self.cold else super().pread_cached(fd, length, offset)

    fs = Cold()
    store = open_store(tmp_path, fs=fs, **BIG)
    fill(store, 3)
    assert numbers(store.get("T", 0, 0, 32)) == [0, 1, 2]
    fs.cold = True
    with pytest.raises(ColdRead):
        store.get("T", 0, 0, 32)
    assert numbers(get(store, 0)) == [0, 1, 2]
    store.close()


def test_message_at(store: MessageStore) -> None:
    """Only where a record begins, and only below what is dispatched."""
    fill(store, 3, size=5000)
    places = [record.physical_offset for record in drain(store)]
    message_of_second = store.message_at(places[1])
    assert message_of_second is not None
    assert message_of_second.body.startswith(b"000001")
    for wrong in (-1, places[1] + 1, places[1] + 100, store.end_offset, 2**62):
        assert store.message_at(wrong) is None


def test_store_times(tmp_path: Path) -> None:
    """Of a unit's record, -1 where there is none; also with IPv6 hosts."""
    clock = Clock(1000)
    store = open_store(tmp_path, clock=clock, **BIG)
    store.append([message(sys_flag=0x30, born_host=bytes(20), store_host=bytes(20))])
    clock.advance(500)
    store.append([message()])
    assert [store.store_time_at("T", 0, offset) for offset in (-1, 0, 1, 2)] == [-1, 1000, 1500, -1]
    assert store.earliest_store_time("T", 0) == 1000
    assert store.earliest_store_time("T", 9) == -1
    assert [store.offset_by_time("T", 0, time) for time in (0, 1000, 1100, 1400, 9999)] == [0, 0, 0, 1, 1]
    assert store.offset_by_time("T", 9, 0) == 0
    store.close()


def test_a_damaged_unit_is_mended(tmp_path: Path, logs: list[structlog.typing.EventDict]) -> None:
    """The pull that meets it gets the message, and the file is put right."""
    store = open_store(tmp_path)
    fill(store, 30)
    store.close()
    path = tmp_path / "consumequeue" / "T" / "0" / f"{0:020d}"
    right = path.read_bytes()
    store = open_store(tmp_path)
    with path.open("r+b") as file:  # after the start, which would have seen it
        file.seek(100)
        file.write(b"\x01" * 40 + bytes(20))
    with pytest.raises(ColdRead):
        store.get("T", 0, 0, 32)
    assert [body[:6] for body in bodies(store)] == [b"%06d" % number for number in range(30)]
    store.maintain_begin()
    assert path.read_bytes() == right
    assert numbers(store.get("T", 0, 0, 32)) == list(range(20))
    assert store.damaged_reads == 0
    assert len([entry for entry in logs if entry["event"] == "consume_queue_unit_mended"]) == 3
    store.close()
