"""Group commit: a job covers what was appended before it began, and a failure is never repeated."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from store.commitlog import CommitLog
from store.errors import StorePoisoned
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem
from store.flush import Flusher
from tests.fakes import PowerLossFiles
from tests.store.making import message


@pytest.fixture
def faults() -> Failpoints:
    return Failpoints()


@pytest.fixture
def log(tmp_path: Path, faults: Failpoints) -> CommitLog:
    fs = FaultyFiles(FileSystem(), faults)
    return CommitLog(str(tmp_path), 4096, fs, first_queue_offset=lambda topic, queue_id: 0)


@pytest.fixture
def flusher(log: CommitLog, faults: Failpoints) -> Flusher:
    return Flusher(log, FaultyFiles(FileSystem(), faults), 0)


def test_a_job_covers_what_was_there_when_it_began(log: CommitLog, flusher: Flusher) -> None:
    """Appends while it runs belong to the next one."""
    log.append([message()], 1)
    first_end = log.end_offset
    job = flusher.begin()
    log.append([message()], 1)
    job.run()
    assert flusher.flushed_offset == 0
    flusher.finish(job)
    assert flusher.flushed_offset == first_end
    assert flusher.dirty_bytes == log.end_offset - first_end


def test_one_flush_for_many_appends(log: CommitLog, flusher: Flusher, faults: Failpoints) -> None:
    """One fdatasync of one file; nothing when nothing is dirty."""
    for _ in range(20):
        log.append([message()], 1)
    assert faults.passed.pop("flush") == 2  # the new file's size and name
    job = flusher.begin()
    job.run()
    flusher.finish(job)
    assert faults.passed["flush"] == 1
    job = flusher.begin()
    job.run()
    flusher.finish(job)
    assert faults.passed["flush"] == 1
    log.append([message()], 1)
    flusher.begin().run()
    assert faults.passed["flush"] == 2


def test_a_flush_over_files(log: CommitLog, flusher: Flusher, faults: Failpoints) -> None:
    """Every file with bytes that are not safe."""
    for _ in range(80):
        log.append([message(b"x" * 50)], 1)
    files = len(log.bases())
    assert files > 2
    faults.passed.clear()
    job = flusher.begin()
    job.run()
    assert faults.passed["flush"] == files
    flusher.finish(job)
    assert flusher.flushed_offset == log.end_offset


def test_an_unfinished_job_proves_nothing(log: CommitLog, flusher: Flusher) -> None:
    """Its target is not believed."""
    log.append([message()], 1)
    with pytest.raises(ValueError, match="end"):
        flusher.finish(flusher.begin())
    assert flusher.flushed_offset == 0


def test_a_failed_flush_is_not_repeated(log: CommitLog, flusher: Flusher, faults: Failpoints) -> None:
    """The kernel may have dropped the pages: a second try would call lost bytes safe."""
    log.append([message()], 1)
    faults.arm("flush")
    job = flusher.begin()
    with pytest.raises(OSError, match="injected"):
        job.run()
    log.poison("fdatasync failed")
    flushes = faults.passed["flush"]
    with pytest.raises(StorePoisoned, match="fdatasync failed"):
        flusher.begin().run()
    assert faults.passed["flush"] == flushes
    with pytest.raises(StorePoisoned, match="fdatasync failed"):
        log.append([message()], 1)
    assert flusher.flushed_offset == 0


def test_a_job_that_overtakes_another_promises_no_less() -> None:
    """The upkeep's flush began first, a send's flush ends first: also the name of a new file is safe then."""
    disk = PowerLossFiles()
    disk.makedirs("/log")
    disk.sync_directory("/")
    log = CommitLog("/log", 4096, disk, first_queue_offset=lambda topic, queue_id: 0)
    flusher = Flusher(log, disk, 0)
    log.append([message()], 1)
    upkeep = flusher.begin()
    log.append([message()], 1)
    send = flusher.begin()
    send.run()
    flusher.finish(send)
    for seed in range(10):
        after = disk.lose_power(random.Random(seed))
        assert after.stat(log.path(0)) is not None
    upkeep.run()
    flusher.finish(upkeep)
    assert flusher.flushed_offset == send.target


def test_no_job_follows_one_that_failed(log: CommitLog, flusher: Flusher, faults: Failpoints) -> None:
    """The kernel tells of a lost page once; a job that was begun before must not take the next answer for good."""
    log.append([message()], 1)
    first, second = flusher.begin(), flusher.begin()
    faults.arm("flush")
    with pytest.raises(OSError, match="injected"):
        first.run()
    with pytest.raises(StorePoisoned, match="an earlier flush failed"):
        second.run()
    assert flusher.flushed_offset == 0
