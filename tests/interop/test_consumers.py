"""Official Java clients, each version in both header serializations, against servers started as a user
starts them.
"""

from collections import Counter

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeTopic
from tests.interop.driver import Driver, Json, Producer, PullConsumer
from tests.interop.messages import bodies, numbered
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop

FIRST = {"where": "FIRST_OFFSET"}


# ---- push consumers


def test_two_consumers_of_a_group_share_the_messages(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Clustering: each message reaches one of the two, and both have work."""
    topic = make_topic()
    group = client.fresh("group")
    with (
        client.push(cluster.namesrv_addr, topic, group=group, **FIRST) as one,
        client.push(cluster.namesrv_addr, topic, group=group, **FIRST) as two,
    ):
        wait_until(lambda: len(one.assigned(topic)) == len(two.assigned(topic)) == 2, "the rebalance", 5)
        producer.send_many(topic, "m", 100)
        wait_until(lambda: len(one.received()) + len(two.received()) >= 100, "the messages", 10)
        assert bodies(one.received() + two.received()) == numbered("m", 100)
        assert min(len(one.received()), len(two.received())) > 0


def test_broadcasting_consumers_each_get_everything(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Broadcasting: the group's offsets are the client's own, each member sees all."""
    topic = make_topic()
    group = client.fresh("group")
    options = {"broadcast": True, **FIRST}
    with (
        client.push(cluster.namesrv_addr, topic, group=group, **options) as one,
        client.push(cluster.namesrv_addr, topic, group=group, **options) as two,
    ):
        producer.send_many(topic, "m", 40)
        assert bodies(one.received(40)) == numbered("m", 40)
        assert bodies(two.received(40)) == numbered("m", 40)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*", ["A", "Aa", "B", "BB", "none"]),
        ("A", ["A"]),
        ("A || B", ["A", "B"]),
        ("Aa", ["Aa"]),  # "Aa" and "BB" have the same hash: the broker lets both pass, the client does not
        ("C", []),
    ],
)
def test_tag_expressions(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic, expression: str, expected: list[str]
) -> None:
    """A subscriber gets the messages of its tags and no other."""
    topic = make_topic(1)
    for tag in ("A", "Aa", "B", "BB"):
        producer.send(topic, tag, tags=tag)
    producer.send(topic, "none")
    last = producer.send(topic, "last", tags=expression.split(" ")[0] if expression != "*" else "A")
    with client.push(cluster.namesrv_addr, topic, tags=expression, **FIRST) as consumer:
        received = consumer.received(len(expected) + 1)
        assert bodies(received) == sorted([*expected, "last"])
        assert max(message["offset"] for message in received) == last["offset"]


def test_rebalance_within_five_seconds(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """A second member gets its half, and gives it back by leaving, each within 5 s and without a message
    lost.
    """
    topic = make_topic()
    group = client.fresh("group")
    options = {"group": group, **FIRST}
    with client.push(cluster.namesrv_addr, topic, **options) as stays:
        wait_until(lambda: len(stays.assigned(topic)) == 4, "the first assignment", 30)
        with client.push(cluster.namesrv_addr, topic, **options) as leaves:
            wait_until(lambda: len(stays.assigned(topic)) == len(leaves.assigned(topic)) == 2, "the rebalance", 5)
            held = [queue["queue"] for consumer in (stays, leaves) for queue in consumer.assigned(topic)]
            assert sorted(held) == [0, 1, 2, 3]
            producer.send_many(topic, "two", 20)
            wait_until(lambda: len(stays.received()) + len(leaves.received()) >= 20, "the messages", 10)
            seen = leaves.received()
        wait_until(lambda: len(stays.assigned(topic)) == 4, "the return", 5)
        producer.send_many(topic, "one", 20)
        wait_until(lambda: len(stays.received()) + len(seen) >= 40, "the messages", 10)
        assert set(bodies(stays.received() + seen)) == {*numbered("two", 20), *numbered("one", 20)}


def test_the_group_forgets_who_leaves(client: Driver, cluster: Cluster, make_topic: MakeTopic) -> None:
    """GET_CONSUMER_LIST_BY_GROUP names the members, and nobody after the last has gone."""
    topic = make_topic()
    group = client.fresh("group")

    def members() -> bytes:
        return cluster.brokers[0].call(38, {"consumerGroup": group}).body

    with client.push(cluster.namesrv_addr, topic, group=group) as consumer:
        wait_until(lambda: consumer.client_id.encode() in members(), "the member", 5)
    wait_until(lambda: consumer.client_id.encode() not in members(), "its leaving", 5)


def test_orderly_consumer(client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """Queues are locked at the broker, and each queue's messages come one after the other."""
    topic = make_topic(2)
    for number in range(30):
        producer.send(topic, f"m{number:02}", select=number % 2)
    with client.push(cluster.namesrv_addr, topic, orderly=True, **FIRST) as consumer:
        received = consumer.received(30)
        for queue in (0, 1):
            ordered = [message["body"] for message in received if message["queue"] == queue]
            assert ordered == [f"m{number:02}" for number in range(queue, 30, 2)]


def test_offsets_survive_the_consumer(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """A group that comes back goes on where it stopped."""
    topic = make_topic(4)
    group = client.fresh("group")
    options: Json = {"group": group, **FIRST}
    producer.send_many(topic, "before", 20)
    with client.push(cluster.namesrv_addr, topic, **options) as consumer:
        assert bodies(consumer.received(20)) == numbered("before", 20)
        wait_until(lambda: raw.committed(cluster.brokers[0].address, group, topic, 4) == 20, "the commit", 20)
    producer.send_many(topic, "after", 20)
    with client.push(cluster.namesrv_addr, topic, **options) as consumer:
        assert bodies(consumer.received(20)) == numbered("after", 20)


def test_a_parked_pull_is_answered_at_once(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """From send to listener in far less than the 5 s of the official sweep, message after message."""
    topic = make_topic(1)
    with client.push(cluster.namesrv_addr, topic, **FIRST) as consumer:
        producer.send(topic, "warm up")
        consumer.received(1)
        waits = []
        for number in range(2, 22):
            sent_at = producer.send(topic, f"m{number}")["sentAt"]
            waits.append(consumer.received(number)[-1]["receivedAt"] - sent_at)
    waits.sort()
    assert waits[len(waits) // 2] < 100_000, f"µs: {waits}"
    assert waits[-1] < 1_000_000, f"µs: {waits}"


def test_many_in_flight(client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """A thousand asynchronous sends at once all succeed and all arrive once."""
    topic = make_topic(8)
    results = producer.send_many(topic, "m", 1000, mode="async")
    assert Counter(result["status"] for result in results) == {"SEND_OK": 1000}
    places = {(result["queue"], result["offset"]) for result in results}
    assert len(places) == 1000
    with client.push(cluster.namesrv_addr, topic, **FIRST) as consumer:
        assert bodies(consumer.received(1000)) == numbered("m", 1000)


# ---- pull consumers


def test_lite_pull_consumer(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic, target: str
) -> None:
    """Subscribes, polls, commits; the next of its group goes on from there."""
    if client.version.startswith("5.") and target.startswith("4."):
        pytest.skip("5.x lite pull consumers use LITE_PULL_MESSAGE, which 4.x brokers do not know")
    topic = make_topic()
    options: Json = {"group": client.fresh("group"), "autoCommit": False, **FIRST}
    sent = producer.send_many(topic, "m", 20)
    with client.lite(cluster.namesrv_addr, topic, **options) as consumer:
        assert bodies(consumer.poll(20)) == numbered("m", 20)
        consumer.do("commit")
        ends = {
            queue: max(r["offset"] + 1 for r in sent if r["queue"] == queue) for queue in {r["queue"] for r in sent}
        }
        for queue in producer.queues(topic):
            wait_until(
                lambda queue=queue: consumer.at("committed", queue) == ends.get(queue["queue"], 0),  # type: ignore[misc]
                f"the commit of {queue}",
                5,
            )
    producer.send_many(topic, "n", 20)
    with client.lite(cluster.namesrv_addr, topic, **options) as consumer:
        assert bodies(consumer.poll(20)) == numbered("n", 20)


def test_lite_pull_consumer_with_queues_of_its_own(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic, target: str
) -> None:
    """Assigned instead of subscribed, it seeks wherever it wants."""
    if client.version.startswith("5.") and target.startswith("4."):
        pytest.skip("5.x lite pull consumers use LITE_PULL_MESSAGE, which 4.x brokers do not know")
    topic = make_topic(2)
    queue = producer.queues(topic)[0]
    for number in range(10):
        producer.send(topic, f"m{number}", to=queue)
    with client.lite(cluster.namesrv_addr, topic, assign=[queue], autoCommit=False, **FIRST) as consumer:
        # The client may hand out what a pull brings while it seeks; once it has all, no pull brings anything.
        assert bodies(consumer.poll(10)) == numbered("m", 10)
        consumer.at("seek", queue, offset=7)
        assert bodies(consumer.poll(3)) == ["m7", "m8", "m9"]
        assert consumer.at("offsetForTimestamp", queue, timestamp=1) == 0


def test_pull_consumer(producer: Producer, puller: PullConsumer, make_topic: MakeTopic) -> None:
    """Each pull status in its place, with the offsets that the next pull needs."""
    topic = make_topic(1)
    (queue,) = producer.queues(topic)
    producer.send_many(topic, "m", 10, tags="A")
    puller.queues(topic)
    first = puller.pull(queue, 0, max=4)
    assert (first["status"], first["next"], first["min"], first["max"]) == ("FOUND", 4, 0, 10)
    assert [message["body"] for message in first["messages"]] == ["m0", "m1", "m2", "m3"]
    later = puller.pull(queue, 8, **{"async": True})
    assert [message["body"] for message in later["messages"]] == ["m8", "m9"]
    end = puller.pull(queue, 10)
    assert (end["status"], end["next"]) == ("NO_NEW_MSG", 10)
    other = puller.pull(queue, 0, tags="B")
    assert (other["status"], other["next"]) == ("NO_MATCHED_MSG", 10)
    beyond = puller.pull(queue, 1000)
    assert (beyond["status"], beyond["next"]) == ("OFFSET_ILLEGAL", 10)


def test_blocking_pull_is_woken(
    client: Driver, producer: Producer, puller: PullConsumer, make_topic: MakeTopic
) -> None:
    """A pull that waits at the end of a queue returns with the message that arrives."""
    topic = make_topic(1)
    (queue,) = producer.queues(topic)
    puller.queues(topic)
    waiting = client.begin("pull", name=puller.name, **{**queue, "offset": 0, "block": True})
    puller.pull(queue, 0)  # answered at once: by then the blocking one is on its way too
    sent_at = producer.send(topic, "wake up")["sentAt"]
    result = waiting.result(20)
    assert [message["body"] for message in result["messages"]] == ["wake up"]
    assert result["receivedAt"] - sent_at < 2_000_000


def test_pull_consumer_keeps_its_offset_at_the_broker(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """UPDATE_CONSUMER_OFFSET and QUERY_CONSUMER_OFFSET, seen by the next of the group."""
    topic = make_topic(1)
    (queue,) = producer.queues(topic)
    producer.send_many(topic, "m", 10)
    group = client.fresh("group")
    with client.puller(cluster.namesrv_addr, group=group) as puller:
        puller.queues(topic)
        puller.do("updateOffset", **{**queue, "offset": 6})
        fields = {"consumerGroup": group, "topic": topic, "queueId": 0}
        wait_until(lambda: cluster.brokers[0].call(14, fields).fields.get("offset") == "6", "the offset", 5)
    with client.puller(cluster.namesrv_addr, group=group) as puller:
        puller.queues(topic)
        assert puller.do("fetchOffset", **queue) == 6
