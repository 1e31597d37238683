"""What becomes safe in which order, when a checkpoint is due, and what a failure of it does."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.checkpoint import CheckpointFile
from store.engine import MessageStore
from store.errors import StoreFull, StorePoisoned
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem, StrPath
from store.manifest import load as load_manifest
from store.upkeep import FEW_FILES
from tests.fakes import Clock, PowerLossFiles
from tests.store.making import SYNC, bodies, crash, flush, maintain, message, open_store


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def faults() -> Failpoints:
    return Failpoints()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, faults: Failpoints, clock: Clock) -> MessageStore:
    store = open_store(tmp_path, fs=FaultyFiles(FileSystem(), faults), clock=clock)
    maintain(store)  # space ahead
    return store


def vouched(root: Path, clock: Clock) -> int:
    found = CheckpointFile(str(root / "checkpoint"), FileSystem()).read(clock()).vouched
    return -1 if found is None else found.offset


def test_nothing_to_do(store: MessageStore) -> None:
    """An idle store asks for no thread."""
    assert store.maintain_begin() is None


def test_a_checkpoint_vouches_for_what_is_on_disk(store: MessageStore, tmp_path: Path, clock: Clock) -> None:
    """Up to what was dispatched when the round began, with the times of the last record."""
    clock.advance(60_000)
    store.append([message(key="a"), message(key="b")])
    end = store.end_offset
    job = store.maintain_begin()
    assert job is not None
    store.append([message()])
    job.run()
    store.maintain_done(job)
    checkpoint = CheckpointFile(str(tmp_path / "checkpoint"), FileSystem()).read(clock())
    assert checkpoint.vouched is not None
    assert (checkpoint.vouched.offset, checkpoint.vouched.clean) == (end, False)
    assert set(checkpoint.times) == {clock()}
    assert store.flushed_offset >= end
    manifest = load_manifest(str(tmp_path), FileSystem())
    assert manifest is not None
    assert (manifest.offset, [known.max_offset for known in manifest.queues]) == (end, [2])


def test_rounds_have_pauses(store: MessageStore, tmp_path: Path, clock: Clock) -> None:
    """At least five seconds, at most thirty, unless much was written."""
    clock.advance(60_000)
    store.append([message()])
    maintain(store)
    first = store.end_offset
    assert vouched(tmp_path, clock) == first
    store.append([message()])
    clock.advance(4_999)
    maintain(store)
    clock.advance(20_000)
    maintain(store)
    assert vouched(tmp_path, clock) == first
    clock.advance(6_000)
    maintain(store)
    assert vouched(tmp_path, clock) == store.end_offset


def test_much_log_makes_a_round_due(
    store: MessageStore, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that recovery never has to read much."""
    monkeypatch.setattr("store.upkeep.ROUND_BYTES", 500)
    clock.advance(60_000)
    maintain(store)
    store.append([message() for _ in range(10)])
    clock.advance(5_000)
    maintain(store)
    assert vouched(tmp_path, clock) == store.end_offset


def test_many_queues_take_several_jobs(
    store: MessageStore, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is bounded, and ``maintain_done`` says that the next may follow at once."""
    monkeypatch.setattr("store.upkeep.QUEUES_IN_JOB", 10)
    clock.advance(60_000)
    store.append([message(queue_id=number) for number in range(35)])
    jobs = 0
    more = True
    while more:
        assert vouched(tmp_path, clock) == -1
        job = store.maintain_begin()
        assert job is not None
        job.run()
        more = store.maintain_done(job)
        jobs += 1
    assert jobs >= 4
    assert vouched(tmp_path, clock) == store.end_offset


def test_sync_flush_vouches_only_for_what_is_flushed(tmp_path: Path, clock: Clock) -> None:
    """What is not flushed is not dispatched either."""
    store = open_store(tmp_path, clock=clock, flush_disk_type=SYNC)
    clock.advance(60_000)
    store.append([message()])
    flush(store)
    store.dispatch_step()
    end = store.end_offset
    store.append([message()])
    maintain(store)
    assert vouched(tmp_path, clock) == end
    store.close()


@pytest.mark.parametrize("skip", range(6))
def test_a_failed_flush_poisons_and_vouches_for_nothing(
    store: MessageStore, faults: Failpoints, tmp_path: Path, clock: Clock, skip: int
) -> None:
    """Log, queue, index or their directories: after a failed fsync nobody knows, and no checkpoint says otherwise."""
    clock.advance(60_000)
    store.append([message(key="k")])
    faults.arm("flush", skip=skip)
    job = store.maintain_begin()
    assert job is not None
    job.run()
    store.maintain_done(job)
    if job.unsafe:
        with pytest.raises(StorePoisoned):
            store.append([message()])
        assert vouched(tmp_path, clock) == -1
        assert store.maintain_begin() is None
        writable, reason = store.writable
        assert not writable
        assert "flush" in reason or "injected" in reason
        assert bodies(store) == [b"hello"]
    store.close()
    store = open_store(tmp_path)
    assert bodies(store) == [b"hello"]
    assert store.writable == (True, "")
    store.close()


def test_no_space_for_queues_refuses_until_there_is_some(
    tmp_path: Path, faults: Failpoints, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages are stored and visible; writing is tried again, and when too much waits sends are refused."""
    store = open_store(tmp_path, fs=FaultyFiles(FileSystem(), faults), clock=clock)
    maintain(store)
    store._queues.max_pending_bytes = 40
    faults.arm("open", OSError(errno.ENOSPC, "No space left on device"), times=1000)
    stored = 0
    while store.writable[0]:
        store.append([message()])
        stored += 1
    with pytest.raises(StoreFull, match="No space left"):
        store.append([message()])
    assert bodies(store) == [b"hello"] * stored
    assert not store.writable[0]
    faults.disarm("open")
    clock.advance(60_000)
    maintain(store)
    assert store.writable == (True, "")
    store.close()
    store = open_store(tmp_path)
    assert store.verdict.clean
    assert len(bodies(store)) == stored
    store.close()


def test_a_reservation_that_fails_is_no_failure(store: MessageStore, faults: Failpoints) -> None:
    """The append tries for itself."""
    store.append([message(b"x" * 3000)])
    faults.arm("reserve", OSError(errno.ENOSPC, "No space left on device"))
    job = store.maintain_begin()
    assert job is not None
    job.run()
    assert job.error is not None
    store.maintain_done(job)
    assert store.writable == (True, "")
    store.append([message(b"x" * 3000)])
    store.close()


def test_a_cancelled_job_does_not_stop_the_close(store: MessageStore, tmp_path: Path, clock: Clock) -> None:
    """Its caller began it and went away, before or after running it."""
    for run in (False, True):
        clock.advance(60_000)
        store.append([message()])
        job = store.maintain_begin()
        assert job is not None
        if run:
            job.run()
        store.close()
        store = open_store(tmp_path, clock=clock)
        assert store.verdict.clean
    crash(store)


def test_queue_files_that_cannot_be_made(tmp_path: Path, clock: Clock) -> None:
    """A full disk: the log is flushed all the same, the round waits, and ends when there is space."""

    class Full(FileSystem):
        full = False

        def create(self, path: StrPath, size: int) -> int:
            if self.full and "/consumequeue/" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().create(path, size)

    disk = Full()
    store = open_store(tmp_path, fs=disk, clock=clock)
    maintain(store)
    clock.advance(60_000)
    for queue_id in range(2 * FEW_FILES):
        store.append([message(queue_id=queue_id)])
    end = store.end_offset
    disk.full = True
    for _ in range(3):
        maintain(store)
        assert store.flushed_offset == end
        assert vouched(tmp_path, clock) < end
    disk.full = False
    maintain(store)
    assert vouched(tmp_path, clock) == end
    assert store.writable == (True, "")
    store.close()


def test_a_deletion_says_no_more_of_other_queues(tmp_path: Path, clock: Clock) -> None:
    """The manifest goes on to speak for its checkpoint: what came later may be lost without being missed."""
    disk = PowerLossFiles()
    store = open_store("/s", fs=disk, clock=clock)
    store.append([message(), message(topic="Doomed")])
    flush(store)
    clock.advance(60_000)
    maintain(store)
    before = load_manifest("/s", disk)
    assert before is not None
    store.append([message(), message(topic="Doomed")])
    assert store.delete_queues("Doomed") == 1
    after = load_manifest("/s", disk)
    assert after is not None
    assert after.queues == [known for known in before.queues if known.topic == "T"]
    assert after.offset == before.offset


def test_a_deletion_while_a_round_ends(store: MessageStore, tmp_path: Path, clock: Clock) -> None:
    """The job was begun before and writes its manifest afterwards: without the deleted queues."""
    store.append([message(), message(topic="Doomed")])
    clock.advance(60_000)
    job = store.maintain_begin()
    assert job is not None
    assert job.checkpoint is not None
    store.delete_queues("Doomed")
    job.run()
    store.maintain_done(job)
    manifest = load_manifest(str(tmp_path), FileSystem())
    assert manifest is not None
    assert [known.topic for known in manifest.queues] == ["T"]
    crash(store)
    store = open_store(tmp_path, clock=clock)
    assert sorted(store.queues()) == [("T", 0)]
    store.close()
