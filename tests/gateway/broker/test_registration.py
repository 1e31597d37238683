"""Keeping name servers informed: when a broker registers, and that one name server never costs another anything."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.broker import registration as module
from gateway.broker.registration import Registration
from gateway.broker.topics import TopicTable
from gateway.client import CallFailed
from gateway.config import BrokerOptions
from protocol.bodies import KVTable, RegisterBrokerBody, TopicConfig
from protocol.codes import PERM_READ, PERM_WRITE, RequestCode, ResponseCode
from protocol.command import Command, response
from protocol.requests.routes import RegisterBroker, RegisterBrokerReply, UnregisterBroker
from tests.gateway.broker.fakes import Clock

A, B = "ns-a:9876", "ns-b:9876"


class NameServer:
    """What one name server does with a broker's calls: answers, refuses connections, or hangs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.state = "up"
        self.reply = RegisterBrokerReply()
        self.order_topics: dict[str, str] = {}
        self.refusal: str | None = None
        self.registered: list[tuple[float, Command]] = []
        self.unregistered: list[Command] = []
        self.restarted = trio.Event()

    def restart(self) -> None:
        """Every connection breaks."""
        self.restarted.set()
        self.restarted = trio.Event()

    @property
    def times(self) -> list[float]:
        """When registrations came, on the broker's clock, to the tenth of a second."""
        return [round(time, 1) for time, _ in self.registered]


class Client:
    """A RemotingClient without a network."""

    def __init__(self, namesrv: NameServer) -> None:
        self.namesrv = namesrv
        self.address = namesrv.address
        self.connected = False

    async def call(self, command: Command, timeout: float) -> Command:
        if self.namesrv.state == "down":
            raise CallFailed(f"{self.address}: connection refused")
        self.connected = True
        if self.namesrv.state == "hangs":
            await trio.sleep(timeout)
            self.connected = False
            raise CallFailed(f"{self.address} did not answer")
        await trio.lowlevel.checkpoint()
        if command.code == RequestCode.UNREGISTER_BROKER:
            self.namesrv.unregistered.append(command)
            return response(command)
        self.namesrv.registered.append((trio.current_time(), command))
        if self.namesrv.refusal is not None:
            return response(command, ResponseCode.SYSTEM_ERROR, remark=self.namesrv.refusal)
        body = KVTable(table=self.namesrv.order_topics).encode() if self.namesrv.order_topics else b""
        return response(command, header=self.namesrv.reply, body=body)

    async def wait_closed(self) -> None:
        if self.connected:
            await self.namesrv.restarted.wait()
            self.connected = False


class Bench:
    """A broker with two name servers; its clock begins at 0."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.namesrvs = {address: NameServer(address) for address in (A, B)}
        self.a, self.b = self.namesrvs.values()
        self.answers: list[tuple[str, RegisterBrokerReply]] = []
        self.options = BrokerOptions(
            **{"broker_name": "broker-a", "broker_ip1": "10.0.0.1", "namesrv_addr": f"{A};{B}", **options}
        )
        self.topics = TopicTable(self.options, folder / "topics.json", Clock())
        self.is_withheld = False
        self.registration = Registration(
            self.options,
            self.topics,
            "10.0.0.2:10912",
            answered=lambda namesrv, reply: self.answers.append((namesrv, reply)),
            is_withheld=lambda: self.is_withheld,
            open_client=self._open_client,  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def _open_client(self, address: str) -> AsyncIterator[Client]:
        yield Client(self.namesrvs[address])


Make = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make(tmp_path: Path, nursery: trio.Nursery) -> Make:
    async def start(**options: Any) -> Bench:
        bench = Bench(tmp_path, **options)
        nursery.start_soon(bench.registration.run)
        return bench

    return start


async def test_registers_at_once_and_every_thirty_seconds(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(65)
    assert bench.a.times == bench.b.times == [0, 30, 60]


async def test_a_broker_that_is_withheld_is_not_known_to_clients(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(1)
    bench.is_withheld = True
    bench.registration.topic_changed()
    await trio.sleep(100)
    assert len(bench.a.registered) == len(bench.a.unregistered) == 1
    bench.is_withheld = False
    bench.registration.topic_changed()
    await trio.sleep(1)
    assert len(bench.a.registered) == len(bench.b.registered) == 2


@pytest.mark.parametrize(("given", "seconds"), [(1, 10), (20_000, 20), (10**9, 60)])
async def test_the_period_has_official_bounds(
    make: Make, autojump_clock: MockClock, given: int, seconds: float
) -> None:
    bench = await make(register_name_server_period=given)
    await trio.sleep(seconds + 1)
    assert bench.a.times == [0, seconds]


async def test_what_a_registration_says(make: Make, autojump_clock: MockClock) -> None:
    bench = await make(broker_id=3, broker_cluster_name="C", listen_port=10_921)
    bench.topics.update([TopicConfig(topic_name="Orders", read_queue_nums=3, write_queue_nums=3)])
    await trio.sleep(1)
    command = bench.a.registered[0][1]
    header = command.typed_header(RegisterBroker)
    assert (header.broker_name, header.broker_addr, header.broker_id) == ("broker-a", "10.0.0.1:10921", 3)
    assert (header.cluster_name, header.ha_server_addr) == ("C", "10.0.0.2:10912")
    table = RegisterBrokerBody.decode(command.body).topic_config_serialize_wrapper.topic_config_table
    assert table["Orders"].read_queue_nums == 3


async def test_a_broker_that_takes_no_writes_says_so(make: Make, autojump_clock: MockClock) -> None:
    bench = await make(broker_permission=PERM_READ)
    await trio.sleep(1)
    body = RegisterBrokerBody.decode(bench.a.registered[0][1].body)
    table = body.topic_config_serialize_wrapper.topic_config_table
    assert table
    assert not any(config.perm & PERM_WRITE for config in table.values())


async def test_answers_are_handed_on_and_ordered_topics_kept(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    bench.topics.update([TopicConfig(topic_name="Ordered")])
    bench.a.reply = RegisterBrokerReply(master_addr="10.0.0.9:10911", ha_server_addr="10.0.0.9:10912")
    bench.a.order_topics = {"Ordered": "broker-a:4"}
    await trio.sleep(1)
    assert (A, bench.a.reply) in bench.answers
    assert bench.topics.is_ordered("Ordered"), "whoever else does not know it"
    bench.a.order_topics = {}
    await trio.sleep(30)
    assert not bench.topics.is_ordered("Ordered")


async def test_changes_are_told_at_once_and_together(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(5)
    for _ in range(10):
        bench.registration.topic_changed()
    await trio.sleep(1)
    assert bench.a.times == bench.b.times == [0, 5]


async def test_a_restarted_name_server_is_told_within_a_second(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(5)
    bench.a.state = "down"
    bench.a.restart()
    await trio.sleep(4.5)
    bench.a.state = "up"
    await trio.sleep(1)
    assert len(bench.a.times) == 2
    assert 9.5 <= bench.a.times[1] <= 10.5
    assert bench.b.times == [0]


async def test_registers_again_soon_after_trouble(make: Make, autojump_clock: MockClock) -> None:
    """What a name server that hung finds in its sockets may make it forget the broker after the first success."""
    bench = await make()
    bench.a.state = "hangs"
    await trio.sleep(20)
    bench.a.state = "up"
    await trio.sleep(60)
    times = bench.a.times
    gaps = [round(after - before) for before, after in pairwise(times)]
    assert gaps[:3] == [3, 3, 3]
    assert gaps[-1] == 30


async def test_a_refusal_is_tried_again(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    bench.a.refusal = "no room"
    await trio.sleep(3.5)
    assert len(bench.a.times) == 4
    assert bench.answers == [(B, bench.b.reply)]


@pytest.mark.parametrize("trouble", ["down", "hangs"])
async def test_one_bad_name_server_costs_the_other_nothing(make: Make, autojump_clock: MockClock, trouble: str) -> None:
    bench = await make()
    bench.a.state = trouble
    await trio.sleep(5)
    bench.registration.topic_changed()
    await trio.sleep(61)
    assert bench.b.times == [0, 5, 35, 65]


# ---- waiting until a change is known


async def announced(bench: Bench) -> float:
    """How long an announcement took."""
    began = trio.current_time()
    await bench.registration.announce()
    return trio.current_time() - began


async def test_an_announcement_waits_until_all_know(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(5)
    assert await announced(bench) < 0.1
    assert bench.a.times == bench.b.times == [0, 5]


async def test_an_announcement_at_the_start_waits_for_the_first_registration(
    make: Make, autojump_clock: MockClock
) -> None:
    bench = await make()
    bench.a.state = "down"
    assert await announced(bench) < 0.1, "one that refuses the connection has answered, too"
    assert bench.b.times == [0], "and nobody is told twice"


async def test_a_hanging_name_server_holds_up_the_start_for_a_moment(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    bench.a.state = "hangs"
    assert 0.4 < await announced(bench) < 0.6
    assert bench.b.times == [0]


async def test_a_name_server_that_dies_meanwhile_does_not_hurry_the_others(
    make: Make, autojump_clock: MockClock
) -> None:
    bench = await make()
    bench.a.state, bench.b.state = "down", "hangs"
    assert round(await announced(bench), 1) == module.ANNOUNCE_SECONDS


async def test_a_hanging_name_server_holds_up_one_announcement_for_a_moment(
    make: Make, autojump_clock: MockClock
) -> None:
    bench = await make()
    await trio.sleep(5)
    bench.a.state = "hangs"
    assert 0.4 < await announced(bench) < 0.6
    assert await announced(bench) < 0.1
    assert bench.b.times == [0, 5, 5.5]
    await trio.sleep(20)
    bench.a.state = "up"
    await trio.sleep(20)
    assert await announced(bench) < 0.1
    assert bench.a.times[-1] == bench.b.times[-1], "once it answers it is waited for again"


async def test_a_dead_name_server_holds_up_nothing(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    bench.a.state = "down"
    await trio.sleep(5)
    assert await announced(bench) < 0.1


async def test_without_any_answer_an_announcement_ends_all_the_same(make: Make, autojump_clock: MockClock) -> None:
    bench = await make()
    await trio.sleep(5)
    bench.a.state = bench.b.state = "hangs"
    assert round(await announced(bench), 1) == module.ANNOUNCE_SECONDS
    assert await announced(bench) < 0.1


async def test_without_name_servers_there_is_nobody_to_tell(make: Make, autojump_clock: MockClock) -> None:
    bench = await make(namesrv_addr="")
    assert await announced(bench) < 0.1


# ---- the end


async def test_unregisters_at_the_end_where_somebody_listens(tmp_path: Path, autojump_clock: MockClock) -> None:
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.registration.run)
        await trio.sleep(1)
        bench.a.state = "hangs"
        await trio.sleep(40)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 0.1, "one that is known to hang is not waited for"
    assert bench.a.unregistered == []
    (command,) = bench.b.unregistered
    header = command.typed_header(UnregisterBroker)
    assert (header.broker_name, header.broker_addr, header.broker_id) == ("broker-a", "10.0.0.1:10911", 0)


async def test_a_hang_that_nobody_knew_of_delays_the_end_by_a_second(tmp_path: Path, autojump_clock: MockClock) -> None:
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.registration.run)
        await trio.sleep(1)
        bench.a.state = "hangs"
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began <= 1.01
    assert len(bench.b.unregistered) == 1
