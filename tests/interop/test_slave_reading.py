"""Consumers of old messages move to a slave and come back, by official Java consumers.

accessMessageInMemoryMaxRatio=0 makes every message an old one, so a backlog of a few messages does. A
consumer that has caught up asks for an offset without a message, which nobody calls old; slaves that poll
short answer that soon.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import CLIENTS, MakeDriver, has_route
from tests.interop.driver import Json, PushConsumer
from tests.interop.processes import Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.slow]

UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: Final = 200
GET_BROKER_RUNTIME_INFO: Final = 28
GET_ALL_SUBSCRIPTIONGROUP_CONFIG: Final = 201
GET_MAX_OFFSET: Final = 30

SECOND_SLAVE: Final = "reads-the-second-slave"
QUEUES: Final = 2
BACKLOG: Final = 400


@pytest.fixture(scope="module")
def reading(target: str) -> Iterator[Cluster]:
    """A master and two slaves. One group wants the second slave when it is slow."""
    settings: Json = {"slaveReadEnable": "true", "accessMessageInMemoryMaxRatio": 0}
    with Cluster(target) as running:
        running.add_namesrv()
        master = running.add_broker(**settings)
        body = {"groupName": SECOND_SLAVE, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 2, "retryQueueNums": 1}
        assert master.call(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=json.dumps(body).encode()).code == 0
        for broker_id in (1, 2):
            slave = running.add_broker(broker_id=broker_id, role="SLAVE", longPollingEnable="false", **settings)
            wait_until(partial(knows_group, slave), "the groups at the slave", 30)
        yield running


def knows_group(slave: Broker) -> bool:
    return SECOND_SLAVE in slave.call(GET_ALL_SUBSCRIPTIONGROUP_CONFIG).body.decode()


def delivered(broker: Broker) -> int:
    """How many messages this very broker has handed out."""
    return int(json.loads(broker.call(GET_BROKER_RUNTIME_INFO).body)["table"]["msgGetTotalTodayNow"])


def bodies(messages: list[Json]) -> list[str]:
    return sorted(message["body"] for message in messages)


def pulls_from(consumer: PushConsumer, queues: list[Json]) -> set[int]:
    return {consumer.pulls_from(queue) for queue in queues}


@pytest.mark.parametrize(("version", "which"), list(zip(CLIENTS, (1, 2, 1), strict=True)))
def test_a_slow_consumer_reads_at_one_slave_and_comes_back(
    drivers: MakeDriver, reading: Cluster, version: str, which: int
) -> None:
    """The master hands out the beginning, the slave that the group names the rest, the other slave
    nothing.
    """
    client = drivers(version)
    master, *slaves = reading.brokers
    chosen, other = slaves[which - 1], slaves[2 - which]
    topic = client.fresh("old")
    group = SECOND_SLAVE if which == 2 else client.fresh("group")
    with client.producer(reading.namesrv_addr) as producer:
        producer.create_topic(topic, QUEUES)
        wait_until(lambda: has_route(reading, topic), "the route", 10)
        producer.send_many(topic, "old", BACKLOG, mode="async")
        queues = producer.queues(topic)
        for slave in slaves:
            wait_until(partial(holds, slave, master, topic), f"the backlog at slave {slave.broker_id}", 30)
        before = {broker: delivered(broker) for broker in reading.brokers}
        with client.push(reading.namesrv_addr, topic, group=group, where="FIRST_OFFSET", heartbeat=1000) as consumer:
            received = consumer.received(BACKLOG)
            assert bodies(received) == sorted(f"old{n}" for n in range(BACKLOG))
            moved = {broker: delivered(broker) - before[broker] for broker in reading.brokers}
            assert sum(moved.values()) == BACKLOG
            assert 0 < moved[master] <= QUEUES * 32 < moved[chosen]
            assert moved[other] == 0

            wait_until(lambda: pulls_from(consumer, queues) == {0}, "the way back to the master", 30)
            at_master = delivered(master)
            producer.send_many(topic, "new", 1)
            assert bodies(consumer.received(BACKLOG + 1)[BACKLOG:]) == ["new0"]
            assert delivered(master) == at_master + 1


def holds(slave: Broker, master: Broker, topic: str) -> bool:
    """Whether the slave can answer for every message of the topic."""
    return all(reach(slave, topic, queue) == reach(master, topic, queue) > 0 for queue in range(QUEUES))


def reach(broker: Broker, topic: str, queue: int) -> int:
    """The end of a queue; -1 where the broker does not know."""
    answer = broker.call(GET_MAX_OFFSET, {"topic": topic, "queueId": queue})
    return int(answer.fields["offset"]) if answer.code == 0 else -1
