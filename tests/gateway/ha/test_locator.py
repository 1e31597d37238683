"""Where the master is: what registrations say, a fixed address, and the search while there is no link."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gateway.client import CallFailed
from gateway.ha import locator as locator_module
from gateway.ha.locator import MasterLocator, MasterPlace
from protocol.bodies.routes import BrokerData, ClusterInfo
from protocol.command import Command, response
from protocol.requests.routes import RegisterBrokerReply

HA, ADDRESS = "10.0.0.1:10912", "10.0.0.1:10911"
PLACE = MasterPlace(HA, ADDRESS)


def answer(ha_address: str | None = HA, address: str | None = ADDRESS) -> RegisterBrokerReply:
    return RegisterBrokerReply(ha_server_addr=ha_address, master_addr=address)


def test_nothing_is_known_at_first() -> None:
    locator = MasterLocator("broker-a", "")
    assert locator.place is None
    assert locator.master_address is None


def test_a_registration_tells_both_addresses() -> None:
    locator = MasterLocator("broker-a", "")
    locator.answered("ns", answer())
    assert locator.place == PLACE
    assert locator.master_address == ADDRESS


@pytest.mark.parametrize("nothing", [answer(None, None), answer("", ""), answer("x:1", None)])
def test_a_name_server_that_does_not_know_the_master_says_nothing_against_it(nothing: RegisterBrokerReply) -> None:
    locator = MasterLocator("broker-a", "")
    locator.answered("ns1", answer())
    locator.answered("ns2", nothing)
    assert locator.place == PLACE


def test_a_fixed_address_stays() -> None:
    locator = MasterLocator("broker-a", "", fixed_ha_address="10.0.0.9:20912")
    assert locator.place == MasterPlace("10.0.0.9:20912", "10.0.0.9:20911")
    assert locator.master_address == "10.0.0.9:20911"
    locator.answered("ns", answer())  # of a master elsewhere: what is beside the address is asked for its log
    assert locator.place == MasterPlace("10.0.0.9:20912", "10.0.0.9:20911")
    assert locator.master_address == "10.0.0.9:20911"
    locator.answered("ns", answer("10.0.0.9:20912", "10.0.0.9:30911"))
    assert locator.place == MasterPlace("10.0.0.9:20912", "10.0.0.9:30911")


def test_a_refusal_is_told_when_it_is_new() -> None:
    told: list[bool] = []
    locator = MasterLocator("broker-a", "", register_again=lambda: told.append(locator.refused))
    for refused in (False, True, True, False):
        locator.refused = refused
    assert told == [True, False]


async def test_who_waits_learns_of_the_first_place_and_of_the_next(autojump_clock: MockClock) -> None:
    locator = MasterLocator("broker-a", "")
    seen: list[MasterPlace | None] = []

    async def watch() -> None:
        seen.append(await locator.known())
        await locator.moved_from(PLACE)
        seen.append(locator.place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.sleep(1)
        assert seen == []
        locator.answered("ns", answer())
        await trio.sleep(1)
        locator.answered("ns", answer())
        await trio.sleep(1)
        assert seen == [PLACE]
        locator.answered("ns", answer("10.0.0.2:10912", "10.0.0.2:10911"))
    assert seen == [PLACE, MasterPlace("10.0.0.2:10912", "10.0.0.2:10911")]


class NameServer:
    """What a name server's cluster table shows; None: it does not answer."""

    def __init__(self, master: str | None = None) -> None:
        self.master = master
        self.alive = True
        self.asked = 0

    async def call(self, command: Command, timeout: float) -> Command:
        self.asked += 1
        if not self.alive:
            await trio.sleep(timeout)
            raise CallFailed("no answer")
        await trio.lowlevel.checkpoint()
        brokers = {1: "10.0.0.3:10911"} | ({0: self.master} if self.master else {})
        table = {"broker-a": BrokerData(broker_addrs=brokers, broker_name="broker-a", cluster="c")}
        return response(command, body=ClusterInfo(broker_addr_table=table).encode())


@pytest.fixture
def namesrvs(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, NameServer]], None]:
    def use(servers: dict[str, NameServer]) -> None:
        @asynccontextmanager
        async def open_client(address: str) -> AsyncIterator[NameServer]:
            yield servers[address]

        monkeypatch.setattr(locator_module, "open_client", open_client)

    return use


async def test_a_master_that_turns_up_makes_the_slave_register_again(
    namesrvs: Callable[[dict[str, NameServer]], None], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    silent, knowing = NameServer(), NameServer()
    silent.alive = False
    namesrvs({"ns1:9876": silent, "ns2:9876": knowing})
    registered: list[float] = []

    def register_again() -> None:
        registered.append(trio.current_time())
        locator.answered("ns2", answer())

    locator = MasterLocator("broker-a", "ns1:9876;ns2:9876", register_again=register_again)
    nursery.start_soon(locator.search_forever)
    await trio.sleep(100.5)
    assert registered == []
    knowing.master = ADDRESS
    begun = trio.current_time()
    assert await locator.known() == PLACE
    assert registered[0] - begun <= 1
    await trio.sleep(100)
    assert len(registered) == 1  # it is known now
    knowing.master = "10.0.0.2:10911"
    await trio.sleep(1)
    assert len(registered) == 2


async def test_nobody_is_asked_while_there_is_a_link(
    namesrvs: Callable[[dict[str, NameServer]], None], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    namesrv = NameServer(ADDRESS)
    namesrvs({"ns1:9876": namesrv})
    locator = MasterLocator("broker-a", "ns1:9876")
    locator.linked = True
    nursery.start_soon(locator.search_forever)
    await trio.sleep(100.5)
    assert namesrv.asked == 0
    locator.linked = False
    await trio.sleep(10)
    assert namesrv.asked == 10
