"""What a master finds out about an official slave: whose it is, where it ends, and whether its last message is ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.client import CallFailed
from gateway.ha.history import Sameness
from gateway.ha.inspection import INSPECTION_SECONDS, Inspector
from protocol.bodies.routes import BrokerData, ClusterInfo
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command, response
from protocol.requests.queries import ViewMessageById
from tests.gateway.ha.fakes import BROKER, MemoryLog, MemoryStorage, OfficialClient, messages

DATA = messages(0, 10_000)
OTHER = messages(0, 10_000, store_timestamp=1_700_000_000_001)
HOST = "10.0.0.3"
SLAVE = f"{HOST}:10911"


class Network:
    """A name server and the brokers that it knows, by address."""

    def __init__(self, brokers: dict[int, str]) -> None:
        self.brokers = brokers
        self.peers: dict[str, Any] = {"ns1:9876": self, "ns0:9876": Dead()}

    def add(self, address: str, log: MemoryLog) -> OfficialClient:
        client = self.peers[address] = OfficialClient(log)
        return client

    async def call(self, command: Command, timeout: float) -> Command:
        await trio.lowlevel.checkpoint()
        assert command.code == RequestCode.GET_BROKER_CLUSTER_INFO
        data = BrokerData(broker_addrs=self.brokers, broker_name=BROKER, cluster="c")
        return response(command, body=ClusterInfo(broker_addr_table={BROKER: data}).encode())

    def inspector(self, ours: bytes = DATA, broker: str = BROKER) -> Inspector:
        @asynccontextmanager
        async def open_client(address: str) -> AsyncIterator[Any]:
            async with trio.open_nursery():
                yield self.peers.get(address, Dead())

        storage = MemoryStorage(MemoryLog(ours))
        return Inspector(storage, broker, ["ns0:9876", "ns1:9876"], open_client=open_client)


class Dead:
    async def call(self, command: Command, timeout: float) -> Command:
        await trio.sleep(timeout)
        raise CallFailed("no answer")


@pytest.fixture(autouse=True)
def _clock(autojump_clock: MockClock) -> None:
    """Every test here waits for what does not answer."""


@pytest.mark.parametrize(
    ("theirs", "sameness"),
    [(DATA[:5000], Sameness.SAME), (DATA, Sameness.SAME), (OTHER[:5000], Sameness.DIFFERENT)],
)
async def test_the_last_message_tells(theirs: bytes, sameness: Sameness) -> None:
    network = Network({0: "10.0.0.1:10911", 1: SLAVE})
    network.add(SLAVE, MemoryLog(theirs))
    assert await network.inspector().compare(HOST, len(theirs)) is sameness


async def test_of_several_slaves_on_a_host_the_one_that_ends_there_is_asked() -> None:
    network = Network({0: f"{HOST}:10911", 1: f"{HOST}:20911", 2: f"{HOST}:30911", 3: "10.0.0.4:10911"})
    for address, log in {
        f"{HOST}:10911": OTHER[:5000],  # the master's own address is not a slave's
        f"{HOST}:20911": OTHER[:4000],
        f"{HOST}:30911": DATA[:5000],
        "10.0.0.4:10911": OTHER[:5000],
    }.items():
        network.add(address, MemoryLog(log))
    assert await network.inspector().compare(HOST, 5000) is Sameness.SAME
    assert await network.inspector().compare(HOST, 4000) is Sameness.DIFFERENT


async def test_one_that_differs_speaks_for_all_that_end_there() -> None:
    network = Network({1: f"{HOST}:20911", 2: f"{HOST}:30911"})
    network.add(f"{HOST}:20911", MemoryLog(DATA[:5000]))
    network.add(f"{HOST}:30911", MemoryLog(OTHER[:5000]))
    assert await network.inspector().compare(HOST, 5000) is Sameness.DIFFERENT


async def test_a_log_that_is_cut_off_inside_a_message_is_judged_by_the_one_before() -> None:
    """Where a link broke; an official broker does not find a message whose end it lacks."""

    class Torn(OfficialClient):
        def _answer(self, command: Command) -> Command:
            answer = super()._answer(command)
            size = int.from_bytes(answer.body[:4], "big")
            if isinstance(command.header, ViewMessageById) and len(answer.body) < size:
                remark = "can not find message by the offset"
                return response(command, ResponseCode.SYSTEM_ERROR, remark=remark)
            return answer

    network = Network({1: SLAVE})
    network.peers[SLAVE] = Torn(MemoryLog(DATA[:5001]))
    assert await network.inspector().compare(HOST, 5001) is Sameness.SAME
    network.peers[SLAVE] = Torn(MemoryLog(OTHER[:5001]))
    assert await network.inspector().compare(HOST, 5001) is Sameness.DIFFERENT


async def test_a_slave_without_that_message_differs() -> None:
    network = Network({1: SLAVE})
    client = network.add(SLAVE, MemoryLog(DATA[:5000]))
    client.refuses = {RequestCode.VIEW_MESSAGE_BY_ID: ResponseCode.SYSTEM_ERROR}
    client.remark = "can not find message by the offset, 4992"
    assert await network.inspector().compare(HOST, 5000) is Sameness.DIFFERENT


@pytest.mark.parametrize(
    "code", [RequestCode.VIEW_MESSAGE_BY_ID, RequestCode.GET_BROKER_RUNTIME_INFO], ids=lambda code: code.name
)
async def test_a_slave_that_fails_proves_nothing(code: RequestCode) -> None:
    network = Network({1: SLAVE})
    network.add(SLAVE, MemoryLog(DATA[:5000])).refuses = {code: ResponseCode.SYSTEM_ERROR}
    assert await network.inspector().compare(HOST, 5000) is Sameness.UNKNOWN


@pytest.mark.parametrize("brokers", [{}, {1: "10.0.0.4:10911"}, {1: SLAVE}])
async def test_a_slave_that_is_not_found_proves_nothing(brokers: dict[int, str]) -> None:
    network = Network(brokers)
    begun = trio.current_time()
    assert await network.inspector().compare(HOST, 5000) is Sameness.UNKNOWN
    assert trio.current_time() - begun <= INSPECTION_SECONDS


async def test_another_brokers_slave_proves_nothing() -> None:
    network = Network({1: SLAVE})
    network.add(SLAVE, MemoryLog(OTHER[:5000]))
    assert await network.inspector(broker="broker-b").compare(HOST, 5000) is Sameness.UNKNOWN
