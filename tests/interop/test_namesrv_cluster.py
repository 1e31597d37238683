"""Several name servers, one of which is dead and one hangs: accepts connections and never answers.

Neither delays a broker's start, its topics, its slaves or its end; both are told as soon as they are back.
"""

import time
from collections.abc import Iterator

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.processes import OURS, Broker, Cluster, NameServer

pytestmark = [pytest.mark.interop, pytest.mark.slow]

UPDATE_AND_CREATE_TOPIC = 17
SETTLED_SECONDS = 6.0


class Three:
    """A broker's name servers: one that serves, one that hangs, one that is not there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.serving, self.hanging, self.dead = (cluster.add_namesrv(start=False) for _ in range(3))
        self.serving.start()
        self.hanging.start()
        self.hanging.pause()

    @property
    def addresses(self) -> str:
        """The one that serves comes last, and by name."""
        return f"{self.hanging.address};{self.dead.address};localhost:{self.serving.port}"

    def add_broker(self, **settings: str) -> Broker:
        return self.cluster.add_broker(start=False, namesrvAddr=self.addresses, **settings)  # type: ignore[arg-type]


@pytest.fixture
def three(target: str) -> Iterator[Three]:
    if target != OURS:
        pytest.skip("official brokers wait for the slowest name server")
    with Cluster() as cluster:
        yield Three(cluster)


def lists(namesrv: NameServer, broker: Broker) -> bool:
    return f'"{broker.address}"' in namesrv.brokers()


def has_route(namesrv: NameServer, topic: str) -> bool:
    return namesrv.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).code == 0


def create_topic(broker: Broker, topic: str) -> float:
    """Makes a topic as tools do, which take the answer for the end of it; the seconds that took."""
    fields = {
        **{"topic": topic, "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6},
        **{"topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false"},
    }
    began = time.monotonic()
    assert broker.call(UPDATE_AND_CREATE_TOPIC, fields).code == 0
    return time.monotonic() - began


def test_two_of_three_name_servers_are_of_no_use(three: Three) -> None:
    serving, hanging, dead = three.serving, three.hanging, three.dead
    broker = three.add_broker().start(timeout=10)
    wait_until(lambda: lists(serving, broker), "the broker at the name server that serves", 2)
    assert create_topic(broker, "first") < 1.5
    assert has_route(serving, "first")

    hanging.resume()
    wait_until(lambda: lists(hanging, broker) and has_route(hanging, "first"), "the broker where it hung", 10)
    dead.start()
    wait_until(lambda: lists(dead, broker) and has_route(dead, "first"), "the broker where nobody was", 3)
    # What the one that hung found in its sockets, old connections that ended among it, must not make it forget.
    time.sleep(SETTLED_SECONDS)
    assert lists(hanging, broker)

    hanging.pause()
    assert create_topic(broker, "second") < 1.5, "it hangs again, which nobody has noticed yet"
    assert create_topic(broker, "third") < 1, "now somebody has"
    assert has_route(serving, "third")
    assert has_route(dead, "third")
    began = time.monotonic()
    assert broker.stop() == 0
    assert time.monotonic() - began < 4
    assert not lists(serving, broker)


def test_a_slave_finds_its_master_all_the_same(three: Three) -> None:
    """A slave that was there first links within seconds of its master's start."""
    slave = three.add_broker(broker_id=1, role="SLAVE").start(timeout=10)  # type: ignore[arg-type]
    master = three.add_broker().start(timeout=10)
    began = time.monotonic()
    slave.running.wait_line("linked_to_master", 10)
    assert time.monotonic() - began < 5
    assert lists(three.serving, master)
