"""Moving house: a broker name goes from an official master to PocketMQ and back while clients work.

The steps are those of the README. A producer sends and a consumer consumes all the while; another group is away during
the move, and its place in the queues must be where it was.
"""

import json
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver
from tests.interop.driver import ClientError, Driver, Flow, Json, Producer, PushConsumer
from tests.interop.mqadmin import mqadmin
from tests.interop.processes import OURS, Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.slow]

OFFICIAL: Final = "4.9.4"
NAME: Final = "broker-a"
QUEUES: Final = 2
FILE_SIZE: Final = 1 << 20

GET_ALL_TOPIC_CONFIG: Final = 21
GET_BROKER_RUNTIME_INFO: Final = 28
GET_ALL_CONSUMER_OFFSET: Final = 43
GET_ALL_SUBSCRIPTIONGROUP_CONFIG: Final = 201

MASTER: Final[Json] = {"brokerId": 0, "brokerRole": "ASYNC_MASTER"}
SLAVE: Final[Json] = {"brokerId": 1, "brokerRole": "SLAVE"}


class House:
    """What lives in the cluster while it is moved, and what must be there afterwards."""

    def __init__(self, cluster: Cluster, client: Driver, folder: Path) -> None:
        self.cluster = cluster
        self.client = client
        self.topic = client.fresh("moved")
        self.away = client.fresh("away")
        self.file = folder / "acknowledged"
        self.producer: Producer = client.producer(cluster.namesrv_addr, timeout=1000)
        self.online: PushConsumer
        self.flow: Flow
        self.delayed: set[str] = set()
        self.seen_by_away = 0

    def furnish(self, master: Broker) -> None:
        """Three files of messages, a group that has read them all and went, and traffic that goes on."""
        self.producer.create_topic(self.topic, QUEUES)
        for namesrv in self.cluster.namesrvs:
            wait_until(
                lambda at=namesrv: at.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": self.topic}).code == 0,  # type: ignore[misc]
                "the route",
                10,
            )
        self.producer.send_many(self.topic, "old", 600, size=4000, keys="old")
        with self.client.push(self.cluster.namesrv_addr, self.topic, group=self.away, where="FIRST_OFFSET") as consumer:
            self.seen_by_away = len({message["msgId"] for message in consumer.received(600)})
        assert self.seen_by_away == 600
        assert len(list((master.store / "commitlog").iterdir())) >= 3
        self.online = self.client.push(
            self.cluster.namesrv_addr, self.topic, where="FIRST_OFFSET", persist=1000, heartbeat=1000
        )
        self.flow = self.producer.flow(self.topic, self.file, threads=2, size=300, pause=20)

    def acknowledged(self) -> int:
        count: int = self.flow.state()["acknowledged"]
        return count

    def wait_traffic(self) -> None:
        """Until sends go through (again)."""
        reached = self.acknowledged() + 20
        wait_until(lambda: self.acknowledged() >= reached, "sends", 40)

    def send_delayed(self) -> None:
        """A message for ten seconds later, when somebody else may be the master."""
        body = self.client.fresh("delayed")

        def sent() -> bool:
            try:
                return bool(self.producer.send(self.topic, body, delay=3)["status"])
            except ClientError:
                return False

        wait_until(sent, "the delayed message", 20)
        self.delayed.add(body)


def end(broker: Broker) -> int:
    """What `mqadmin brokerStatus` shows as commitLogMaxOffset; -1 in an official broker's first second."""
    answer = broker.call(GET_BROKER_RUNTIME_INFO)
    return int(json.loads(answer.body)["table"]["commitLogMaxOffset"]) if answer.code == 0 else -1


def offsets(broker: Broker, house: House, group: str) -> dict[str, int]:
    """Where a group is in the topic, by queue."""
    text = broker.call(GET_ALL_CONSUMER_OFFSET).body.decode()
    for number in range(64):  # the official table has unquoted numbers as keys
        text = text.replace(f"{{{number}:", f'{{"{number}":').replace(f",{number}:", f',"{number}":')
    table: dict[str, dict[str, int]] = json.loads(text)["offsetTable"]
    return table.get(f"{house.topic}@{group}", {})


def hand_over(house: House, master: Broker, slave: Broker) -> None:
    """The steps of the README: the slave of the moment becomes the master, the master leaves."""
    cluster = house.cluster
    mqadmin(OFFICIAL, "wipeWritePerm", "-b", NAME, namesrv=cluster.namesrv_addr)
    wait_until(partial(is_quiet_and_equal, house, master, slave), "a slave that has everything", 30, 0.2)
    tables = partial(same_tables, house, master, slave)
    wait_until(tables, "a slave that has all tables", 30, 0.2)
    assert is_quiet_and_equal(house, master, slave)
    away = offsets(master, house, house.away)
    assert sum(away.values()) == house.seen_by_away
    master.stop()
    slave.stop()
    slave.start(**MASTER)
    cluster.wait_registered(slave)
    assert offsets(slave, house, house.away) == away
    house.wait_traffic()


def is_quiet_and_equal(house: House, master: Broker, slave: Broker) -> bool:
    """Whether nothing is sent any more and the slave has all that was."""
    before = (house.acknowledged(), end(master))
    return end(slave) == before[1] and (house.acknowledged(), end(master)) == before


def same_tables(house: House, master: Broker, slave: Broker) -> bool:
    """Whether the slave knows the topic, the groups, and where they are."""
    for code, name in ((GET_ALL_TOPIC_CONFIG, house.topic), (GET_ALL_SUBSCRIPTIONGROUP_CONFIG, house.away)):
        if name not in slave.call(code).body.decode():
            return False
    groups = (house.away, house.online.group)
    return all(offsets(slave, house, group) == offsets(master, house, group) != {} for group in groups)


@pytest.mark.beside
def test_from_official_to_pocketmq_and_back(target: str, drivers: MakeDriver) -> None:
    """Nothing acknowledged is lost on the way, and no group loses its place."""
    if target != OURS:
        pytest.skip("one side is official already")
    with Cluster() as cluster:
        cluster.add_namesrv(OFFICIAL)
        cluster.add_namesrv(OURS)
        move(cluster, drivers("4.9.8"))


def move(cluster: Cluster, client: Driver) -> None:
    common: Json = {"mappedFileSizeCommitLog": FILE_SIZE, "haSendHeartbeatInterval": 1000}
    official = cluster.add_broker(OFFICIAL, name=NAME, **common)
    house = House(cluster, client, cluster.folder)
    house.furnish(official)

    pocket = cluster.add_broker(
        OURS, name=NAME, broker_id=1, role="SLAVE", haSyncWholeLog="true", slaveReadEnable="true", **common
    )
    house.wait_traffic()
    house.send_delayed()
    hand_over(house, official, pocket)

    official.start(**SLAVE)
    cluster.wait_registered(official)
    house.wait_traffic()
    house.send_delayed()
    hand_over(house, pocket, official)

    state = house.flow.stop()
    assert state["acknowledged"] > 100
    sent = {row["key"] for row in Flow.acknowledged(house.file)}
    assert len(sent) == state["acknowledged"]
    stored = [raw.read_queue(official.address, house.topic, queue) for queue in range(QUEUES)]
    assert sent <= {message.properties.get("KEYS") for messages in stored for message in messages}
    wait_until(lambda: sent <= consumed(house.online), "all that was sent, at the consumer that stayed", 60)
    wait_until(lambda: house.delayed <= received(house.online), "the delayed messages", 60)

    with client.push(cluster.namesrv_addr, house.topic, group=house.away, where="FIRST_OFFSET") as consumer:
        wait_until(lambda: sent <= consumed(consumer), "all that was sent, at the group that was away", 60)
        assert "old" not in consumed(consumer), "what it had consumed before does not come again"


def consumed(consumer: PushConsumer) -> set[str]:
    return {message.get("keys", "") for message in consumer.received()}


def received(consumer: PushConsumer) -> set[str]:
    return {message.get("body", "") for message in consumer.received()}
