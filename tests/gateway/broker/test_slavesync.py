"""A slave's tables become its master's: each table for itself, whatever the others do."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from gateway.broker import slavesync
from gateway.broker.groups import GroupTable
from gateway.broker.offsets import OffsetTable
from gateway.broker.slavesync import SlaveSync
from gateway.broker.topics import TopicTable
from gateway.client import CallFailed
from gateway.config import BrokerOptions
from protocol.bodies.groups import GroupTableBody, SubscriptionGroupConfig
from protocol.bodies.offsets import ConsumerOffsetBody
from protocol.bodies.topics import DataVersion, TopicConfig, TopicTableBody
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command, response
from store.engine import Arrivals
from tests.gateway.broker.fakes import Clock

MASTER, FAST = "10.0.0.1:10911", "10.0.0.1:10909"
VERSION = DataVersion(counter=7, timestamp=1)
DELAY_TEXT = b'{"offsetTable":{1:5,3:12}}'


class Master:
    """What a master answers on its two ports."""

    def __init__(self) -> None:
        topic = TopicConfig(topic_name="Orders", read_queue_nums=3, write_queue_nums=3, perm=6)
        group = SubscriptionGroupConfig(group_name="billing", retry_max_times=3)
        self.topics = TopicTableBody(data_version=VERSION, topic_config_table={"Orders": topic})
        self.groups = GroupTableBody(data_version=VERSION, subscription_group_table={"billing": group})
        self.offsets = ConsumerOffsetBody(offset_table={"Orders@billing": {0: 5, 1: 9}})
        self.delays = DELAY_TEXT
        self.closed_ports: set[str] = set()
        self.refused: set[int] = set()
        self.asked: list[tuple[str, int]] = []

    def answer(self, address: str, command: Command) -> Command:
        self.asked.append((address, command.code))
        if address in self.closed_ports:
            raise CallFailed(f"{address}: connection refused")
        if command.code in self.refused:
            return response(command, ResponseCode.SYSTEM_ERROR, remark="not today")
        bodies = {
            RequestCode.GET_ALL_TOPIC_CONFIG: self.topics.encode(),
            RequestCode.GET_ALL_CONSUMER_OFFSET: self.offsets.encode(),
            RequestCode.GET_ALL_DELAY_OFFSET: self.delays,
            RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: self.groups.encode(),
        }
        return response(command, body=bodies[RequestCode(command.code)])


class Slave:
    """A slave's tables in a directory, and what copies them."""

    def __init__(self, folder: Path) -> None:
        options, clock = BrokerOptions(broker_name="broker-a"), Clock()
        self.folder = folder
        self.delay_offsets = folder / "delayOffset.json"
        self.topics = TopicTable(options, folder / "topics.json", clock)
        self.groups = GroupTable(options, folder / "subscriptionGroup.json", clock)
        self.offsets = OffsetTable(folder / "consumerOffset.json", clock)
        self.master_address: str | None = MASTER
        self.sync = SlaveSync(
            self.topics,
            self.groups,
            self.offsets,
            self.delay_offsets,
            master_address=lambda: self.master_address,
            write_file=self._write,
        )

    async def _write(self, write: Callable[[], None]) -> OSError | None:
        await trio.lowlevel.checkpoint()
        write()
        return None


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Master:
    master = Master()

    class Client:
        def __init__(self, address: str) -> None:
            self.address = address

        async def call(self, command: Command, timeout: float) -> Command:
            await trio.lowlevel.checkpoint()
            return master.answer(self.address, command)

    @asynccontextmanager
    async def open_client(address: str) -> AsyncIterator[Client]:
        async with trio.open_nursery():
            yield Client(address)

    monkeypatch.setattr(slavesync, "open_client", open_client)
    return master


@pytest.fixture
def slave(tmp_path: Path) -> Slave:
    return Slave(tmp_path)


async def test_all_tables_are_copied_and_on_disk(master: Master, slave: Slave) -> None:
    assert await slave.sync.sync(MASTER)
    copy = Slave(slave.folder)
    for tables in (slave, copy):
        assert tables.topics.snapshot().data_version == VERSION
        assert tables.topics.get("Orders") == master.topics.topic_config_table["Orders"]
        assert tables.groups.get("billing") == master.groups.subscription_group_table["billing"]
    assert slave.offsets.queues("billing", "Orders") == {0: 5, 1: 9}
    assert slave.delay_offsets.read_bytes() == DELAY_TEXT


async def test_what_only_5x_knows_of_groups_is_copied(master: Master, slave: Slave) -> None:
    policy = {"groupRetryPolicy": {"type": "CUSTOMIZED"}}
    config = SubscriptionGroupConfig(group_name="billing", others=policy)
    master.groups.subscription_group_table["billing"] = config
    master.groups.others = {"forbiddenTable": {"billing": {"Orders": 1}}}
    assert await slave.sync.sync(MASTER)
    for tables in (slave, Slave(slave.folder)):
        assert tables.groups.get("billing") == config
        assert tables.groups.snapshot().others == master.groups.others


async def test_what_the_slave_made_up_itself_goes(master: Master, slave: Slave) -> None:
    slave.groups.find("typo")
    slave.offsets.merge(ConsumerOffsetBody(offset_table={"Orders@billing": {0: 99, 5: 1}, "Other@g": {0: 1}}))
    await slave.sync.sync(MASTER)
    assert slave.groups.get("typo") is None
    assert slave.offsets.queues("billing", "Orders") == {0: 5, 1: 9}


async def test_offsets_that_the_master_does_not_name_stay_unless_topic_or_group_is_gone(
    master: Master, slave: Slave
) -> None:
    master.topics.topic_config_table["Other"] = master.topics.topic_config_table["Orders"]
    slave.offsets.merge(
        ConsumerOffsetBody(offset_table={"Other@billing": {0: 1}, "Gone@billing": {0: 2}, "Other@gone": {0: 3}})
    )
    await slave.sync.sync(MASTER)
    assert slave.offsets.queues("billing", "Other") == {0: 1}
    assert slave.offsets.queues("billing", "Gone") == {}
    assert slave.offsets.queues("gone", "Other") == {}


async def test_topics_alone_on_demand(master: Master, slave: Slave) -> None:
    assert await slave.sync.sync_topics()
    assert "Orders" in slave.topics
    assert {code for _, code in master.asked} == {RequestCode.GET_ALL_TOPIC_CONFIG}
    master.refused = {RequestCode.GET_ALL_TOPIC_CONFIG}
    assert not await slave.sync.sync_topics()
    slave.master_address = None
    assert not await slave.sync.sync_topics()


async def test_topics_come_from_the_fast_port_or_from_the_main_one(master: Master, slave: Slave) -> None:
    await slave.sync.sync(MASTER)
    assert master.asked[0] == (FAST, RequestCode.GET_ALL_TOPIC_CONFIG)
    assert (MASTER, RequestCode.GET_ALL_TOPIC_CONFIG) not in master.asked
    master.closed_ports = {FAST}
    master.topics.data_version = DataVersion(counter=8, timestamp=1)
    assert await slave.sync.sync(MASTER)
    assert slave.topics.snapshot().data_version.counter == 8


@pytest.mark.parametrize(
    "code",
    [
        RequestCode.GET_ALL_TOPIC_CONFIG,
        RequestCode.GET_ALL_CONSUMER_OFFSET,
        RequestCode.GET_ALL_DELAY_OFFSET,
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
    ],
)
async def test_one_table_that_fails_leaves_the_others(code: RequestCode, master: Master, slave: Slave) -> None:
    master.refused = {code}
    with structlog.testing.capture_logs() as logs:
        assert not await slave.sync.sync(MASTER)
        assert not await slave.sync.sync(MASTER)
    copied = [
        "Orders" in slave.topics,
        bool(slave.offsets.queues("billing", "Orders")),
        slave.delay_offsets.exists(),
        "billing" in slave.groups,
    ]
    assert copied.count(False) == 1
    assert [entry["event"] for entry in logs].count("not_copied_from_master") == 1  # it is said once
    master.refused = set()
    assert await slave.sync.sync(MASTER)


@pytest.mark.parametrize("text", [b"{", b'{"offsetTable":{1:"x"}}'])
async def test_delay_offsets_that_make_no_sense_do_not_replace_the_file(
    text: bytes, master: Master, slave: Slave
) -> None:
    await slave.sync.sync(MASTER)
    master.delays = text
    assert not await slave.sync.sync(MASTER)
    assert slave.delay_offsets.read_bytes() == DELAY_TEXT


async def test_a_topic_name_that_would_leave_the_directory_is_not_taken(master: Master, slave: Slave) -> None:
    master.topics.topic_config_table["../etc"] = TopicConfig(topic_name="../etc", read_queue_nums=1, write_queue_nums=1)
    await slave.sync.sync(MASTER)
    assert "../etc" not in slave.topics
    assert "Orders" in slave.topics


async def test_rounds_come_each_ten_seconds_and_sooner_while_there_is_no_master(
    master: Master, slave: Slave, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    slave.master_address = None
    nursery.start_soon(slave.sync.run)
    await trio.sleep(30.5)
    assert master.asked == []
    slave.master_address = MASTER
    await trio.sleep(1)
    assert len(master.asked) == 4
    await trio.sleep(10)
    assert len(master.asked) == 8
    master.closed_ports = {MASTER, FAST}
    await trio.sleep(30)
    master.closed_ports = set()
    master.asked.clear()
    await trio.sleep(1)
    assert len(master.asked) == 4


async def test_an_address_that_is_none_does_not_end_the_slave(master: Master, slave: Slave) -> None:
    assert not await slave.sync.sync("nonsense")


# ---- messages of topics that the slave does not know


def of_topics(*topics: str) -> Arrivals:
    """One message of each."""
    arrivals = Arrivals()
    arrivals.add([(topic, 0, 0, 0, 100, 0, ()) for topic in topics], 0)
    return arrivals


async def test_a_message_of_an_unknown_topic_brings_the_next_round_forward(
    master: Master, slave: Slave, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(slave.sync.run)
    await trio.sleep(4.5)
    rounds = len(master.asked)
    topic = TopicConfig(topic_name="New", read_queue_nums=1, write_queue_nums=1, perm=6)
    master.topics.topic_config_table["New"] = topic
    master.topics.data_version = DataVersion(counter=8, timestamp=1)
    slave.sync.arrived(of_topics("Orders", "New", "New"))
    await trio.sleep(0.1)
    assert slave.topics.get("New") == topic
    assert len(master.asked) == 2 * rounds


async def test_a_topic_that_the_master_does_not_know_either_counts_once(
    master: Master, slave: Slave, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its messages are still in the log; each one of them must not cost a round."""
    nursery.start_soon(slave.sync.run)
    await trio.sleep(1.5)
    rounds = len(master.asked)
    for _ in range(20):
        slave.sync.arrived(of_topics("Deleted"))
        await trio.sleep(0.2)
    assert len(master.asked) == 2 * rounds


async def test_timer_messages_are_warned_of_once(slave: Slave) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            slave.sync.arrived(of_topics("rmq_sys_wheel_timer"))
    assert [entry["event"] for entry in logs] == ["timer_messages_not_delivered"]


async def test_many_unknown_topics_at_once_cost_one_round_a_second(
    master: Master, slave: Slave, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(slave.sync.run)
    await trio.sleep(1.5)
    rounds = len(master.asked)
    for number in range(100):
        slave.sync.arrived(of_topics(f"deleted-{number}"))
        await trio.sleep(0.05)
    assert len(master.asked) <= 7 * rounds
