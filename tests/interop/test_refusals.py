"""What official Java clients are told when a broker will not."""

from collections.abc import Iterator

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import CLIENTS, MakeDriver, has_route
from tests.interop.driver import ClientError, Driver
from tests.interop.processes import OURS, Cluster

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def strict(target: str) -> Iterator[Cluster]:
    """A broker that makes no topics of itself and takes small messages only."""
    with Cluster(target) as running:
        running.add_namesrv()
        running.add_broker(autoCreateTopicEnable="false", maxMessageSize=2000)
        yield running


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, drivers: MakeDriver) -> Driver:
    """Each official client."""
    return drivers(request.param)


def create(cluster: Cluster, topic: str, perm: int = 6) -> None:
    """Makes a topic as mqadmin does, for there is no TBW102 to make it from."""
    fields = {
        "topic": topic, "defaultTopic": "TBW102", "readQueueNums": 2, "writeQueueNums": 2, "perm": perm,
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false",
    }  # fmt: skip
    assert cluster.brokers[0].call(17, fields).code == 0
    wait_until(lambda: has_route(cluster, topic), "the route", 10)


def test_an_unknown_topic_has_no_route(client: Driver, strict: Cluster) -> None:
    """Without automatic topics the client finds no route and says so."""
    with client.producer(strict.namesrv_addr) as producer, pytest.raises(ClientError, match="No route info"):
        producer.send(client.fresh("unknown"), "nobody")


def test_a_message_above_the_broker_s_limit(client: Driver, strict: Cluster) -> None:
    """MESSAGE_ILLEGAL, and not retried into another error; the next message is fine."""
    topic = client.fresh("small")
    create(strict, topic)
    with client.producer(strict.namesrv_addr, compressOver=1 << 20) as producer:
        assert producer.send(topic, size=1500, seed=1)["status"] == "SEND_OK"
        with pytest.raises(ClientError, match="CODE: 13"):
            producer.send(topic, size=3000, seed=1)
        assert producer.send(topic, "fine")["status"] == "SEND_OK"


def test_a_time_of_its_own_for_a_message(client: Driver, strict: Cluster, target: str) -> None:
    """What setDelayTimeSec of 5.x asks for is refused, as by an official 5.x broker whose timers are off."""
    if target != OURS:
        pytest.skip("4.x brokers deliver at once, 5.x at the time")
    topic = client.fresh("timer")
    create(strict, topic)
    with client.producer(strict.namesrv_addr) as producer:
        with pytest.raises(ClientError, match="timerWheelEnable is false"):
            producer.send(topic, "later", system={"TIMER_DELAY_SEC": "10"})
        assert producer.send(topic, "now")["status"] == "SEND_OK"


def test_a_topic_that_may_not_be_written(client: Driver, strict: Cluster) -> None:
    """A read-only topic has no queues to publish to."""
    topic = client.fresh("readonly")
    create(strict, topic, perm=4)
    with client.producer(strict.namesrv_addr) as producer, pytest.raises(ClientError, match="No route info"):
        producer.send(topic, "no")


def test_a_topic_that_may_not_be_read(client: Driver, strict: Cluster) -> None:
    """A pull from a write-only topic is refused with NO_PERMISSION."""
    topic = client.fresh("writeonly")
    create(strict, topic, perm=2)
    with client.producer(strict.namesrv_addr) as producer, client.puller(strict.namesrv_addr) as puller:
        sent = producer.send(topic, "unread")
        with pytest.raises(ClientError, match="CODE: 16"):
            puller.pull(sent, 0)
