"""The HA port as a slave sees it, over memory streams and a clock that jumps: frames, heartbeats, limits, refusals."""

import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.ha import master as master_module
from gateway.ha.history import Sameness, checksum
from gateway.ha.link import transfers
from gateway.ha.master import HaMaster, Identity
from gateway.routing import Refused
from gateway.streams import send_now
from protocol.codes import ResponseCode
from protocol.ha import Transfer, TransferDecoder, encode_report
from protocol.requests.replication import JoinReplication, JoinReplicationReply
from store.options import BrokerRole
from tests.gateway.ha.fakes import BROKER, CLUSTER, FILE_SIZE, MemoryLog, MemoryStorage, make_master, messages, options

DATA = messages(0, 10_000)
HOST = "10.0.0.7"


class Slave:
    """A slave's end of the wire."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.decoder = TransferDecoder()
        self.ready: list[Transfer] = []

    async def report(self, offset: int) -> None:
        await self.stream.send_all(encode_report(offset))

    async def next(self) -> Transfer:
        while not self.ready:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.ready = self.decoder.receive(bytes(data))
        return self.ready.pop(0)

    async def take(self, count: int) -> bytes:
        """The next `count` bytes of the log."""
        data = b""
        while len(data) < count:
            data += (await self.next()).data
        return data

    async def closed(self) -> bool:
        """Waits until the master has closed."""
        try:
            while True:
                await self.next()
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            return True


@asynccontextmanager
async def linked(master: HaMaster, host: str = HOST) -> AsyncIterator[Slave]:
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(master.serve_stream, ours, host, f"{host}:5000")
        yield Slave(theirs)
        nursery.cancel_scope.cancel()


async def ticket(master: HaMaster, end: int, *, broker_id: int = 1, whole_log: bool = False) -> int:
    return (await join(master, end, broker_id=broker_id, whole_log=whole_log)).ticket


async def join(
    master: HaMaster, end: int, *, broker_id: int = 1, whole_log: bool = False, address: str = ""
) -> JoinReplicationReply:
    log = MemoryLog(DATA[:end])
    return await master.join(
        JoinReplication(
            cluster_name=CLUSTER,
            broker_name=BROKER,
            broker_id=broker_id,
            file_size=FILE_SIZE,
            start_offset=0,
            end_offset=end,
            check_offset=0,
            checksum=checksum(0, end, log.read_raw),
            whole_log=whole_log,
            address=address,
        ),
        "slave",
    )


def refusals(logs: list[Any]) -> str:
    return " ".join(str(entry.get("reason")) for entry in logs if entry["event"] in ("slave_refused", "slave_closed"))


async def test_a_slave_gets_what_it_lacks_and_its_report_acknowledges(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(4000)
        assert await slave.take(len(DATA) - 4000) == DATA[4000:]
        assert master.progress.acknowledged.offset == 4000
        await slave.report(len(DATA))
        assert await master.progress.acknowledged.wait_for(len(DATA))


async def test_what_is_appended_leaves_at_once(autojump_clock: MockClock) -> None:
    master, storage = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        storage.append(b"more")
        assert await slave.next() == Transfer(len(DATA), b"more")
        assert trio.current_time() == begun


async def test_all_that_came_meanwhile_is_one_transfer() -> None:
    master, storage = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            storage.append(b"message")
        assert await slave.next() == Transfer(len(DATA), b"message")
        assert await slave.next() == Transfer(len(DATA) + 7, b"message" * 49)


async def test_a_slow_slave_over_a_socket_gets_every_byte_once(seeded_random: Random) -> None:
    random = seeded_random
    master, storage = make_master(MemoryLog(DATA))
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(master.serve_stream, trio.SocketStream(ours), HOST, f"{HOST}:5000")
        slave = Slave(trio.SocketStream(theirs))
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        received = len(DATA)
        for _ in range(300):
            for _ in range(random.randrange(4)):
                storage.append(random.randbytes(random.choice((1, 100, 3000, 20_000))))
            while received < storage.store.end_offset and random.random() < 0.8:
                transfer = await slave.next()
                assert transfer.offset == received
                assert transfer.data == storage.store.data[received : received + len(transfer.data)]
                received += len(transfer.data)
        await slave.take(storage.store.end_offset - received)
        await slave.stream.aclose()


async def test_a_log_that_cannot_be_read_ends_the_link_and_no_append(monkeypatch: pytest.MonkeyPatch) -> None:
    master, storage = make_master(MemoryLog(DATA))
    with structlog.testing.capture_logs() as logs:
        async with linked(master) as slave:
            await slave.report(len(DATA))
            await trio.testing.wait_all_tasks_blocked()

            def fail(offset: int, limit: int) -> bytes:
                raise OSError(errno.EMFILE, "Too many open files")

            monkeypatch.setattr(storage.store, "read_raw", fail)
            storage.append(b"message")
            assert await slave.closed()
    assert "Too many open files" in refusals(logs)


async def test_no_transfer_crosses_a_file_or_is_longer_than_the_option() -> None:
    master, _ = make_master(MemoryLog(DATA), ha_transfer_batch_size=1000)
    async with linked(master) as slave:
        await slave.report(1)
        offset = 1
        while offset < len(DATA):
            transfer = await slave.next()
            assert transfer.offset == offset
            assert transfer.data == DATA[offset : offset + len(transfer.data)]
            assert 0 < len(transfer.data) <= 1000
            assert offset // FILE_SIZE == (offset + len(transfer.data) - 1) // FILE_SIZE
            offset += len(transfer.data)


@given(st.integers(0, 100), st.binary(min_size=1, max_size=300), st.integers(1, 100))
def test_transfers_are_the_bytes_in_order(offset: int, data: bytes, batch: int) -> None:
    decoded = TransferDecoder().receive(transfers(offset, data, batch))
    assert b"".join(transfer.data for transfer in decoded) == data
    for transfer in decoded:
        assert 0 < len(transfer.data) <= batch
        assert data[transfer.offset - offset :].startswith(transfer.data)


async def test_an_idle_link_gets_heartbeats_that_name_the_next_offset(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(len(DATA))
        begun = trio.current_time()
        assert await slave.next() == Transfer(len(DATA), b"")
        assert trio.current_time() - begun == pytest.approx(5)


async def test_the_first_report_may_take_its_time(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await trio.sleep(6)
        assert not master.progress.in_reach(0)
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        assert master.progress.in_reach(len(DATA))


async def test_a_mere_connection_is_not_a_slave_and_is_closed(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        begun = trio.current_time()
        assert await slave.closed()
        assert trio.current_time() - begun == pytest.approx(20)
        assert master.progress.replicas == []


async def test_a_slave_that_falls_silent_is_closed_and_no_longer_counts(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(len(DATA))
        await trio.sleep(15)
        await slave.report(len(DATA))
        await trio.sleep(19)
        assert master.progress.in_reach(len(DATA) + 1)
        await trio.sleep(2)
        assert not master.progress.in_reach(len(DATA) + 1)
        assert await slave.closed()


async def test_a_peer_that_never_reads_is_closed(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    ours, theirs = trio.testing.lockstep_stream_pair()  # a send waits until it was received
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(master.serve_stream, ours, HOST, HOST)
            await theirs.send_all(encode_report(1))
            for _ in range(5):  # it speaks, but it does not listen
                await trio.sleep(5)
                try:
                    await theirs.send_all(encode_report(1))
                except trio.BrokenResourceError:
                    break
    assert "took no bytes" in refusals(logs)
    assert master.progress.acknowledged.offset <= 1


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (len(DATA) + 1, "the slave has 1 bytes that the master lacks"),
        (4095, "oldest byte is 4096"),
        (-17, "ticket is unknown"),
        (struct.unpack(">q", b"GET / HT")[0], "that the master lacks"),
    ],
)
async def test_a_first_report_that_cannot_be_is_refused_and_never_counted(first: int, words: str) -> None:
    log = MemoryLog(DATA)
    log.forget_below(4096)
    master, _ = make_master(log)
    with structlog.testing.capture_logs() as logs:
        async with linked(master) as slave:
            await slave.report(first)
            assert await slave.closed()
    assert words in refusals(logs)
    assert master.progress.acknowledged.offset == 0


@pytest.mark.parametrize("later", [len(DATA) + 1, 3999, -1])
async def test_a_later_report_that_cannot_be_is_refused_and_never_counted(later: int) -> None:
    master, _ = make_master(MemoryLog(DATA))
    with structlog.testing.capture_logs() as logs:
        async with linked(master) as slave:
            await slave.report(4000)
            await slave.take(len(DATA) - 4000)
            await slave.report(later)
            assert await slave.closed()
    assert str(later) in refusals(logs)
    assert master.progress.acknowledged.offset == 4000


async def test_half_a_report_acknowledges_nothing() -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(4000)
        await slave.take(len(DATA) - 4000)
        await slave.stream.send_all(encode_report(len(DATA))[:7])
        await trio.testing.wait_all_tasks_blocked()
        assert master.progress.acknowledged.offset == 4000
        await slave.stream.send_all(encode_report(len(DATA))[7:])
        assert await master.progress.acknowledged.wait_for(len(DATA))


async def test_of_several_reports_the_newest_counts() -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.stream.send_all(encode_report(4000) + encode_report(4000))
        await slave.take(len(DATA) - 4000)
        await slave.stream.send_all(encode_report(5000) + encode_report(6000))
        assert await master.progress.acknowledged.wait_for(6000)
        assert master.progress.acknowledged.offset == 6000


async def test_bytes_of_this_run_that_were_never_sent_are_not_believed() -> None:
    """The master lost its tail and has grown beyond the slave's end meanwhile."""
    master, storage = make_master(MemoryLog(DATA[:5000]))
    storage.append(DATA[5000:])
    with structlog.testing.capture_logs() as logs:
        async with linked(master) as slave:
            await slave.report(6000)
            assert await slave.closed()
    assert "has other bytes there" in refusals(logs)
    async with linked(master) as slave:  # another one that was there at the start
        await slave.report(5000)
        assert await slave.take(len(DATA) - 5000) == DATA[5000:]
    async with linked(master) as slave:  # and comes back
        await slave.report(6000)
        assert await slave.take(len(DATA) - 6000) == DATA[6000:]


async def test_a_slave_that_is_refused_again_and_again_is_reported_once_a_minute(autojump_clock: MockClock) -> None:
    master, storage = make_master(MemoryLog(DATA))
    with structlog.testing.capture_logs() as logs:
        for _ in range(13):
            async with linked(master) as slave:
                await slave.report(1 << 40)
                assert await slave.closed()
                storage.append(b"x")
                await trio.sleep(5)
    assert refusals(logs).count("that the master lacks") == 2


@pytest.mark.parametrize(
    ("sameness", "report", "refused"),
    [
        (Sameness.SAME, 6000, None),  # a copy that was made while this master ran, perhaps
        (Sameness.DIFFERENT, 6000, "written by different masters"),
        (Sameness.DIFFERENT, 4000, "written by different masters"),
        (Sameness.UNKNOWN, 6000, "has other bytes there"),
        (Sameness.UNKNOWN, 4000, None),
    ],
)
async def test_an_official_slave_is_inspected_where_it_can_be(
    sameness: Sameness, report: int, refused: str | None
) -> None:
    storage = MemoryStorage(MemoryLog(DATA[:5000]))
    asked: list[tuple[str, int]] = []

    async def inspect(host: str, end: int) -> Sameness:
        asked.append((host, end))
        return sameness

    master = HaMaster(storage, options(), Identity(CLUSTER, BROKER), inspect=inspect)
    storage.append(DATA[5000:])
    with structlog.testing.capture_logs() as logs:
        async with linked(master) as slave:
            await slave.report(report)
            if refused is None:
                assert await slave.take(len(DATA) - report) == DATA[report:]
            else:
                assert await slave.closed()
    assert asked == [(HOST, report)]
    assert (refused or "") in refusals(logs)
    assert master.progress.acknowledged.offset == (report if refused is None else 0)


async def test_an_empty_official_slave_gets_the_last_file(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(0)
        assert await slave.next() == Transfer(8192, DATA[8192:])
        await slave.report(0)
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        # It lacks the files before, so it counts only when nobody waits any more for what is in them.
        assert master.progress.acknowledged.offset == 0
        await trio.sleep(5)
        await slave.report(len(DATA))
        assert await master.progress.acknowledged.wait_for(len(DATA))


async def test_an_empty_slave_that_gets_everything_counts_at_once() -> None:
    master, storage = make_master(MemoryLog())
    async with linked(master) as slave:
        await slave.report(0)
        await trio.testing.wait_all_tasks_blocked()
        assert master.progress.in_reach(0)
        storage.append(DATA[:100])
        assert await slave.take(100) == DATA[:100]
        await slave.report(100)
        assert await master.progress.acknowledged.wait_for(100)


async def test_a_slave_of_our_make_shows_its_ticket() -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(await ticket(master, 5000))
        assert await slave.take(len(DATA) - 5000) == DATA[5000:]
        assert [replica.broker_id for replica in master.progress.replicas] == [1]
        assert master.progress.acknowledged.offset == 5000


async def test_a_ticket_gives_the_whole_log_from_offset_0() -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as slave:
        await slave.report(await ticket(master, 0, whole_log=True))
        assert await slave.take(len(DATA)) == DATA


async def test_the_new_link_of_a_slave_ends_its_old_one() -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as old, linked(master) as new:
        await old.report(await ticket(master, 5000))
        await old.take(1)
        with structlog.testing.capture_logs() as logs:
            await new.report(await ticket(master, 5000))
            await new.take(1)
            assert await old.closed()
        assert len(master.progress.replicas) == 1
        assert [entry["broker_id"] for entry in logs if entry["event"] == "slave_replaced"] == [1]


async def test_of_two_slaves_with_one_broker_id_the_second_is_told(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as first:
        await first.report((await join(master, 5000, address="a:10911")).ticket)
        await first.take(1)
        with pytest.raises(Refused, match="brokerId 1 is that of the slave at a:10911, which is linked") as refused:
            await join(master, 5000, address="b:10911")
        assert refused.value.code == ResponseCode.NO_PERMISSION
        await join(master, 5000, address="a:10911")  # it has lost its link, which we do not know yet
        await join(master, 5000, address="b:10911", broker_id=2)
        await trio.sleep(11)  # more than half of haHousekeepingInterval
        await join(master, 5000, address="b:10911")


async def test_slaves_of_our_make_join_again_when_sends_begin_to_wait_for_them(autojump_clock: MockClock) -> None:
    master, _ = make_master(MemoryLog(DATA), broker_role=BrokerRole.ASYNC_MASTER)
    assert not (await join(master, 5000)).eager
    async with linked(master) as ours, linked(master, "10.0.0.8") as official:
        await ours.report(await ticket(master, 5000))
        await ours.take(1)
        await official.report(6000)
        await official.take(1)
        master._options.change({"brokerRole": "SYNC_MASTER"})
        master.role_changed()
        assert await ours.closed()
        assert [replica.broker_id for replica in master.progress.replicas] == [1, None], "it is not missing yet"
        await trio.sleep(master_module.BACK_SECONDS + 0.1)
        assert [replica.broker_id for replica in master.progress.replicas] == [None]
    assert (await join(master, 5000)).eager


async def test_retention_that_overtakes_a_slave_is_told(autojump_clock: MockClock) -> None:
    master, storage = make_master(MemoryLog(DATA))
    ours, theirs = trio.testing.lockstep_stream_pair()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(master.serve_stream, ours, HOST, HOST)
            await theirs.send_all(encode_report(1))
            await trio.testing.wait_all_tasks_blocked()
            storage.store.forget_below(8192)
            assert await Slave(theirs).closed()
    assert "oldest byte is 8192" in refusals(logs)


async def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_module, "MAX_LINKS", 1)
    master, _ = make_master(MemoryLog(DATA))
    async with linked(master) as first:
        await first.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        async with linked(master) as second:
            assert await second.closed()
        assert len(master.progress.replicas) == 1
    async with linked(master) as third:
        await third.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        assert len(master.progress.replicas) == 1


@given(st.binary(min_size=1, max_size=64))
async def test_garbage_closes_at_most_its_own_connection(garbage: bytes) -> None:
    master, storage = make_master(MemoryLog(DATA))
    async with linked(master) as good:
        await good.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        async with linked(master, "10.0.0.8") as bad:
            await bad.stream.send_all(garbage)
            await bad.stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert master.progress.acknowledged.offset <= len(DATA)
        storage.append(b"more")
        assert await good.take(4) == b"more"


async def test_catching_up_lets_others_run() -> None:
    log = MemoryLog(bytes(FILE_SIZE * 200))
    master, _ = make_master(log)
    turns = 0

    async def client() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with linked(master) as slave, trio.open_nursery() as nursery:
        nursery.start_soon(client)
        await slave.report(1)
        await slave.take(FILE_SIZE * 200 - 1)
        nursery.cancel_scope.cancel()
    assert turns >= 200


@asynccontextmanager
async def linked_by_socket(master: HaMaster) -> AsyncIterator[Slave]:
    """As `linked`, over what a master can hear without waiting."""
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(master.serve_stream, trio.SocketStream(ours), HOST, f"{HOST}:5000")
        slave = Slave(trio.SocketStream(theirs))
        await slave.report(len(DATA))
        await trio.testing.wait_all_tasks_blocked()
        yield slave
        await slave.stream.aclose()


async def test_a_report_that_has_arrived_is_heard_without_a_turn() -> None:
    master, storage = make_master(MemoryLog(DATA))
    async with linked_by_socket(master) as slave:
        end = storage.append(b"message")
        master.progress.hear()
        assert master.progress.acknowledged.offset == len(DATA)
        send_now(slave.stream, encode_report(end)[:3])
        master.progress.hear()
        assert master.progress.acknowledged.offset == len(DATA)
        send_now(slave.stream, encode_report(end)[3:])
        master.progress.hear()
        assert master.progress.acknowledged.offset == end
        await slave.report(storage.append(b"more"))
        assert await master.progress.acknowledged.wait_for(end + 4)  # the listener goes on


@pytest.mark.parametrize("is_local", [False, True])
async def test_a_slave_beside_the_master_may_report_while_it_is_listened_for(
    is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ha.link.is_within_machine", lambda stream: is_local)
    master, storage = make_master(MemoryLog(DATA))
    async with linked_by_socket(master) as slave:
        end = storage.append(b"message")
        monkeypatch.setattr("gateway.ha.link.os.sched_yield", lambda: send_now(slave.stream, encode_report(end)))
        master.progress.hear()
        assert master.progress.acknowledged.offset == (end if is_local else len(DATA))


async def test_a_report_that_cannot_be_ends_the_link_of_the_one_who_heard_it() -> None:
    master, storage = make_master(MemoryLog(DATA))
    with structlog.testing.capture_logs() as logs:
        async with linked_by_socket(master) as slave:
            end = storage.append(b"message")
            send_now(slave.stream, encode_report(end + 1))
            master.progress.hear()
            send_now(slave.stream, encode_report(end))
            master.progress.hear()
            assert await slave.closed()
    assert f"it reports offset {end + 1}, but was sent bytes up to {end} only" in refusals(logs)
    assert master.progress.acknowledged.offset == len(DATA)


async def test_hearing_nobody_and_a_slave_that_left() -> None:
    master, storage = make_master(MemoryLog(DATA))
    master.progress.hear()
    with structlog.testing.capture_logs() as logs:
        async with linked_by_socket(master) as slave:
            storage.append(b"message")
            await trio.aclose_forcefully(slave.stream)
            master.progress.hear()
            await trio.testing.wait_all_tasks_blocked()
            master.progress.hear()
    assert "slave_gone" in [entry["event"] for entry in logs]
    assert master.progress.replicas == []
