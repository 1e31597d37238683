"""What is remembered of the derived files beside the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.files import FileSystem
from store.manifest import FILE, KnownQueue, Manifest, load, newest_change, save, snapshot, withdraw
from tests.store.making import message, open_store

FS = FileSystem()
SAMPLE = Manifest(100, 0, 90, ["20240101000000000"], [KnownQueue("T", 1, 2, 3, 4, 5)])


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def test_save_load_withdraw(tmp_path: Path) -> None:
    """It comes back as it was; withdrawn, neither it nor its backup speaks for anything."""
    root = str(tmp_path)
    assert load(root, FS) is None
    save(root, SAMPLE, FS)
    assert load(root, FS) == SAMPLE
    save(root, SAMPLE, FS)
    assert SAMPLE.vouches
    for _ in range(2):
        withdraw(root, FS, {("T", 1): 7})
        left = load(root, FS)
        assert left is not None
        assert not left.vouches
        assert left.queues == [KnownQueue("T", 1, 0, 0, used_until=7)]
        assert [path.name for path in (tmp_path / "pocketmq").iterdir()] == [Path(FILE).name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"offset":"x"}'])
def test_damaged_it_says_nothing(tmp_path: Path, text: str) -> None:
    """As if there were none."""
    (tmp_path / "pocketmq").mkdir()
    (tmp_path / FILE).write_text(text)
    assert load(str(tmp_path), FS) is None


def test_snapshot_of_queues(tmp_path: Path) -> None:
    """Queues that ever held a message, with the offsets that are taken although their messages are lost."""
    store = open_store(tmp_path)
    store.append([message(), message(queue_id=2), message()])
    store._queues.queue("Empty", 0, create=True)
    known = snapshot(store._queues, {("T", 2): 7})
    assert sorted((queue.topic, queue.queue_id, queue.max_offset, queue.used_until) for queue in known) == [
        ("T", 0, 2, 0),
        ("T", 2, 1, 7),
    ]
    store.close()


def test_newest_change(tmp_path: Path) -> None:
    """Of all files of a queue."""
    directory = tmp_path / "consumequeue" / "T" / "0"
    directory.mkdir(parents=True)
    queue = KnownQueue("T", 0, 0, 1)
    assert newest_change(str(tmp_path), queue, FS) == 0
    for name, changed in (("a", 5), ("b", 9), ("c", 7)):
        (directory / name).touch()
        FS.set_mtime(directory / name, changed)
    assert newest_change(str(tmp_path), queue, FS) == 9
