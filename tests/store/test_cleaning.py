"""Deleting old files: log, queues, index, in this order; and the disk that is full."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from store.cleaning import Cleaner
from store.commitlog import CommitLog
from store.consumequeue import ConsumeQueues
from store.engine import GetStatus, MessageStore
from store.errors import StoreFull
from store.files import DiskUsage, FileSystem, StrPath
from store.manifest import load as load_manifest
from store.upkeep import QUEUES_IN_JOB
from tests.fakes import Clock, PowerLossFiles, PowerLost
from tests.store.making import SYNC, bodies, drain, flush, maintain, message, open_store, options

HOUR_MS = 3_600_000
NEVER = "00;01;02;03;04;05;06;07;08;09;10;11;12;13;14;15;16;17;18;19;20;21;22;23"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


class Disk(FileSystem):
    """As full as a test says."""

    percent = 10

    def usage(self, path: StrPath) -> DiskUsage:
        return DiskUsage(self.percent, 100 - self.percent)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(root: Path, disk: Disk, clock: Clock, **changes: Any) -> MessageStore:
    """Five log files, of which the last is being written."""
    store = open_store(root, fs=disk, clock=clock, file_reserved_time=10, **changes)
    number = 0
    while len(store._log.bases()) < 5 or store._log.bases()[-1] >= store.end_offset:
        store.append([message(b"%04d" % number * 20, key=f"k{number}", queue_id=number % 2)])
        number += 1
    return store


def age(root: Path, clock: Clock, hours: list[float]) -> None:
    """Set the files' last writes so many hours back."""
    for path, back in zip(sorted((root / "commitlog").iterdir()), hours, strict=False):
        changed = (clock() - int(back * HOUR_MS)) * 1_000_000
        os.utime(path, ns=(changed, changed))


def clean(store: MessageStore, clock: Clock) -> None:
    """The next rounds, queues and index included."""
    for _ in range(3):
        clock.advance(10_001)
        maintain(store)


def names(root: Path) -> list[int]:
    return [int(path.name) // 4096 for path in sorted((root / "commitlog").iterdir())]


def test_expired_files_go_and_everything_follows(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    """Minimum offsets, queue files and index entries of the deleted files; consumers get the official answer."""
    store = make(tmp_path, disk, clock, delete_when=NEVER)
    age(tmp_path, clock, [20, 11, 9, 8, 7])
    clean(store, clock)
    assert names(tmp_path)[:3] == [2, 3, 4]
    assert store.start_offset == 2 * 4096
    for queue_id in (0, 1):
        found = drain(store, "T", queue_id)
        assert found[0].physical_offset >= 2 * 4096
        assert found[0].queue_offset == store.min_offset("T", queue_id) > 0
        result = store.get("T", queue_id, 0, 32)
        assert (result.status, result.next_offset) == (GetStatus.OFFSET_TOO_SMALL, found[0].queue_offset)
        assert store.earliest_store_time("T", queue_id) == found[0].store_timestamp
    assert store.query_keys("T", "k0", 32, 0, 1 << 60).records == []
    assert len(store.query_keys("T", f"k{found[-1].queue_offset * 2 + 1}", 32, 0, 1 << 60).records) == 1
    store.close()
    store = open_store(tmp_path, fs=disk, clock=clock)
    assert store.verdict.clean
    assert store.min_offset("T", 1) == found[0].queue_offset
    store.close()


def test_nothing_goes_at_other_hours(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    """Unless the disk is above its ratio, or an operator asks."""
    store = make(tmp_path, disk, clock, delete_when="")
    age(tmp_path, clock, [20, 20, 1, 1, 1])
    clean(store, clock)
    assert names(tmp_path)[0] == 0
    store.request_cleaning()
    clean(store, clock)
    assert names(tmp_path)[0] == 2
    store.close()


def test_a_disk_above_its_ratio(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    """75 %: expired files; 85 %: the oldest whatever their age, but never the one being written."""
    store = make(tmp_path, disk, clock, delete_when="")
    age(tmp_path, clock, [20, 1, 1, 1, 1])
    disk.percent = 76
    clean(store, clock)
    assert names(tmp_path)[0] == 1
    disk.percent = 86
    clean(store, clock)
    assert names(tmp_path)[0] == 4
    assert store.writable[0]
    assert drain(store, "T", 0) + drain(store, "T", 1)
    store.close()


def test_a_full_disk_refuses_and_recovers_by_itself(
    tmp_path: Path, disk: Disk, clock: Clock, logs: list[structlog.typing.EventDict]
) -> None:
    """Above 90 % sends are refused with the figures; reads go on; at 85 % sends are taken again."""
    store = make(tmp_path, disk, clock, delete_when="", clean_file_forcibly_enable=False)
    disk.percent = 91
    clean(store, clock)
    writable, reason = store.writable
    assert not writable
    assert "91 %" in reason
    with pytest.raises(StoreFull, match="91 %"):
        store.append([message(b"one more")])
    assert drain(store)
    disk.percent = 88
    clean(store, clock)
    assert not store.writable[0]
    disk.percent = 85
    clean(store, clock)
    assert store.writable == (True, "")
    store.append([message(b"one more")])
    assert [entry["event"] for entry in logs if entry["event"].startswith("disk")] == ["disk_full", "disk_has_space"]
    store.close()


def test_many_queues_are_corrected_bit_by_bit(
    tmp_path: Path, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round corrects so many; a pull in between passes over what is gone."""
    monkeypatch.setattr("store.cleaning.QUEUES_A_ROUND", 1)
    store = make(tmp_path, disk, clock, delete_when=NEVER)
    age(tmp_path, clock, [20, 1, 1, 1, 1])
    clock.advance(10_001)
    maintain(store)
    assert store.start_offset == 4096
    minima = []
    for _ in range(3):
        maintain(store)
        minima.append(sum(store.min_offset("T", queue_id) > 0 for queue_id in (0, 1)))
        assert drain(store, "T", 0, 0)[0].physical_offset >= 4096 if minima[-1] < 2 else True
    assert minima == [1, 2, 2]
    store.close()


def test_a_file_that_cannot_be_removed(
    tmp_path: Path, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out of the log all the same, and nothing else stops."""
    store = make(tmp_path, disk, clock, delete_when=NEVER)
    age(tmp_path, clock, [20, 1, 1, 1, 1])

    def refuse(path: StrPath) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "unlink", refuse)
        clean(store, clock)
    assert store.start_offset == 4096
    assert store.writable == (True, "")
    store.close()


def test_operators_remove_queues(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    """Queues whose messages are all deleted, and queues of topics that are not configured."""
    store = open_store(tmp_path, fs=disk, clock=clock, delete_when=NEVER, file_reserved_time=10)
    store.append([message(topic="Old"), message(topic="Gone")])
    while store.end_offset < 3 * 4096:
        store.append([message(b"x" * 200), message(b"x" * 200, topic="Gone")])
    age(tmp_path, clock, [20, 20, 1])
    clean(store, clock)
    assert store.delete_expired_queues() == 1
    assert sorted(store.queues()) == [("Gone", 0), ("T", 0)]
    assert store.delete_unused_queues({"T"}) == 1
    assert list(store.queues()) == [("T", 0)]
    store.append(again := [message(topic="Gone")])
    assert again[0].queue_offset == 0
    store.close()


@pytest.mark.parametrize("queues", [4, 5])
def test_many_queues_are_removed_bit_by_bit(tmp_path: Path, clock: Clock, queues: int) -> None:
    """Whoever asks has its say in between; a start after a kill does not make them again."""
    store = open_store(tmp_path / "store", clock=clock)
    store.append([message(queue_id=number) for number in range(queues)])
    store.append([message(topic="Kept")])
    clock.advance(31_000)
    maintain(store)
    assert len(manifest_queues(tmp_path / "store")) == queues + 1
    steps = [store.delete_unused_queues({"Kept"}, 2) for _ in range(3)]
    assert steps == [2, 2, queues - 4]
    assert manifest_queues(tmp_path / "store") == ["Kept"]
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    again = open_store(tmp_path / "copy", clock=clock)
    assert list(again.queues()) == [("Kept", 0)]
    again.close()
    store.close()


@pytest.mark.parametrize("written_again", [False, True])
@pytest.mark.parametrize("moment", ["before it runs", "after it ran"])
def test_removed_queues_get_no_files_from_upkeep_under_way(
    tmp_path: Path, clock: Clock, moment: str, written_again: bool
) -> None:
    """A round made files ahead for them, or was about to; one that is written again meanwhile keeps what it has."""
    store = open_store(tmp_path, clock=clock)
    store.append([message(topic=f"T{number}") for number in range(QUEUES_IN_JOB + 10)])
    clock.advance(31_000)
    job = store.maintain_begin()
    assert job is not None
    assert len(job.made_files) == QUEUES_IN_JOB
    if moment == "after it ran":
        job.run()
    store.delete_unused_queues(set())
    if moment == "before it runs":
        job.run()
    if written_again:
        store.append([message(b"new", topic="T0")])
        store._queues.write_pending()
    while job is not None:
        job = store.maintain_begin() if store.maintain_done(job) else None
        if job is not None:
            job.run()
    left = ["T0"] if written_again else []
    assert [path.parent.parent.name for path in (tmp_path / "consumequeue").glob("*/*/*")] == left
    store.close()
    store = open_store(tmp_path, clock=clock)
    assert [topic for topic, _ in store.queues()] == left
    assert bodies(store, "T0") == [b"new"] * written_again
    store.close()


def manifest_queues(root: Path) -> list[str]:
    manifest = load_manifest(str(root), FileSystem())
    assert manifest is not None
    return [known.topic for known in manifest.queues]


def test_messages_on_their_way_survive_the_removal_of_queues(tmp_path: Path, disk: Disk, clock: Clock) -> None:
    """No offset is given twice: neither in the queue that goes, nor in its neighbour that stays."""
    store = open_store(tmp_path, fs=disk, clock=clock, delete_when=NEVER, file_reserved_time=10, flush_disk_type=SYNC)
    store.append([message(b"old")])
    while store.end_offset < 2 * 4096:
        store.append([message(b"x" * 200, queue_id=1)])
    flush(store)
    while store.dispatch_step():
        pass
    age(tmp_path, clock, [20, 1])
    clean(store, clock)
    waiting = [message(b"one", queue_id=0), message(b"one", queue_id=1)]
    store.append(waiting)
    assert store.delete_expired_queues() == 1
    store.append(behind := [message(b"two", queue_id=0), message(b"two", queue_id=1)])
    assert [item.queue_offset for item in behind] == [item.queue_offset + 1 for item in waiting]
    flush(store)
    while store.dispatch_step():
        pass
    assert bodies(store) == [b"one", b"two"]
    assert bodies(store, queue_id=1)[-2:] == [b"one", b"two"]
    store.close()


def test_a_loss_of_power_leaves_no_hole_in_the_log() -> None:
    """Removed files may come back, but only together with all that follow them."""
    disk = PowerLossFiles()
    disk.makedirs("/log")
    log = CommitLog("/log", 4096, disk, first_queue_offset=lambda topic, queue_id: 0)
    for _ in range(200):
        log.append([message(b"x" * 80)], 1)
    there = disk.listdir("/log")
    disk.sync_directory("/log")
    cleaner = Cleaner(options("/"), log, ConsumeQueues("/q", 400, disk), None, disk)
    paths = [log.detach_first_file() for _ in range(4)]
    disk.crash_at = disk.steps + 6
    with pytest.raises(PowerLost):
        cleaner.remove(paths)
    for seed in range(30):
        left = disk.lose_power(random.Random(seed)).listdir("/log")
        assert left == there[-len(left) :]


def test_a_checkpoint_right_after_a_deletion(
    tmp_path: Path, disk: Disk, clock: Clock, logs: list[structlog.typing.EventDict]
) -> None:
    """The queues' minimum offsets follow later; a start in between does not take that for damage."""
    store = make(tmp_path, disk, clock)
    age(tmp_path, clock, [20, 20, 20])
    store.request_cleaning()
    flush(store)
    clock.advance(60_000)
    job = store.maintain_begin()
    assert job is not None
    job.run()
    store.maintain_done(job)
    assert store.start_offset > 0
    store._lock.release()  # killed
    store = open_store(tmp_path, fs=disk, clock=clock)
    assert [entry for entry in logs if entry["event"] == "consume_queue_rebuilt"] == []
    store.close()
