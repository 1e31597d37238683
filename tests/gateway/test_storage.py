"""The store on the event loop: group commit, promises and their codes, and what follows a failed flush."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import storage as storage_module
from gateway.storage import Storage
from gateway.watermark import Watermark
from protocol.codes import ResponseCode
from store.options import BrokerRole, FlushDiskType, StoreOptions


class FakeJob:
    def __init__(self, store: "FakeStore", target: int) -> None:
        self.target = target
        self._store = store

    def run(self) -> None:
        self._store.flush_threads.append(threading.current_thread() is threading.main_thread())
        if self._store.failure is not None:
            raise self._store.failure


class FakeStore:
    """Counts bytes instead of keeping them."""

    def __init__(self) -> None:
        self.end_offset = self.flushed_offset = 0
        self.flush_targets: list[int] = []
        self.flush_threads: list[bool] = []
        self.failure: OSError | None = None
        self.poisoned = ""
        self.undispatched: list[str] = []
        self.log_grew: Callable[[int], None] = lambda end: None

    def append(self, messages: list[Any], *, atomic: bool, dispatch: bool) -> int:
        self.end_offset += len(messages)
        self.log_grew(self.end_offset)
        return self.end_offset

    def flush_begin(self) -> FakeJob:
        self.flush_targets.append(self.end_offset)
        return FakeJob(self, self.end_offset)

    def flush_done(self, job: FakeJob) -> None:
        self.flushed_offset = job.target

    def dispatch_step(self, limit: int) -> list[str]:
        arrivals, self.undispatched = self.undispatched, []
        return arrivals

    def poison(self, reason: str) -> None:
        self.poisoned = reason


class FakeReplicas:
    def __init__(self, near: bool = True) -> None:
        self.acknowledged = Watermark()
        self.near = near
        self.are_enough = True
        self.hear: Callable[[], None] = lambda: None

    def in_reach(self, offset: int) -> bool:
        return self.near


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and a clock that jumps do not go together: what would run in a thread runs at the next step."""

    async def run_sync(function: Any, *args: Any, limiter: Any = None) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@asynccontextmanager
async def flushing(store: Any, **options: Any) -> AsyncIterator[Storage]:
    arrivals: list[str] = []
    storage = Storage(store, StoreOptions(**options), arrived=arrivals.extend)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.flush_forever)
        nursery.start_soon(storage.expire_forever)
        yield storage
        nursery.cancel_scope.cancel()


MESSAGE: Any = object()
SYNC: dict[str, Any] = {"flush_disk_type": FlushDiskType.SYNC_FLUSH}


async def test_one_flush_covers_all_that_was_appended_before_it() -> None:
    store = FakeStore()
    async with flushing(store, **SYNC) as storage:
        ends = [storage.append([MESSAGE] * 3) for _ in range(4)]
        results = [await storage.confirm(end) for end in ends]
    assert results == [ResponseCode.SUCCESS] * 4
    assert store.flush_targets == [12]


async def test_async_flush_confirms_nothing_and_flushes_by_the_interval(autojump_clock: Any) -> None:
    store = FakeStore()
    async with flushing(store, flush_interval_commit_log=500, flush_commit_log_least_pages=0) as storage:
        assert await storage.confirm(storage.append([MESSAGE])) == ResponseCode.SUCCESS
        assert store.flush_targets == []
        await trio.sleep(0.6)
    assert store.flush_targets == [1]


async def test_few_bytes_wait_for_the_thorough_interval(autojump_clock: Any) -> None:
    store = FakeStore()
    async with flushing(store) as storage:
        storage.append([MESSAGE])
        await trio.sleep(9)
        assert store.flush_targets == []
        await trio.sleep(2)
    assert store.flush_targets == [1]


async def test_untimed_flush_begins_when_enough_is_dirty(autojump_clock: Any) -> None:
    store = FakeStore()
    async with flushing(store, flush_commit_log_timed=False, flush_commit_log_least_pages=1) as storage:
        storage.append([MESSAGE] * 4095)
        await trio.sleep(0.1)
        assert store.flush_targets == []
        storage.append([MESSAGE] * 2)
        await trio.testing.wait_all_tasks_blocked()
        assert store.flush_targets == [4097]


async def test_a_new_interval_counts_after_the_present_one(autojump_clock: Any) -> None:
    store = FakeStore()
    async with flushing(store, flush_interval_commit_log=500, flush_commit_log_least_pages=1) as storage:
        await trio.sleep(0.1)
        storage._options.flush_interval_commit_log = 5000
        await trio.sleep(0.5)
        storage.append([MESSAGE] * 4096)
        await trio.sleep(4.5)
        assert store.flush_targets == []
        await trio.sleep(0.5)
    assert store.flush_targets == [4096]


async def test_a_new_role_counts_for_the_next_send(autojump_clock: Any) -> None:
    store = FakeStore()
    options = StoreOptions()
    storage = Storage(store, options)  # type: ignore[arg-type]
    storage.replicas = FakeReplicas(near=False)
    assert await storage.confirm(storage.append([MESSAGE])) == ResponseCode.SUCCESS
    options.change({"brokerRole": "SYNC_MASTER"})
    assert storage.waits_for_slaves
    assert await storage.confirm(storage.append([MESSAGE])) == ResponseCode.SLAVE_NOT_AVAILABLE


async def test_failed_flush_poisons_and_is_never_tried_again(autojump_clock: Any) -> None:
    store = FakeStore()
    store.failure = OSError(5, "input/output error")
    async with flushing(store, **SYNC) as storage:
        assert await storage.confirm(storage.append([MESSAGE])) == ResponseCode.FLUSH_DISK_TIMEOUT
        assert "input/output error" in store.poisoned
        store.failure = None
        assert await storage.confirm(storage.append([MESSAGE])) == ResponseCode.FLUSH_DISK_TIMEOUT
    assert store.flush_targets == [1]
    assert store.flushed_offset == 0


async def test_quick_disk_is_flushed_in_line_until_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(storage_module, "_timed", lambda run: (run(), taken.pop(0))[1])
    in_thread: list[int] = []
    run_sync: Any = trio.to_thread.run_sync

    async def counted(*args: Any, **kwargs: Any) -> Any:
        in_thread.append(store.end_offset)
        return await run_sync(*args, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    store = FakeStore()
    async with flushing(store, **SYNC) as storage:
        taken += [0.0001] * 40 + [0.02] + [0.0001] * 2
        for _ in range(43):
            await storage.confirm(storage.append([MESSAGE]))
    assert in_thread[0] == 1, "a disk that is not known yet may be slow"
    assert 40 not in in_thread
    assert in_thread[-2:] == [42, 43], "one slow flush sends the next ones to the thread"


@pytest.mark.parametrize(
    ("near", "acknowledged", "code"),
    [
        (False, 0, ResponseCode.SLAVE_NOT_AVAILABLE),
        (True, 0, ResponseCode.FLUSH_SLAVE_TIMEOUT),
        (True, 1, ResponseCode.SUCCESS),
    ],
)
async def test_double_write(near: bool, acknowledged: int, code: ResponseCode, autojump_clock: Any) -> None:
    store: Any = FakeStore()
    storage = Storage(store, StoreOptions(broker_role=BrokerRole.SYNC_MASTER, slave_timeout=3000))
    replicas = FakeReplicas(near)
    storage.replicas = replicas
    replicas.acknowledged.advance(acknowledged)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.expire_forever)
        assert await storage.confirm(storage.append([MESSAGE])) == code
        nursery.cancel_scope.cancel()
    expected = 3 if code == ResponseCode.FLUSH_SLAVE_TIMEOUT else 0
    assert trio.current_time() - started == pytest.approx(expected, abs=storage_module.EXPIRE_SECONDS)


@pytest.mark.parametrize(("returns", "code"), [(True, ResponseCode.SUCCESS), (False, ResponseCode.SLAVE_NOT_AVAILABLE)])
async def test_a_slave_that_goes_away_is_waited_for_a_second(
    returns: bool, code: ResponseCode, autojump_clock: Any
) -> None:
    store: Any = FakeStore()
    storage = Storage(store, StoreOptions(broker_role=BrokerRole.SYNC_MASTER, slave_timeout=3000))
    storage.replicas = replicas = FakeReplicas()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def lose_slave() -> None:
            await trio.sleep(0.2)
            replicas.are_enough = False
            await trio.sleep(0.5)
            if returns:
                replicas.acknowledged.advance(1)

        nursery.start_soon(storage.expire_forever)
        nursery.start_soon(lose_slave)
        assert await storage.confirm(storage.append([MESSAGE])) == code
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started == pytest.approx(0.7 if returns else 1.0, abs=storage_module.EXPIRE_SECONDS)


async def test_one_acknowledgement_releases_all_below_it() -> None:
    store: Any = FakeStore()
    storage = Storage(store, StoreOptions(broker_role=BrokerRole.SYNC_MASTER))
    replicas = FakeReplicas()
    storage.replicas = replicas
    codes: list[ResponseCode] = []

    async def send() -> None:
        codes.append(await storage.confirm(storage.append([MESSAGE])))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send)
        await wait_all_tasks_blocked()
        replicas.acknowledged.advance(5)
    assert codes == [ResponseCode.SUCCESS] * 5
