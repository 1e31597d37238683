"""Official Java clients, each version in both header serializations, against servers started as a user
starts them.
"""

import time
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeTopic
from tests.interop.driver import ClientError, Driver, Json, Producer, PullConsumer
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop

FIRST = {"where": "FIRST_OFFSET"}


def bodies(messages: Iterable[Json]) -> list[str]:
    """The bodies in an order that does not depend on queues."""
    return sorted(message["body"] for message in messages)


def numbered(prefix: str, count: int) -> list[str]:
    """What send_many sends."""
    return sorted(f"{prefix}{i}" for i in range(count))


def read_queue(puller: PullConsumer, queue: Json, offset: int = 0) -> list[Json]:
    """All messages of a queue from that offset on."""
    puller.queues(queue["topic"])
    found: list[Json] = []
    while (result := puller.pull(queue, offset))["status"] == "FOUND":
        found += result["messages"]
        offset = result["next"]
    return found


# ---- sending


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_send_result_says_where_the_message_is(
    producer: Producer, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic, mode: str
) -> None:
    """The result's queue, offset and offset id are those under which the message is then read."""
    topic = make_topic()
    result = producer.send(topic, "hello", mode=mode, keys="k")
    assert result["status"] == "SEND_OK"
    (message,) = read_queue(puller, result)
    for field in ("topic", "broker", "queue", "offset", "msgId", "offsetMsgId"):
        assert message[field] == result[field], field
    address = cluster.brokers[0].address
    assert message["storeHost"] == f"/{address}"
    ip, _, port = address.partition(":")
    host = "".join(f"{int(part):02X}" for part in ip.split("."))
    assert result["offsetMsgId"] == f"{host}{int(port):08X}{message['commitLogOffset']:016X}"
    assert result["regionId"] == "DefaultRegion"
    assert result["traceOn"] is True


def test_oneway(producer: Producer, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """A one-way message arrives although nothing answers it."""
    topic = make_topic(1)
    (queue,) = producer.queues(topic)
    producer.send_many(topic, "oneway", 20, mode="oneway")
    wait_until(lambda: producer.offset("maxOffset", queue) == 20, "the one-way messages", 5)
    assert bodies(read_queue(puller, queue)) == numbered("oneway", 20)


def test_everything_a_message_carries_arrives(
    producer: Producer, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Body, tag, keys, flag and properties, ASCII or not, come out as they went in.

    The broker adds only its own.
    """
    topic = make_topic(1)
    props = {"colour": "blue", "größe": "7 内", "emoji": "😀"}
    before = int(time.time() * 1000)
    result = producer.send(topic, "body 内容 😀\0\1\2", tags="Tag-ä", keys="key-1 ключ", flag=-7, props=props)
    (message,) = read_queue(puller, result)
    assert message["body"] == "body 内容 😀\0\1\2"
    assert message["flag"] == -7
    assert message["tags"] == "Tag-ä"
    assert message["keys"] == "key-1 ключ"
    own = {"KEYS", "TAGS", "UNIQ_KEY", "CLUSTER", "MIN_OFFSET", "MAX_OFFSET"}  # the last two by the client
    optional = {"WAIT", "MSG_REGION", "TRACE_ON"}  # WAIT is kept by 4.8.0 brokers, the others come with hooks
    assert {key: message["props"].get(key) for key in props} == props
    assert set(message["props"]) - optional == own | set(props)
    assert message["props"]["CLUSTER"] == "DefaultCluster"
    assert message["bornHost"].startswith("/127.0.0.1:")
    assert before <= message["bornTimestamp"] <= message["storeTimestamp"] <= time.time() * 1000
    assert message["bodyCRC"] == zlib.crc32(message["body"].encode()) & 0x7FFFFFFF
    assert message["reconsumeTimes"] == 0
    assert message["preparedTransactionOffset"] == 0


def test_one_mebibyte_body(producer: Producer, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """The client compresses above 4 KiB; the broker passes on what it got and says so in sysFlag."""
    topic = make_topic(1)
    result = producer.send(topic, size=1 << 20, seed=42)
    (message,) = read_queue(puller, result)
    assert message["size"] == 1 << 20
    assert message["sysFlag"] & 0x301  # 5.x clients clear the lowest bit again and leave the type of compression
    assert message["storeSize"] < 1 << 20
    sent = producer.send(topic, size=1 << 20, seed=42)
    again = read_queue(puller, sent, sent["offset"])
    assert [m["crc"] for m in again] == [message["crc"]]


def test_uncompressed_bodies_up_to_the_limit(
    client: Driver, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """A body of nearly 4 MiB goes through as it is; one above the broker's limit is refused as illegal."""
    topic = make_topic(1)
    limits: Json = {"compressOver": 1 << 30, "maxSize": 1 << 23}
    with client.producer(cluster.namesrv_addr, retries=0, timeout=10_000, **limits) as producer:
        result = producer.send(topic, size=(4 << 20) - 1024, seed=1)
        (message,) = read_queue(puller, result)
        assert message["size"] == (4 << 20) - 1024
        assert not message["sysFlag"] & 1
        with pytest.raises(ClientError, match="CODE: 13"):
            producer.send(topic, size=(4 << 20) + 1, seed=1)


def test_batch(producer: Producer, puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """A batch fills consecutive offsets of one queue and each message keeps its own tag, keys and
    properties.
    """
    topic = make_topic()
    messages = [{"body": f"b{i}", "tags": f"T{i}", "keys": f"k{i}", "props": {"n": f"内{i}"}} for i in range(10)]
    result = producer.send_batch(topic, messages)
    assert result["status"] == "SEND_OK"
    assert len(result["msgId"].split(",")) == 10
    assert len(result["offsetMsgId"].split(",")) == 10
    found = read_queue(puller, result)
    assert [m["offset"] for m in found] == list(range(result["offset"], result["offset"] + 10))
    assert [
        {"body": m["body"], "tags": m["tags"], "keys": m["keys"], "props": {"n": m["props"]["n"]}} for m in found
    ] == messages
    assert [m["offsetMsgId"] for m in found] == result["offsetMsgId"].split(",")
    if not producer.driver.version.startswith("5."):  # 5.x names other unique ids in the result than it sent
        assert [m["msgId"] for m in found] == result["msgId"].split(",")


def test_selector_and_explicit_queue(producer: Producer, make_topic: MakeTopic) -> None:
    """A message goes to the queue that the sender picked."""
    topic = make_topic()
    queues = producer.queues(topic)
    assert len(queues) == 4
    for mode in ("sync", "async"):
        for number in range(4):
            chosen = producer.send(topic, "by selector", mode=mode, select=number)
            direct = producer.send(topic, "by queue", mode=mode, to=queues[number])
            assert [chosen["queue"], direct["queue"]] == [queues[number]["queue"]] * 2
    assert [producer.offset("maxOffset", queue) for queue in queues] == [4] * 4


def test_a_topic_is_made_by_its_first_message(client: Driver, cluster: Cluster) -> None:
    """With autoCreateTopicEnable the client's queue count counts, up to the default topic's 8."""
    for wanted, got in ((4, 4), (16, 8)):
        with client.producer(cluster.namesrv_addr, queues=wanted) as producer:
            topic = client.fresh("auto")
            assert producer.send(topic, "first")["status"] == "SEND_OK"
            with client.puller(cluster.namesrv_addr) as puller:

                def count(topic: str = topic, ask: Any = puller.queues) -> int:
                    try:
                        return len(ask(topic))
                    except ClientError:  # the route is not at the name server yet
                        return 0

                wait_until(lambda: count() > 0, f"the queues of {topic}", 10)
                assert count() == got


def test_fast_channel(client: Driver, cluster: Cluster, make_topic: MakeTopic) -> None:
    """With the VIP channel on, a client sends to listenPort - 2."""
    topic = make_topic(1)
    with client.producer(cluster.namesrv_addr, vip=True) as producer:
        assert producer.send(topic, "by the fast lane")["status"] == "SEND_OK"


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
    topic = make_topic()
    options: Json = {"group": client.fresh("group"), **FIRST}
    producer.send_many(topic, "before", 20)
    with client.push(cluster.namesrv_addr, topic, **options) as consumer:
        assert bodies(consumer.received(20)) == numbered("before", 20)
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


# ---- questions


def test_offsets_and_times(producer: Producer, make_topic: MakeTopic) -> None:
    """Minimum, maximum, earliest store time, and the first offset at or after a time."""
    topic = make_topic(1)
    (queue,) = producer.queues(topic)
    assert (producer.offset("minOffset", queue), producer.offset("maxOffset", queue)) == (0, 0)
    stored = []
    for number in range(5):
        result = producer.send(topic, f"m{number}")
        stored.append(producer.view(topic, result["offsetMsgId"])["storeTimestamp"])
        wait_until(lambda last=stored[-1]: time.time() * 1000 > last + 2, "the clock", 1, 0.001)  # type: ignore[misc]
    assert (producer.offset("minOffset", queue), producer.offset("maxOffset", queue)) == (0, 5)
    assert producer.offset("earliest", queue) == stored[0]
    assert [producer.offset("searchOffset", queue, timestamp=at) for at in stored] == [0, 1, 2, 3, 4]
    assert producer.offset("searchOffset", queue, timestamp=1) == 0


def test_view_message_by_offset_id(producer: Producer, cluster: Cluster, make_topic: MakeTopic) -> None:
    """VIEW_MESSAGE_BY_ID gives the whole message; an id that leads nowhere is an error, not a hang."""
    topic = make_topic(1)
    result = producer.send(topic, "find me", keys="k", tags="T")
    message = producer.view(topic, result["offsetMsgId"])
    assert (message["body"], message["keys"], message["tags"]) == ("find me", "k", "T")
    assert (message["queue"], message["offset"]) == (result["queue"], result["offset"])
    nowhere = result["offsetMsgId"][:16] + f"{1 << 40:016X}"
    assert cluster.brokers[0].call(33, {"offset": 1 << 40}).code == 1
    with pytest.raises(ClientError):
        producer.view(topic, nowhere)


def test_topics_in_the_route_have_the_queues_that_were_asked_for(
    puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """createTopic makes exactly that many queues for writing and reading."""
    topic = make_topic(7)
    route = raw.call(cluster.namesrv_addr, raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).body
    assert b'"readQueueNums":7' in route
    assert b'"writeQueueNums":7' in route
    assert [queue["queue"] for queue in puller.queues(topic)] == list(range(7))
