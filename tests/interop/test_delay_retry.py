"""Delayed messages, retries and dead letters with official Java clients, and with the store handed to
another make.
"""

import itertools

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import CLIENTS, MakeDriver, MakeTopic, each_client_once, has_route
from tests.interop.driver import Driver, Json, Producer
from tests.interop.messages import bodies
from tests.interop.processes import OURS, Cluster

pytestmark = pytest.mark.interop

FIRST: Json = {"where": "FIRST_OFFSET"}
LATE_S = 3.0  # how much later than due is still on time, on a machine that does other things too
REBALANCE_S = 20.0
OTHER = "4.9.4"


def waited_s(message: Json, sent: Json) -> float:
    """Seconds between the acknowledgement of the send and the consumer."""
    seconds: float = (message["receivedAt"] - sent["sentAt"]) / 1e6
    return seconds


@each_client_once
def test_delayed_messages_come_when_they_are_due(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Never early, hardly late, each with what was sent."""
    topic = make_topic()
    with client.push(cluster.namesrv_addr, topic, **FIRST) as consumer:
        sent = {
            level: producer.send(topic, f"level {level}", delay=level, tags="Tag", keys="key", props={"n": "内"})
            for level in (2, 1)
        }
        now = producer.send(topic, "now")
        assert {result["status"] for result in [*sent.values(), now]} == {"SEND_OK"}
        assert {sent[1]["topic"], sent[2]["topic"]} == {topic}
        messages = consumer.received(3)
    delayed = [message for message in messages if message["body"] != "now"]
    assert [message["body"] for message in delayed] == ["level 1", "level 2"]
    for message, level, seconds in zip(delayed, (1, 2), (1, 5), strict=True):
        assert seconds - 0.005 <= waited_s(message, sent[level]) <= seconds + LATE_S
        assert (message["topic"], message["queue"]) == (topic, sent[level]["queue"])
        assert (message["tags"], message["keys"], message["props"]["n"]) == ("Tag", "key", "内")
        assert message["msgId"] == sent[level]["msgId"]
        assert message["reconsumeTimes"] == 0


@each_client_once
def test_many_delayed_messages_lose_nothing(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Every message once."""
    topic = make_topic()
    with client.push(cluster.namesrv_addr, topic, **FIRST) as consumer:
        producer.send_many(topic, "m", 300, mode="async", delay=1)
        messages = consumer.received(300)
    assert sorted(message["body"] for message in messages) == sorted(f"m{number}" for number in range(300))


@each_client_once
def test_what_fails_comes_again(client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """A failed message comes again after the delay that the consumer chose, as the message that it was."""
    topic = make_topic()
    with client.push(cluster.namesrv_addr, topic, failures=2, delayLevel=1, **FIRST) as consumer:
        sent = producer.send(topic, "hard", tags="Tag", keys="key", props={"n": "内"})
        messages = consumer.received(3, timeout=REBALANCE_S + 10)
    assert [message["reconsumeTimes"] for message in messages] == [0, 1, 2]
    for message in messages:
        assert (message["topic"], message["body"]) == (topic, "hard")
        assert (message["tags"], message["keys"], message["props"]["n"]) == ("Tag", "key", "内")
        assert message["msgId"] == sent["msgId"]
        assert message["bornTimestamp"] == messages[0]["bornTimestamp"]
    # A client takes the queues of its new retry topic with a rebalance; from then on it is prompt.
    for (earlier, later), late in zip(itertools.pairwise(messages), (REBALANCE_S, LATE_S), strict=True):
        assert 0.99 <= (later["receivedAt"] - earlier["receivedAt"]) / 1e6 <= 1 + late
        assert later["props"]["ORIGIN_MESSAGE_ID"] == sent["offsetMsgId"]


@each_client_once
def test_dead_letters(client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """After its last retry a message stands in the group's dead letter topic, for whoever looks there."""
    topic = make_topic(1)
    options: Json = {"failures": 10, "delayLevel": 1, "maxReconsume": 1}
    with client.push(cluster.namesrv_addr, topic, **options, **FIRST) as consumer:
        sent = producer.send(topic, "hopeless", keys="key")
        assert [message["reconsumeTimes"] for message in consumer.received(2, timeout=REBALANCE_S + 10)] == [0, 1]
        dead = f"%DLQ%{consumer.group}"
        wait_until(lambda: has_route(cluster, dead), f"the route of {dead}", 10)
        with client.puller(cluster.namesrv_addr) as puller:
            (queue,) = puller.queues(dead)
            result = puller.pull(queue, 0, block=True)
        assert len(consumer.received(3, timeout=2.0)) == 2
    (message,) = result["messages"]
    assert (message["body"], message["keys"], message["reconsumeTimes"]) == ("hopeless", "key", 2)
    assert message["props"]["RETRY_TOPIC"] == topic
    assert message["props"]["ORIGIN_MESSAGE_ID"] == sent["offsetMsgId"]


# ---- over restarts, and from make to make


@pytest.mark.beside
@pytest.mark.parametrize(
    ("first", "second", "kill"),
    [(OURS, OURS, False), (OURS, OURS, True), (OURS, OTHER, False), (OTHER, OURS, False), (OTHER, OURS, True)],
)
def test_delayed_messages_survive_the_broker(
    drivers: MakeDriver, target: str, first: str, second: str, kill: bool
) -> None:
    """What was not due when the broker ended is delivered by the next one, also if that is of another make."""
    if target != OURS:
        pytest.skip("hands stores from and to ours")
    newest = drivers(CLIENTS[1])
    with Cluster() as own:
        own.add_namesrv()
        broker = own.add_broker(first)
        topic = newest.fresh("delayed")
        with newest.producer(own.namesrv_addr) as producer:
            producer.create_topic(topic, 1)
            wait_until(lambda: has_route(own, topic), "the route", 10)
            early = producer.send(topic, "early", delay=1)
            late = producer.send(topic, "late", delay=3, tags="Tag")
            (queue,) = producer.queues(topic)
            wait_until(lambda: producer.offset("maxOffset", queue) == 1, "the early message", 10)
        broker.restart(second, kill=kill, timeout=60)
        own.wait_registered(broker)
        with newest.push(own.namesrv_addr, topic, **FIRST) as consumer:
            # What a killed broker delivered in its last seconds comes again, before what was not yet due.
            wait_until(lambda: "late" in bodies(consumer.received()), "the late message", 30)
            messages = consumer.received()
    assert set(bodies(messages)) == {"early", "late"}
    (late_one,) = [message for message in messages if message["body"] == "late"]
    assert late_one["msgId"] == late["msgId"]
    assert waited_s(late_one, late) >= 9.99
    assert early["offset"] == 0
