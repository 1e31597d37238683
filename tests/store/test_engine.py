"""The store as the gateway sees it: lives of any kind give back what went in, in step with a simple model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.message import decode_record, encode_record
from store.engine import GetStatus, MessageStore
from store.errors import OffsetOutOfRange, StoreError
from store.files import FileSystem
from tests.fakes import Clock, PowerLossFiles
from tests.store.making import SYNC, bodies, crash, drain, flush, maintain, message, open_store


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def test_a_new_store(tmp_path: Path) -> None:
    """Empty, with its lock and abort files; closed, only what official brokers know is left in their folders."""
    store = open_store(tmp_path / "deep" / "store")
    assert (store.start_offset, store.end_offset, store.flushed_offset, store.dispatched_offset) == (0, 0, 0, 0)
    assert (store.min_offset("T", 0), store.max_offset("T", 0), store.has_queue("T", 0)) == (0, 0, False)
    assert list(store.queues()) == []
    assert store.writable == (True, "")
    assert store.message_at(0) is None
    assert store.read_raw(0, 100) == b""
    store.close()
    assert not (tmp_path / "deep" / "store" / "abort").exists()
    assert list((tmp_path / "deep" / "store" / "commitlog").iterdir()) == []


def test_append_sets_what_the_reply_needs(tmp_path: Path) -> None:
    """Queue offset, physical offset, store time, size; and returns the end."""
    clock = Clock(5000)
    store = open_store(tmp_path, clock=clock)
    batch = [message(b"a"), message(b"b", queue_id=1), message(b"c")]
    assert store.append(batch) == store.end_offset == sum(item.size for item in batch)
    assert [item.queue_offset for item in batch] == [0, 0, 1]
    assert {item.store_timestamp for item in batch} == {5000}
    assert store.read_raw(0, 10_000) == b"".join(encode_record(item) for item in batch)
    store.close()


def test_store_times_never_fall(tmp_path: Path) -> None:
    """Also when the clock does, and over a restart: search by time depends on it."""
    clock = Clock(10_000)
    store = open_store(tmp_path, clock=clock)
    store.append([message()])
    clock.now_ms = 4_000
    store.append([message()])
    store.close()
    store = open_store(tmp_path, clock=clock)
    store.append([message()])
    assert [record.store_timestamp for record in drain(store)] == [10_000] * 3
    store.close()


def test_sync_flush_shows_only_what_is_flushed(tmp_path: Path) -> None:
    """Appended is not visible, flushed and dispatched is, and each arrival is told once."""
    store = open_store(tmp_path, flush_disk_type=SYNC)
    store.append([message(b"a", tag="A")])
    assert not store.dispatch_step()
    assert bodies(store) == []
    assert store.message_at(0) is None
    job = store.flush_begin()
    store.append([message(b"b")])
    job.run()
    store.flush_done(job)
    (arrival,) = store.dispatch_step()
    assert (arrival.topic, arrival.queue_id, arrival.queue_offset, arrival.physical_offset) == ("T", 0, 0, 0)
    assert not store.dispatch_step()
    assert bodies(store) == [b"a"]
    flush(store)
    store.dispatch_step()
    assert bodies(store) == [b"a", b"b"]
    store.close()


def test_a_replica_is_byte_identical(tmp_path: Path) -> None:
    """Records, queues, index: all follow from the bytes; a restart in the middle changes nothing."""
    master = open_store(tmp_path / "master")
    for number in range(60):
        master.append([message(b"%d" % number * 10, key=f"k{number}", tag="T", queue_id=number % 3)])
    slave = open_store(tmp_path / "slave")
    offset = 0
    while offset < master.end_offset:
        offset = slave.append_raw(offset, master.read_raw(offset, 777))
        slave.dispatch_step()
        if offset % 5 == 0:
            slave.close()
            slave = open_store(tmp_path / "slave")
            offset = slave.end_offset
    for queue_id in range(3):
        assert bodies(slave, "T", queue_id) == bodies(master, "T", queue_id)
    assert len(slave.query_keys("T", "k33", 10, 0, 1 << 60).records) == 1
    for store in (master, slave):
        store.close()
    for path in sorted((tmp_path / "master").rglob("*0000*")):
        twin = tmp_path / "slave" / path.relative_to(tmp_path / "master")
        assert path.is_dir() or twin.read_bytes() == path.read_bytes(), path


def test_a_replica_that_begins_in_the_middle(tmp_path: Path) -> None:
    """At a file's begin, with queues that begin where its records do."""
    master = open_store(tmp_path / "master")
    for number in range(80):
        master.append([message(b"%d" % number)])
    slave = open_store(tmp_path / "slave")
    offset = 4096
    while offset < master.end_offset:
        offset = slave.append_raw(offset, master.read_raw(offset, 1000))
        slave.dispatch_step()
    assert slave.start_offset == 4096
    found = drain(slave)
    assert found[0].queue_offset == slave.min_offset("T", 0) > 0
    assert found == [record for record in drain(master) if record.physical_offset >= 4096]
    with pytest.raises(OffsetOutOfRange):
        slave.append_raw(0, b"x")
    slave.close()
    slave = open_store(tmp_path / "slave")
    assert drain(slave) == found
    slave.close()
    master.close()


def test_queries_by_key(tmp_path: Path) -> None:
    """The newest in the time range, in the order of the log, as official answers; nothing without an index."""
    clock = Clock(100_000)
    store = open_store(tmp_path, clock=clock)
    for number in range(10):
        clock.advance(10_000)
        store.append([message(b"%d" % number, key="same"), message(b"other", key="other", topic="U")])

    def found(*how: int) -> list[bytes]:
        return [decode_record(data).body for data in store.query_keys("T", "same", *how).records]

    assert found(64, 0, 1 << 60) == [b"%d" % number for number in range(10)]
    assert found(2, 0, 1 << 60) == [b"8", b"9"]
    assert found(64, 130_000, 150_000) == [b"2", b"3", b"4"]
    assert store.query_keys("T", "none", 64, 0, 1 << 60).records == []
    assert store.query_keys("T", "same", 64, 0, 1 << 60).index_timestamp == clock()
    store.close()
    store = open_store(tmp_path / "without", message_index_enable=False)
    store.append([message(key="same")])
    assert store.query_keys("T", "same", 64, 0, 1 << 60).records == []
    store.close()
    assert not (tmp_path / "without" / "index").exists()


def test_the_index_keys_are_those_of_the_properties(tmp_path: Path) -> None:
    """After a rebuild from the log the same keys are found as before."""
    store = open_store(tmp_path)
    properties = b"UNIQ_KEY\x01U1\x02KEYS\x01a b\x02TAGS\x01x"
    store.append([message(properties=properties, keys=("U1", "a", "b"))])
    crash(store)
    store = open_store(tmp_path)
    for key in ("U1", "a", "b"):
        assert len(store.query_keys("T", key, 64, 0, 1 << 60).records) == 1
    store.close()


def test_a_store_in_a_directory_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the path."""

    class ReadOnly(FileSystem):
        def open(self, path: Any, *, create: bool = False, readonly: bool = False) -> int:
            if create:
                raise OSError(30, "Read-only file system", str(path))
            return super().open(path, readonly=readonly)

    with pytest.raises(StoreError, match=r"abort: Read-only file system"):
        open_store(tmp_path, fs=ReadOnly())
    open_store(tmp_path).close()


class StoreModel(RuleBasedStateMachine):
    """A store on a disk in memory, against lists; it is closed and killed at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = PowerLossFiles()
        self.clock = Clock()
        self.model: dict[tuple[str, int], list[bytes]] = {}
        self.first: dict[tuple[str, int], int] = {}
        self.count = 0

    @initialize(sync=st.booleans())
    def start(self, sync: bool) -> None:
        self.changes: dict[str, Any] = {"flush_disk_type": SYNC} if sync else {}
        self.open()

    def open(self) -> None:
        self.store: MessageStore = open_store("/store", fs=self.disk, clock=self.clock, **self.changes)

    @rule(
        places=st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 2)), min_size=1, max_size=8),
        size=st.sampled_from((0, 30, 900)),
        atomic=st.booleans(),
    )
    def append(self, places: list[tuple[str, int]], size: int, atomic: bool) -> None:
        batch = []
        for topic, queue_id in places[: 3 if atomic else None]:
            self.count += 1
            body = b"%d|" % self.count + b"x" * size
            batch.append(message(body, topic=topic, queue_id=queue_id, key=f"k{self.count}"))
            self.model.setdefault((topic, queue_id), []).append(body)
        self.store.append(batch, atomic=atomic)
        for item in batch:
            name = (item.topic, item.queue_id)
            expected = self.first.get(name, 0) + self.model[name].index(item.body)
            assert item.queue_offset == expected

    @rule()
    def flush(self) -> None:
        flush(self.store)
        self.store.dispatch_step()

    @rule(pause=st.integers(0, 40_000))
    def maintain(self, pause: int) -> None:
        self.clock.advance(pause)
        maintain(self.store)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()
        assert self.store.verdict.clean or not self.model

    @rule()
    def kill(self) -> None:
        self.disk = self.disk.kill()
        self.open()

    @rule(topic=st.sampled_from("AB"))
    def delete_topic(self, topic: str) -> None:
        flush(self.store)
        while self.store.dispatch_step():
            pass
        self.store.delete_queues(topic)
        for name in list(self.model):
            if name[0] == topic:
                del self.model[name]
        # What a kill leaves of a deleted topic in the log's tail would come back, as with the official broker.
        self.clock.advance(60_000)
        maintain(self.store)

    @invariant()
    def every_queue_is_its_list(self) -> None:
        if not hasattr(self, "store"):
            return
        for name, expected in self.model.items():
            found = bodies(self.store, *name)
            if self.changes:
                assert found == expected[: len(found)]
            else:
                assert found == expected
            result = self.store.get(*name, self.store.max_offset(*name), 1)
            assert result.status in (GetStatus.OFFSET_OVERFLOW_ONE, GetStatus.NO_MATCHED_LOGIC_QUEUE)
        assert self.store.damaged_reads == 0

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.close()
        self.open()
        for name, expected in self.model.items():
            assert bodies(self.store, *name) == expected


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
