"""Queue offsets that were in use are not given to other messages, whatever was lost."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.check import look
from store.engine import MessageStore
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem, StrPath
from store.manifest import load as load_manifest
from store.progress import Silent
from tests.fakes import Clock
from tests.store.making import crash, damage, drain, flush, maintain, message, open_store, options

FILE_UNITS = 20


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def append(store: MessageStore, topic: str = "T") -> int:
    """The queue offset of a new message."""
    new = message(b"new", topic=topic)
    store.append([new])
    return new.queue_offset


def expire(store: MessageStore, root: Path, count: int, files: int = 3) -> None:
    """``count`` messages of topic T, and so many of another topic behind them that retention takes all the first."""
    for number in range(count):
        store.append([message(b"%d" % number)])
    store.append([message(b"x" * 3900, topic="Other") for _ in range(files)])
    flush(store)
    maintain(store)
    doomed = [store._log.detach_first_file() for _ in range(len(store._log.bases()) - files)]
    for path in doomed:
        Path(path).unlink()


@pytest.mark.parametrize("stop", ["closed", "killed"])
@pytest.mark.parametrize("count", [3, FILE_UNITS, 5 * FILE_UNITS + 7])
def test_a_lost_queue_whose_messages_expired(tmp_path: Path, stop: str, count: int) -> None:
    """Nothing in the log tells where it was; it goes on there all the same, after any number of starts."""
    store = open_store(tmp_path)
    expire(store, tmp_path, count)
    crash(store) if stop == "killed" else store.close()
    shutil.rmtree(tmp_path / "consumequeue" / "T")
    for _ in range(3):
        store = open_store(tmp_path)
        assert drain(store) == []
        assert (store.min_offset("T", 0), store.max_offset("T", 0)) == (count, count)
        append(store, "Other")
        flush(store)
        maintain(store)
        crash(store) if stop == "killed" else store.close()
    store = open_store(tmp_path)
    assert append(store) == count
    assert [record.queue_offset for record in drain(store)] == [count]
    crash(store)
    store = open_store(tmp_path)
    assert [record.queue_offset for record in drain(store)] == [count]
    store.close()


def test_it_is_remembered_while_the_disk_is_too_full_for_it(tmp_path: Path) -> None:
    """The queue cannot be placed on disk; each manifest repeats where it was."""
    count = 5 * FILE_UNITS + 7
    store = open_store(tmp_path)
    expire(store, tmp_path, count)
    store.close()
    shutil.rmtree(tmp_path / "consumequeue" / "T")
    for _ in range(3):
        faults = Failpoints()

        class FullForQueues(FaultyFiles):
            def create(self, path: StrPath, size: int) -> int:
                if "/consumequeue/T/" in str(path):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().create(path, size)

        store = open_store(tmp_path, fs=FullForQueues(FileSystem(), faults))
        append(store, "Other")
        store.close()
        manifest = load_manifest(str(tmp_path), FileSystem())
        assert manifest is not None
        assert [(known.max_offset, known.used_until) for known in manifest.queues if known.topic == "T"] == [(0, count)]
        assert look(options(tmp_path), FileSystem(), Silent()).findings.damages == 0
    store = open_store(tmp_path)
    assert append(store) == count
    store.close()


def test_a_wide_gap_behind_messages_that_are_left(tmp_path: Path) -> None:
    """A part of the log is lost, with more messages of a queue than one of its files holds."""
    count = 6 * FILE_UNITS
    store = open_store(tmp_path)
    for number in range(count):
        store.append([message(b"%d" % number)])
    flush(store)
    maintain(store)
    crash(store)
    for file in sorted((tmp_path / "commitlog").iterdir())[1:]:
        file.unlink()
    store = open_store(tmp_path)
    left = store.max_offset("T", 0)
    assert 0 < left < count - 2 * FILE_UNITS
    append(store, "Other")
    store.close()
    store = open_store(tmp_path)
    assert append(store) == count
    assert [record.queue_offset for record in drain(store)] == [*range(left), count]
    crash(store)
    store = open_store(tmp_path)
    assert [record.queue_offset for record in drain(store)] == [*range(left), count]
    assert append(store) == count + 1
    store.close()


def test_impossible_offsets_are_not_believed(tmp_path: Path) -> None:
    """A queue file of a far too high name says nothing about the queue."""
    store = open_store(tmp_path)
    for number in range(5):
        store.append([message(b"%d" % number)])
    store.close()
    shutil.rmtree(tmp_path / "pocketmq")
    directory = tmp_path / "consumequeue" / "T" / "0"
    (directory / f"{0:020d}").rename(directory / f"{400 * 10**9:020d}")
    damage(tmp_path / "checkpoint", lambda data: data.__setitem__(7, data[7] ^ 1))
    store = open_store(tmp_path)
    assert append(store) == 5
    store.close()


def test_a_deleted_topic_begins_anew(tmp_path: Path) -> None:
    """Its floor is deleted with it."""
    store = open_store(tmp_path)
    expire(store, tmp_path, 30)
    store.close()
    shutil.rmtree(tmp_path / "consumequeue" / "T")
    store = open_store(tmp_path)
    store.delete_queues("T")
    assert append(store) == 0
    store.close()
    store = open_store(tmp_path)
    assert append(store) == 1
    store.close()


def test_a_stop_in_the_middle_of_a_rebuild(tmp_path: Path) -> None:
    """The manifest does not vouch for anything then, but it still knows the offsets."""
    store = open_store(tmp_path)
    expire(store, tmp_path, 30)
    store.close()
    shutil.rmtree(tmp_path / "consumequeue")

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            MessageStore.open(options(tmp_path), now_ms=Clock(), progress=stop)
    store = open_store(tmp_path)
    assert drain(store, "Other")
    assert append(store) == 30
    store.close()
