"""Wrong queue units are searched in the log, behind the last right one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.engine import MessageStore
from store.healing import Healer
from store.queue import ConsumeQueue
from store.queuefiles import UNIT
from tests.store.making import bodies, damage, message, open_store


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MessageStore]:
    """Sixty messages of two queues over several files, whose units are all on disk."""
    store = open_store(tmp_path)
    for number in range(60):
        store.append([message(b"%d" % number, queue_id=number % 2, tag="A")])
    store.close()
    store = open_store(tmp_path)
    yield store
    store.close()


def queue_of(store: MessageStore) -> ConsumeQueue:
    queue = store._queues.queue("T", 1)
    assert queue is not None
    return queue


def overwrite(tmp_path: Path, number: int, unit: tuple[int, int, int]) -> None:
    """Change a unit of queue 1 behind the store's back."""
    base = number * 20 // 400 * 400
    path = tmp_path / "consumequeue" / "T" / "1" / f"{base:020d}"
    with path.open("r+b") as file:
        file.seek(number * 20 - base)
        file.write(UNIT.pack(*unit))


WRONG = [(0, 0, 0), (-1, 100, 0), (2**60, 120, 0), (17, 120, 0), (0, 2**30, 0), (0, -5, 0)]


@pytest.mark.parametrize("number", [0, 1, 13, 19, 20, 29])
@pytest.mark.parametrize("wrong", WRONG)
def test_the_right_unit_is_found(store: MessageStore, tmp_path: Path, number: int, wrong: tuple[int, int, int]) -> None:
    """At the queue's begin, in its middle, at a file's end; the pull gives the message, upkeep mends the file."""
    right = queue_of(store).unit(number)
    expected = bodies(store, "T", 1)
    overwrite(tmp_path, number, wrong)
    assert bodies(store, "T", 1) == expected
    assert store.damaged_reads == 0
    store._upkeep.begin(0)
    assert queue_of(store).slice(number, 1) == [right]


def test_one_search_learns_all_units_on_its_way(store: MessageStore, tmp_path: Path) -> None:
    """A file of zeros costs one walk, not one for each of its units."""
    right = queue_of(store).slice(3, 20)
    for number in range(3, 23):
        overwrite(tmp_path, number, (0, 0, 0))
    healer: Healer = store._healer
    assert healer.find(queue_of(store), 22) == right[-1]
    assert [healer.known(queue_of(store), number) for number in range(3, 23)] == [(True, unit) for unit in right]


def test_a_lost_record_is_searched_once(
    store: MessageStore, tmp_path: Path, logs: list[structlog.typing.EventDict]
) -> None:
    """The answer that it is gone is remembered, and told."""
    unit = queue_of(store).unit(5)
    assert unit is not None
    path = tmp_path / "commitlog" / f"{unit[0] // 4096 * 4096:020d}"
    at = unit[0] % 4096
    fd = store._fs.open(str(path))
    store._fs.write_all(fd, b"\xff" * 40, at)
    store._fs.close(fd)
    expected = [b"%d" % number for number in range(1, 60, 2) if number != 11]
    assert bodies(store, "T", 1) == expected
    assert store._healer.known(queue_of(store), 5) == (True, None)
    assert store.get("T", 1, 0, 32).count == 19  # without a thread
    assert [entry["offset"] for entry in logs if entry["event"] == "damaged_record"] == [unit[0]]


def test_deleted_queues_are_forgotten(store: MessageStore, tmp_path: Path) -> None:
    """What was found for a topic says nothing about a new one of its name."""
    overwrite(tmp_path, 5, (0, 0, 0))
    queue = queue_of(store)
    assert store._healer.find(queue, 5) is not None
    store.delete_queues("T")
    assert store._healer.known(queue, 5) == (False, None)
    store.append([message(b"new", queue_id=1)])
    assert bodies(store, "T", 1) == [b"new"]


def test_memory_is_bounded(store: MessageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search learns no more than it may keep, and still answers."""
    monkeypatch.setattr("store.healing.MAX_KNOWN", 4)
    expected = bodies(store, "T", 1)
    for number in range(30):
        if number % 5:
            overwrite(tmp_path, number, (0, 0, 0))
    assert bodies(store, "T", 1) == expected
    assert len(store._healer._known) <= 5


def test_units_are_damaged_before_the_start(tmp_path: Path) -> None:
    """What the start sees is made again from the log; both ways give the same."""
    store = open_store(tmp_path)
    store.append([message(b"%d" % number) for number in range(15)])
    store.close()
    path = tmp_path / "consumequeue" / "T" / "0" / f"{0:020d}"
    damage(path, lambda data: data.__setitem__(slice(60, 80), bytes(20)))
    store = open_store(tmp_path)
    assert bodies(store) == [b"%d" % number for number in range(15)]
    store.close()
