"""Where a new group begins: FIRST, LAST and TIMESTAMP, by official Java clients.

An official broker tells a new group to begin at 0 as long as a queue's first messages are still in memory,
whatever the group wishes; only a queue whose beginning is out of memory has a real LAST.
accessMessageInMemoryMaxRatio=0 makes every queue such a one.
"""

import time
from collections.abc import Iterator

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import CLIENTS, MakeDriver, has_route
from tests.interop.driver import Driver
from tests.interop.messages import bodies
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def cold(target: str) -> Iterator[Cluster]:
    """A broker for which no message is in memory."""
    with Cluster(target) as running:
        running.add_namesrv()
        running.add_broker(accessMessageInMemoryMaxRatio=0)
        yield running


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, drivers: MakeDriver) -> Driver:
    """Each official client."""
    return drivers(request.param)


def next_second() -> int:
    """Waits for a new second of the clock, the unit of the client's timestamp; returns it."""
    second = int(time.time()) + 1
    wait_until(lambda: time.time() >= second, "the next second", 2, 0.005)
    return second


def test_first_last_and_timestamp(client: Driver, cold: Cluster) -> None:
    """FIRST sees everything, LAST what comes after it, TIMESTAMP what was stored from that second on."""
    topic = client.fresh("positions")
    with client.producer(cold.namesrv_addr) as producer:
        producer.create_topic(topic, 2)
        wait_until(lambda: has_route(cold, topic), "the route", 10)
        producer.send_many(topic, "old", 4)
        second = next_second()
        producer.send_many(topic, "new", 4)
        at = time.strftime("%Y%m%d%H%M%S", time.localtime(second))
        with (
            client.push(cold.namesrv_addr, topic, where="FIRST_OFFSET") as first,
            client.push(cold.namesrv_addr, topic, where="TIMESTAMP", timestamp=at) as since,
            client.push(cold.namesrv_addr, topic, where="LAST_OFFSET") as last,
        ):
            # A group that holds its queues and has nothing to read is at the end: only then is `late` late
            # for it.
            wait_until(lambda: len(last.assigned(topic)) == 2, "the assignment", 30)
            first.received(8)
            since.received(4)
            late = [producer.send(topic, f"late{n}", select=n)["queue"] for n in range(2)]
            assert sorted(late) == [0, 1]
            assert bodies(last.received(2)) == ["late0", "late1"]
            assert bodies(since.received(6)) == ["late0", "late1", "new0", "new1", "new2", "new3"]
            assert len(first.received(10)) == 10


def test_last_begins_at_zero_while_the_queue_is_in_memory(client: Driver, cluster: Cluster) -> None:
    """The official rule that surprises everyone: a fresh queue is read from its beginning even with LAST."""
    topic = client.fresh("positions")
    with client.producer(cluster.namesrv_addr) as producer:
        producer.create_topic(topic, 2)
        wait_until(lambda: has_route(cluster, topic), "the route", 10)
        producer.send_many(topic, "m", 6)
        with client.push(cluster.namesrv_addr, topic, where="LAST_OFFSET") as consumer:
            assert len(consumer.received(6)) == 6
