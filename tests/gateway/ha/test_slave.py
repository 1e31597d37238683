"""The slave's link over memory streams and a clock that jumps: what it appends, reports and refuses, and its pauses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.ha import slave as slave_module
from gateway.ha.locator import MasterLocator
from gateway.ha.slave import HaSlave
from gateway.streams import send_now
from protocol.ha import ReportDecoder, encode_report, encode_transfer_header
from protocol.requests.routes import RegisterBrokerReply
from store.errors import StoreFull, StorePoisoned
from store.options import FlushDiskType
from tests.gateway.ha.fakes import (
    BROKER,
    CLUSTER,
    DeadClient,
    MemoryLog,
    MemoryStorage,
    OfficialClient,
    messages,
    opening,
    options,
)

DATA = messages(0, 10_000)
HA_ADDRESS = "10.0.0.1:10912"


class BusyStorage(MemoryStorage):
    """Notes what was done in which order."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.undispatched_bytes = 0
        self.done: list[str] = []

    def append_raw(self, offset: int, data: bytes) -> int:
        self.done.append("append")
        self.undispatched_bytes += len(data)
        return super().append_raw(offset, data)

    def dispatch(self, limit: int) -> bool:
        was_behind, self.undispatched_bytes = self.undispatched_bytes > 0, 0
        self.done.append("dispatch" if was_behind else "nothing")
        return was_behind


def socket_stream_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


class Wire:
    """Where a slave's HA connections go; hands their other ends to the test."""

    def __init__(self, *, sockets: bool = False) -> None:
        self.addresses: list[str] = []
        self.ends: list[trio.abc.Stream] = []
        self._new_pair = socket_stream_pair if sockets else trio.testing.memory_stream_pair
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](10)

    async def open(self, address: str) -> trio.abc.Stream:
        self.addresses.append(address)
        ours, theirs = self._new_pair()
        self.ends.append(theirs)
        self._send.send_nowait(theirs)
        return ours

    async def accept(self) -> "Master":
        return Master(await self._receive.receive())


class Master:
    """A master's end of the wire."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = ReportDecoder()

    async def report(self) -> int:
        """The newest report, once there is one."""
        while True:
            data = await self.stream.receive_some(1024)
            if not data:
                raise EOFError
            report = self._decoder.receive(bytes(data))
            if report is not None:
                return report

    async def send(self, offset: int, data: bytes = b"") -> None:
        await self.stream.send_all(encode_transfer_header(offset, len(data)) + data)

    async def closed(self) -> bool:
        try:
            while True:
                await self.report()
        except EOFError:
            return True


def make_slave(
    storage: MemoryStorage, wire: Wire, client: object, *, ha_address: str = HA_ADDRESS, **changes: Any
) -> HaSlave:
    return HaSlave(
        storage,
        options(**changes),
        MasterLocator(BROKER, "", fixed_ha_address=ha_address),
        cluster=CLUSTER,
        broker=BROKER,
        broker_id=1,
        open_client=opening(client),  # type: ignore[arg-type]
        open_stream=wire.open,
    )


@asynccontextmanager
async def following(
    slave_log: MemoryLog | MemoryStorage, master_log: MemoryLog, *, sockets: bool = False, **changes: Any
) -> AsyncIterator[tuple[Wire, MemoryStorage]]:
    """A slave at work that believes it has an official master."""
    storage = MemoryStorage(slave_log) if isinstance(slave_log, MemoryLog) else slave_log
    wire = Wire(sockets=sockets)
    slave = make_slave(storage, wire, OfficialClient(master_log), **changes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slave.run)
        yield wire, storage
        nursery.cancel_scope.cancel()
    for end in wire.ends:
        await end.aclose()


async def test_it_reports_at_once_where_it_goes_on(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, _):
        begun = trio.current_time()
        assert await (await wire.accept()).report() == 5000
        assert trio.current_time() == begun
        assert wire.addresses == [HA_ADDRESS]


async def test_it_appends_and_reports_at_once(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        begun = trio.current_time()
        await master.send(5000, DATA[5000:5100])
        assert await master.report() == 5100
        assert storage.store.data == DATA[:5100]
        assert trio.current_time() == begun


async def test_several_transfers_of_one_read_are_appended(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        frames = [encode_transfer_header(n, 10) + DATA[n : n + 10] for n in range(5000, 5500, 10)]
        await master.stream.send_all(encode_transfer_header(5000, 0) + b"".join(frames))
        assert await master.report() == 5500
        assert storage.store.data == DATA[:5500]


async def test_what_was_appended_is_reported_first_and_dispatched_then() -> None:
    storage = BusyStorage(MemoryLog(DATA[:5000]))
    async with following(storage, MemoryLog(DATA), sockets=True) as (wire, _):
        master = await wire.accept()
        await master.report()
        for end in range(5100, 5400, 100):
            storage.done.clear()
            await master.send(end - 100, DATA[end - 100 : end])
            assert await master.report() == end
            await trio.testing.wait_all_tasks_blocked()
            assert storage.done == ["append", "dispatch", "nothing"]


async def test_a_master_that_never_pauses_does_not_hold_up_dispatch_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slave_module, "READ_BYTES", 112)
    monkeypatch.setattr(slave_module, "BEHIND_BYTES", 1000)
    storage = BusyStorage(MemoryLog(DATA[:5000]))
    async with following(storage, MemoryLog(DATA), sockets=True) as (wire, _):
        master = await wire.accept()
        await master.report()
        storage.done.clear()
        frames = [encode_transfer_header(n, 100) + DATA[n : n + 100] for n in range(5000, 10_000, 100)]
        await master.stream.send_all(b"".join(frames))
        turns = 0
        while len(storage.store.data) < 10_000:
            await trio.lowlevel.checkpoint()
            turns += 1
    appends = "".join(step[0] for step in storage.done).split("d")
    assert max(map(len, appends)) == 11
    assert turns >= 50 // slave_module.STEPS_A_TURN - 1


async def test_what_a_lost_link_left_is_dispatched() -> None:
    storage = BusyStorage(MemoryLog(DATA[:5000]))
    async with following(storage, MemoryLog(DATA), sockets=True) as (wire, _):
        master = await wire.accept()
        await master.report()
        storage.done.clear()
        send_now(master.stream, encode_transfer_header(5000, 100) + DATA[5000:5100])
        await trio.aclose_forcefully(master.stream)
        await trio.testing.wait_all_tasks_blocked()
        assert storage.done == ["append", "dispatch", "nothing"]


@given(st.lists(st.integers(0, 600), max_size=12))
async def test_where_the_wire_is_cut_makes_no_difference(cuts: list[int]) -> None:
    stream = encode_transfer_header(100, 0)
    for begin in range(100, 500, 80):
        stream += encode_transfer_header(begin, 80) + DATA[begin : begin + 80]
    async with following(MemoryLog(DATA[:100]), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        at = 0
        for cut in [*sorted(cuts), len(stream)]:
            await master.stream.send_all(stream[at:cut])
            at = max(at, min(cut, len(stream)))
            await trio.testing.wait_all_tasks_blocked()
        assert storage.store.data == DATA[:500]


async def test_with_synchronous_flush_it_reports_what_is_on_disk(autojump_clock: MockClock) -> None:
    slave_log, sync = MemoryLog(DATA[:5000]), FlushDiskType.SYNC_FLUSH
    async with following(slave_log, MemoryLog(DATA), flush_disk_type=sync) as (wire, storage):
        master = await wire.accept()
        assert await master.report() == 5000
        await master.send(5000, DATA[5000:5100])
        assert await master.report() == 5000  # a heartbeat
        assert storage.store.end_offset == 5100
        storage.flush()
        assert await master.report() == 5100


async def test_a_flush_that_fails_ends_the_link_for_good(autojump_clock: MockClock) -> None:
    slave_log, sync = MemoryLog(DATA[:5000]), FlushDiskType.SYNC_FLUSH
    async with following(slave_log, MemoryLog(DATA), flush_disk_type=sync) as (wire, storage):
        master = await wire.accept()
        await master.report()
        await master.send(5000, DATA[5000:5100])
        await trio.testing.wait_all_tasks_blocked()
        storage.flushed.close()
        with pytest.raises(EOFError):
            await master.report()
        with trio.move_on_after(60) as waiting:
            await wire.accept()
        assert waiting.cancelled_caught


async def test_with_synchronous_flush_the_first_report_waits_for_the_flush(autojump_clock: MockClock) -> None:
    storage, wire = MemoryStorage(MemoryLog(DATA[:5000])), Wire()
    storage.append(DATA[5000:5100])
    slave = make_slave(storage, wire, OfficialClient(MemoryLog(DATA)), flush_disk_type=FlushDiskType.SYNC_FLUSH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slave.run)
        await trio.sleep(10)
        assert wire.addresses == []
        storage.flush()
        assert await (await wire.accept()).report() == 5100
        nursery.cancel_scope.cancel()


async def test_an_idle_link_sends_heartbeats(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA), MemoryLog(DATA)) as (wire, _):
        master = await wire.accept()
        await master.report()
        begun = trio.current_time()
        assert await master.report() == len(DATA)
        assert trio.current_time() - begun == pytest.approx(5)


async def test_a_silent_master_is_left_after_the_housekeeping_interval(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA), MemoryLog(DATA)) as (wire, _):
        master = await wire.accept()
        await master.report()
        await trio.sleep(10)
        await master.send(len(DATA))
        begun = trio.current_time()
        assert await master.closed()
        assert trio.current_time() - begun == pytest.approx(20)
        assert await (await wire.accept()).report() == len(DATA)


async def test_a_broken_link_is_made_again_within_a_second(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, _):
        for _ in range(5):
            master = await wire.accept()
            await master.report()
            await master.stream.aclose()
            begun = trio.current_time()
        await wire.accept()
        assert trio.current_time() - begun <= 1.0


@pytest.mark.parametrize(
    ("offset", "data"), [(4999, b"x"), (5001, b"x"), (5001, b""), (0, b""), (-1, b"x")], ids=repr
)
async def test_bytes_that_do_not_fit_end_the_link_and_change_nothing(
    offset: int, data: bytes, autojump_clock: MockClock
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
            master = await wire.accept()
            await master.report()
            await master.send(offset, data)
            assert await master.closed()
            begun = trio.current_time()
            assert storage.store.data == DATA[:5000]
            await wire.accept()
            assert trio.current_time() - begun >= 5  # not at once: it would go round and round
    (fault,) = (entry for entry in logs if entry["event"] == "replication_fault")
    assert str(offset) in fault["reason"]


async def test_a_gap_between_two_transfers_writes_neither(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        await master.stream.send_all(encode_transfer_header(5000, 1) + b"a" + encode_transfer_header(5002, 1) + b"b")
        assert await master.closed()
        assert storage.store.data == DATA[:5000]


async def test_an_empty_slave_begins_where_an_official_master_says(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        assert await master.report() == 0
        await master.send(8192)
        await master.send(8192, DATA[8192:])
        assert await master.report() == len(DATA)
        assert (storage.store.start_offset, bytes(storage.store.data)) == (8192, DATA[8192:])


async def test_an_empty_slave_begins_at_a_file_only(autojump_clock: MockClock) -> None:
    async with following(MemoryLog(), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        await master.send(8193, DATA[8193:])
        assert await master.closed()
        assert not storage.store.data


async def test_the_whole_log_of_an_official_master(autojump_clock: MockClock) -> None:
    log = MemoryLog(DATA)
    log.forget_below(4096)
    async with following(MemoryLog(), log, ha_sync_whole_log=True) as (wire, storage):
        master = await wire.accept()
        assert await master.report() == 4096
        await master.send(4096, DATA[4096:5000])
        assert await master.report() == 5000
        assert storage.store.start_offset == 4096


async def test_a_refused_slave_says_so_once_and_asks_seldom(autojump_clock: MockClock) -> None:
    master_log = MemoryLog(DATA[:8000])
    client = OfficialClient(master_log)
    slave = make_slave(MemoryStorage(MemoryLog(DATA)), Wire(), client)
    with structlog.testing.capture_logs() as logs, trio.move_on_after(301):
        await slave.run()
    reasons = [entry["reason"] for entry in logs if entry["event"] == "replication_refused"]
    assert len(reasons) == 1
    assert f"ends at {len(DATA)}, the master's at 8000" in reasons[0]
    assert len(client.asked) <= 3 * 11


async def test_a_refused_slave_follows_once_it_may(autojump_clock: MockClock) -> None:
    wire, log = Wire(), MemoryLog(DATA[:8000])
    slave = make_slave(MemoryStorage(MemoryLog(DATA)), wire, OfficialClient(log))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slave.run)
        await trio.sleep(10)
        assert wire.addresses == []
        assert [slave.locator.refused] == [True]
        log.data += DATA[8000:]
        assert await (await wire.accept()).report() == len(DATA)
        assert not slave.locator.refused
        nursery.cancel_scope.cancel()


async def test_a_dead_master_is_tried_each_second_and_reported_once(autojump_clock: MockClock) -> None:
    class Counting(DeadClient):
        calls = 0

        async def call(self, *args: Any) -> Any:
            self.calls += 1
            return await super().call(*args)

    client = Counting()
    slave = make_slave(MemoryStorage(MemoryLog()), Wire(), client)
    with structlog.testing.capture_logs() as logs, trio.move_on_after(60):
        await slave.run()
    assert 55 <= client.calls <= 65
    assert [entry["event"] for entry in logs].count("master_lost") == 1


async def test_a_master_that_moved_is_followed_at_once(autojump_clock: MockClock) -> None:
    storage, wire = MemoryStorage(MemoryLog(DATA)), Wire()
    slave = make_slave(storage, wire, OfficialClient(MemoryLog(DATA[:8000])), ha_address="")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slave.run)
        await trio.sleep(100)
        slave.locator.answered("ns", RegisterBrokerReply(ha_server_addr=HA_ADDRESS, master_addr="10.0.0.1:10911"))
        await trio.sleep(5)  # it is refused and waits
        begun = trio.current_time()
        slave._open_client = opening(OfficialClient(MemoryLog(DATA)))  # type: ignore[assignment]
        slave.locator.answered("ns", RegisterBrokerReply(ha_server_addr="10.0.0.2:10912", master_addr="10.0.0.2:10911"))
        await wire.accept()
        assert trio.current_time() == begun
        assert wire.addresses == ["10.0.0.2:10912"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("error", "again"), [(StoreFull("no space"), True), (StorePoisoned("broken"), False)])
async def test_a_log_that_takes_no_bytes_acknowledges_none(
    error: Exception, again: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(offset: int, data: bytes) -> None:
        raise error

    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
        monkeypatch.setattr(storage.store, "append_raw", refuse)
        master = await wire.accept()
        assert await master.report() == 5000
        await master.send(5000, DATA[5000:5100])
        with pytest.raises(EOFError):
            await master.report()
        with trio.move_on_after(60) as waiting:
            assert await (await wire.accept()).report() == 5000
        assert waiting.cancelled_caught is not again


async def test_a_connection_that_cannot_be_made_is_tried_again(autojump_clock: MockClock) -> None:
    wire = Wire()
    failures = iter([OSError("refused"), ValueError("no port"), trio.TooSlowError()])

    async def fails_at_first(address: str) -> trio.abc.Stream:
        for failure in failures:
            raise failure
        return await wire.open(address)

    slave = make_slave(MemoryStorage(MemoryLog(DATA)), wire, OfficialClient(MemoryLog(DATA)))
    slave._open_stream = fails_at_first
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slave.run)
        assert await (await wire.accept()).report() == len(DATA)
        nursery.cancel_scope.cancel()


@given(st.binary(min_size=1, max_size=200))
async def test_garbage_from_a_master_changes_nothing(garbage: bytes) -> None:
    if garbage.startswith(encode_report(5000)):
        return
    async with following(MemoryLog(DATA[:5000]), MemoryLog(DATA)) as (wire, storage):
        master = await wire.accept()
        await master.report()
        await master.stream.send_all(garbage)
        await trio.testing.wait_all_tasks_blocked()
        assert storage.store.data == DATA[:5000]


