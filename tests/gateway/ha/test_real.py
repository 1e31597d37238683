"""Replication with real stores, real sockets and the real clock: the slave's files and answers are its master's."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from gateway.ha.locator import MasterLocator
from gateway.ha.master import HaMaster, Identity
from gateway.ha.slave import HaSlave
from gateway.server import open_listeners, port_of
from gateway.services import background
from gateway.storage import Storage
from protocol.ha import TRANSFER_HEADER_BYTES, encode_report
from protocol.message import NewMessage
from store.engine import MessageStore
from store.options import BrokerRole, FlushDiskType, StoreOptions
from tests.gateway.ha.fakes import BROKER, CLUSTER, DirectClient, opening

FILE_SIZE = 64 << 10
SECONDS = 30


def small_options(folder: Path, role: BrokerRole, **changes: object) -> StoreOptions:
    given = {
        "store_path_root_dir": str(folder),
        "mapped_file_size_commit_log": FILE_SIZE,
        "mapped_file_size_consume_queue": 2000,
        "max_hash_slot_num": 100,
        "max_index_num": 400,
        "broker_role": role,
        **changes,
    }
    return StoreOptions(**given)  # type: ignore[arg-type]


def new_messages(count: int, size: int = 500) -> list[NewMessage]:
    return [
        NewMessage(
            topic="TopicTest",
            queue_id=number % 3,
            flag=0,
            sys_flag=0,
            born_timestamp=1_700_000_000_000,
            born_host=bytes(8),
            store_host=bytes(8),
            body=number.to_bytes(4, "big") * (size // 4),
            properties=b"KEYS\x01key",
            tags_code=0,
            keys=("key",),
        )
        for number in range(count)
    ]


class Node:
    """A store and its services."""

    def __init__(self, folder: Path, role: BrokerRole, **changes: object) -> None:
        self.options = small_options(folder, role, **changes)
        self.store = MessageStore.open(self.options)
        self.arrived: list[object] = []
        self.storage = Storage(self.store, self.options, arrived=self.arrived.extend)

    @asynccontextmanager
    async def running(self, *services: Callable[[], object]) -> AsyncIterator[None]:
        try:
            own = (self.storage.flush_forever, self.storage.maintain_forever, self.storage.expire_forever)
            async with background(*own, *services):  # type: ignore[arg-type]
                yield
        finally:
            self.store.close()

    def commitlog(self) -> dict[str, bytes]:
        folder = Path(self.options.store_path_commit_log)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size}

    def pulled(self) -> list[bytes]:
        found = []
        for queue_id in range(3):
            offset = self.store.min_offset("TopicTest", queue_id)
            while offset < self.store.max_offset("TopicTest", queue_id):
                result = self.store.get("TopicTest", queue_id, offset, 32, allow_cold=True)
                found += [bytes(data) for data in result.data]
                offset = result.next_offset
        return found


@asynccontextmanager
async def master_at(folder: Path, **changes: object) -> AsyncIterator[tuple[Node, HaMaster, int]]:
    node = Node(folder, **{"role": BrokerRole.SYNC_MASTER, **changes})  # type: ignore[arg-type]
    ha = HaMaster(node.storage, node.options, Identity(CLUSTER, BROKER))
    node.storage.replicas = ha.progress
    listeners = await open_listeners(0, "127.0.0.1")
    async with node.running(partial(ha.serve, listeners)):
        yield node, ha, port_of(listeners[0])


@asynccontextmanager
async def slave_at(folder: Path, ha: HaMaster, port: int, **changes: object) -> AsyncIterator[Node]:
    node = Node(folder, BrokerRole.SLAVE, **changes)
    slave = HaSlave(
        node.storage,
        node.options,
        MasterLocator(BROKER, "", fixed_ha_address=f"127.0.0.1:{port}"),
        cluster=CLUSTER,
        broker=BROKER,
        broker_id=1,
        open_client=opening(DirectClient(ha)),  # type: ignore[arg-type]
    )
    async with node.running(slave.run):
        yield node


async def confirmed(node: Node, count: int) -> None:
    """Appends and waits for the slave."""
    assert await node.storage.confirm(node.storage.append(new_messages(count))) == 0


async def caught_up(master: Node, slave: Node) -> None:
    """Waits for the slave's log and for what is derived from it."""
    await slave.storage.appended.wait_for(master.store.end_offset)
    while slave.store.dispatched_offset < slave.storage.appended.offset:  # noqa: ASYNC110 (dispatch has no mark)
        await trio.sleep(0.01)
    same(master, slave)


def same(master: Node, slave: Node) -> None:
    assert slave.store.end_offset == master.store.end_offset
    ours, theirs = master.commitlog(), slave.commitlog()
    for name in theirs.keys() & ours.keys():
        assert ours[name] == theirs[name], name
    assert slave.pulled() == [record for record in master.pulled() if offset_of(record) >= slave.store.start_offset]


def offset_of(record: bytes) -> int:
    return int.from_bytes(record[28:36], "big")


@pytest.mark.parametrize("flush", list(FlushDiskType))
async def test_a_slave_follows_over_many_files_and_after_a_restart(tmp_path: Path, flush: FlushDiskType) -> None:
    with trio.fail_after(SECONDS):
        async with master_at(tmp_path / "master") as (master, ha, port):
            master.storage.append(new_messages(10))
            for run in range(2):
                async with slave_at(tmp_path / "slave", ha, port, flush_disk_type=flush) as slave:
                    await slave.storage.appended.wait_for(master.store.end_offset)
                    for _ in range(4):
                        await confirmed(master, 100)
                    assert slave.storage.appended.offset == master.store.end_offset
                    if flush is FlushDiskType.SYNC_FLUSH:
                        assert slave.store.flushed_offset == master.store.end_offset
                    await caught_up(master, slave)
                    assert len(slave.arrived) >= 400 * run
                master.storage.append(new_messages(50))  # while the slave is away


@pytest.mark.parametrize(
    ("role", "pushes"), [(BrokerRole.SYNC_MASTER, [2, 4, 6]), (BrokerRole.ASYNC_MASTER, [0, 0, 0])]
)
async def test_a_sync_master_gives_way_to_a_slave_beside_it(
    tmp_path: Path, role: BrokerRole, pushes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the slave need not wait for the master's processor; with each push, and when its report is missed."""
    given_way: list[int] = []
    monkeypatch.setattr("gateway.ha.link.os.sched_yield", lambda: given_way.append(1))
    with trio.fail_after(SECONDS):
        async with (
            master_at(tmp_path / "master", role=role) as (master, ha, port),
            slave_at(tmp_path / "slave", ha, port) as slave,
        ):
            master.storage.append(new_messages(1))
            await caught_up(master, slave)
            await trio.testing.wait_all_tasks_blocked()  # the first bytes leave the sender's hands before it rests
            given_way.clear()
            counts = []
            for _ in range(3):
                await confirmed(master, 1)
                await caught_up(master, slave)
                counts.append(len(given_way))
            assert counts == pushes


@pytest.mark.parametrize("whole_log", [True, False])
async def test_a_new_slave_of_a_master_with_many_files(tmp_path: Path, whole_log: bool) -> None:
    with trio.fail_after(SECONDS):
        async with master_at(tmp_path / "master") as (master, ha, port):
            master.storage.append(new_messages(500))
            end = master.store.end_offset
            async with slave_at(tmp_path / "slave", ha, port, ha_sync_whole_log=whole_log) as slave:
                await caught_up(master, slave)
                assert slave.store.start_offset == (0 if whole_log else end // FILE_SIZE * FILE_SIZE)


async def test_a_new_slave_that_waited_for_its_master(tmp_path: Path) -> None:
    """Meanwhile its store has made room for a log that begins at 0; the master's last file begins elsewhere."""
    with trio.fail_after(SECONDS):
        async with master_at(tmp_path / "master") as (master, ha, port):
            master.storage.append(new_messages(500))
            node = Node(tmp_path / "slave", BrokerRole.SLAVE)
            async with node.running():
                await trio.sleep(1.5)  # maintain_forever works once a second
            async with slave_at(tmp_path / "slave", ha, port) as slave:
                await trio.sleep(1.5)
                await caught_up(master, slave)


async def test_sends_are_replicated_from_the_moment_in_which_a_master_becomes_synchronous(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with master_at(tmp_path / "master", role=BrokerRole.ASYNC_MASTER) as (master, ha, port):
            master.storage.append(new_messages(10))
            async with slave_at(tmp_path / "slave", ha, port) as slave:
                await slave.storage.appended.wait_for(master.store.end_offset)
                with structlog.testing.capture_logs() as logs:
                    for role in ("SYNC_MASTER", "ASYNC_MASTER", "SYNC_MASTER"):
                        master.options.change({"brokerRole": role})
                        ha.role_changed()
                        await trio.testing.wait_all_tasks_blocked()
                        await confirmed(master, 10)
                assert slave.store.end_offset == master.store.end_offset
                assert "slave_replaced" not in [entry["event"] for entry in logs]


@pytest.mark.parametrize("silent", [False, True])
async def test_a_master_that_stops_lets_its_slaves_have_the_end(tmp_path: Path, silent: bool) -> None:
    node = Node(tmp_path / "master", BrokerRole.ASYNC_MASTER)
    ha = HaMaster(node.storage, node.options, Identity(CLUSTER, BROKER))
    (listener,) = await open_listeners(0, "127.0.0.1")
    received = b""

    async def slave(stream: trio.SocketStream) -> None:
        nonlocal received
        async with stream:
            await stream.send_all(encode_report(0))
            while data := await stream.receive_some():
                received += data
                if not silent:
                    await stream.send_all(encode_report(len(received) - TRANSFER_HEADER_BYTES))

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            async with node.running(partial(ha.serve, [listener])):
                nursery.start_soon(slave, await trio.open_tcp_stream("127.0.0.1", port_of(listener)))
                while not ha.progress.replicas:  # noqa: ASYNC110 (nobody waits for a slave to come)
                    await trio.sleep(0.01)
                end = node.storage.append(new_messages(10))
                begun = trio.current_time()
            assert trio.current_time() - begun < (4 if silent else 1)
    assert len(received) == end + TRANSFER_HEADER_BYTES
