"""Master and slave together: whatever happens in between, the two logs stay equal and no acknowledgement lies."""

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.ha.locator import MasterLocator
from gateway.ha.master import HaMaster, Identity
from gateway.ha.slave import HaSlave
from store.options import BrokerRole, FlushDiskType
from tests.gateway.ha.fakes import (
    BROKER,
    CLUSTER,
    FILE_SIZE,
    DeadClient,
    DirectClient,
    MemoryLog,
    MemoryStorage,
    messages,
    opening,
    options,
)


class Pair:
    """A master and its slave, each of which can die, lose its tail, and come back."""

    def __init__(self, nursery: trio.Nursery, *, whole_log: bool = True, sync_flush: bool = False) -> None:
        self.nursery = nursery
        self.whole_log = whole_log
        self.role = BrokerRole.SYNC_MASTER
        self.sync_flush = sync_flush
        self.master_log, self.slave_log = MemoryLog(), MemoryLog()
        self.master: HaMaster | None = None
        self.links: list[trio.abc.Stream] = []
        self.writes = 0
        self.flushed = 0
        self._scope = trio.CancelScope()

    # ---- the master

    def start_master(self) -> None:
        self.master_storage = MemoryStorage(self.master_log)
        self.master = HaMaster(self.master_storage, options(broker_role=self.role), Identity(CLUSTER, BROKER))
        self.run_start = self.master_log.end_offset

    def stop_master(self, lose: int = 0) -> None:
        self.cut()
        self.master = None
        if lose:
            del self.master_log.data[-lose:]

    def append(self, count: int) -> None:
        if self.master is not None:
            begin = self.master_log.end_offset
            self.writes += 1  # each write has a time of its own, so that two histories differ
            self.master_storage.append(messages(begin, begin + count, store_timestamp=1_700_000_000_000 + self.writes))

    # ---- the slave

    def start_slave(self) -> None:
        self.slave_storage = MemoryStorage(self.slave_log)
        self.flushed = self.slave_log.end_offset
        self.slave = HaSlave(
            self.slave_storage,
            options(
                ha_sync_whole_log=self.whole_log,
                flush_disk_type=FlushDiskType.SYNC_FLUSH if self.sync_flush else FlushDiskType.ASYNC_FLUSH,
            ),
            MasterLocator(BROKER, "", fixed_ha_address="master:10912"),
            cluster=CLUSTER,
            broker=BROKER,
            broker_id=1,
            open_client=lambda address: opening(self._client())(address),  # type: ignore[arg-type, return-value]
            open_stream=self._open,
        )
        self._scope = trio.CancelScope()
        self.nursery.start_soon(self._run_slave, self.slave, self._scope)

    async def _run_slave(self, slave: HaSlave, scope: trio.CancelScope) -> None:
        with scope:
            await slave.run()

    def stop_slave(self, *, power_loss: bool = False) -> None:
        self._scope.cancel()
        if power_loss:
            del self.slave_log.data[max(0, self.flushed - self.slave_log.start_offset) :]

    def flush_slave(self) -> None:
        self.slave_storage.flush()
        self.flushed = self.slave_storage.flushed.offset

    # ---- the wire

    def _client(self) -> object:
        return DeadClient() if self.master is None else DirectClient(self.master)

    async def _open(self, address: str) -> trio.abc.Stream:
        if self.master is None:
            raise OSError("connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self.links += (ours, theirs)
        self.nursery.start_soon(self.master.serve_stream, theirs, "slave", "slave:1")
        return ours

    def cut(self) -> None:
        for link in self.links:
            link.send_stream.close()  # type: ignore[attr-defined]
            link.receive_stream.close()  # type: ignore[attr-defined]
        self.links.clear()

    # ---- what must hold

    def check(self) -> None:
        """What this master says is acknowledged, and was written since it started, is in the slave's (safe) log."""
        if self.master is None:
            return
        acknowledged = self.master.progress.acknowledged.offset
        if acknowledged > self.run_start:
            held = self.flushed if self.sync_flush else self.slave_log.end_offset
            assert held >= acknowledged
            begin = max(self.slave_log.start_offset, self.master_log.start_offset)
            assert self._bytes(self.slave_log, begin, acknowledged) == self._bytes(self.master_log, begin, acknowledged)

    @staticmethod
    def _bytes(log: MemoryLog, begin: int, end: int) -> bytes:
        return bytes(log.data[begin - log.start_offset : end - log.start_offset])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3000)),
        st.tuples(st.just("cut"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0, 0, 1, 40])),
        st.tuples(st.just("restart_slave"), st.just(0)),
        st.tuples(st.just("power_loss"), st.just(0)),
        st.tuples(st.just("flush_slave"), st.just(0)),
        st.tuples(st.just("restart_master"), st.just(0)),
        st.tuples(st.just("lose_tail"), st.integers(1, 500)),
    ),
    max_size=25,
)


async def run_steps(pair: Pair, script: list[tuple[str, int]]) -> bool:
    """Runs a script; True if the master has ever lost what the slave may have."""
    lost = False
    pair.start_master()
    pair.start_slave()
    for what, number in script:
        if what == "append":
            pair.append(number)
        elif what == "cut":
            pair.cut()
        elif what == "wait":
            await trio.sleep(number)
        elif what == "flush_slave":
            pair.flush_slave()
        elif what in ("restart_slave", "power_loss"):
            pair.stop_slave(power_loss=what == "power_loss" and pair.sync_flush)
            await trio.testing.wait_all_tasks_blocked()
            pair.start_slave()
        else:
            lose = min(number, len(pair.master_log.data)) if what == "lose_tail" else 0
            lost = lost or lose > 0
            pair.stop_master(lose)
            await trio.testing.wait_all_tasks_blocked()
            pair.start_master()
        await trio.testing.wait_all_tasks_blocked()
        pair.check()
    return lost


@settings(max_examples=60)
@given(steps, st.booleans())
def test_the_slave_has_what_the_master_counts_on(script: list[tuple[str, int]], sync_flush: bool) -> None:
    async def main() -> None:
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                pair = Pair(nursery, sync_flush=sync_flush)
                lost = await run_steps(pair, script)
                for _ in range(10):
                    pair.flush_slave()
                    await trio.sleep(10)
                pair.check()
                refused = any(entry["event"] == "replication_refused" for entry in logs)
                if pair.slave_log.data != pair.master_log.data:
                    assert lost, "only a master that lost its tail may be left alone"
                    assert refused
                nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_master_that_lost_its_tail_is_not_followed(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        pair.start_master()
        pair.start_slave()
        pair.append(5000)
        await trio.sleep(1)
        before = bytes(pair.slave_log.data)
        pair.stop_master(lose=300)
        pair.start_master()
        pair.append(2000)  # it has grown beyond the slave: official peers would join the two logs here
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(60)
        assert pair.slave_log.data == before
        assert pair.master is not None
        assert not pair.master.progress.in_reach(0)
        events = {entry["event"] for entry in logs}
        assert {"slave_refused", "replication_refused"} <= events
        nursery.cancel_scope.cancel()


async def test_a_former_master_that_is_behind_comes_back_as_a_slave(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        pair.start_master()
        pair.start_slave()
        pair.append(5000)
        await trio.sleep(1)
        pair.stop_slave()
        pair.stop_master()
        pair.master_log, pair.slave_log = pair.slave_log, pair.master_log
        pair.start_master()
        pair.append(3000)
        pair.start_slave()
        await trio.sleep(2)
        assert pair.slave_log.data == pair.master_log.data
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("whole_log", [True, False])
async def test_a_new_slave_gets_the_whole_log_or_the_last_file(whole_log: bool, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery, whole_log=whole_log)
        pair.start_master()
        pair.append(3 * FILE_SIZE)
        pair.start_slave()
        await trio.sleep(1)
        end = pair.master_log.end_offset
        begin = 0 if whole_log else (end - 1) // FILE_SIZE * FILE_SIZE
        assert pair.slave_log.start_offset == begin
        assert pair.slave_log.data == pair.master_log.data[begin:]
        nursery.cancel_scope.cancel()


async def test_a_slave_that_waits_links_within_two_seconds_of_its_masters_start(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        pair.start_slave()
        await trio.sleep(1000)
        pair.start_master()
        await trio.sleep(2)
        assert pair.master is not None
        assert pair.master.progress.in_reach(0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("role", [BrokerRole.SYNC_MASTER, BrokerRole.ASYNC_MASTER])
async def test_reports_are_eager_where_producers_wait_for_them(role: BrokerRole, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        pair.role = role
        pair.start_master()
        pair.start_slave()
        await trio.sleep(1)
        assert pair.master is not None
        pair.append(100)
        begun = trio.current_time()
        await pair.master.progress.acknowledged.wait_for(pair.master_log.end_offset)
        lag = trio.current_time() - begun
        assert lag == 0 if role is BrokerRole.SYNC_MASTER else 0 < lag <= 0.2
        nursery.cancel_scope.cancel()
