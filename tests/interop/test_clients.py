"""Official Java clients, each version in both header serializations, against servers started as a user
starts them.
"""

import time
import zlib
from typing import Any

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeTopic
from tests.interop.driver import ClientError, Driver, Json, Producer, PullConsumer
from tests.interop.messages import bodies, found_by_key, numbered, read_queue
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop

FIRST = {"where": "FIRST_OFFSET"}


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


def test_query_by_key(producer: Producer, make_topic: MakeTopic) -> None:
    """Each of a message's keys finds it, within the time range; so does its unique id."""
    topic = make_topic(2)
    before = int(time.time() * 1000)
    results = [producer.send(topic, f"m{number}", keys=f"same only-{number}") for number in range(3)]
    wait_until(lambda: len(found_by_key(producer, topic, "same")) == 3, "the index", 10)
    assert bodies(producer.query(topic, "same")) == ["m0", "m1", "m2"]
    assert bodies(producer.query(topic, "only-1")) == ["m1"]
    assert len(producer.query(topic, "same", max=2)) == 2
    assert producer.view(topic, results[2]["msgId"])["body"] == "m2"
    with pytest.raises(ClientError):
        producer.query(topic, "same", begin=before - 10_000, end=before - 5_000)
    with pytest.raises(ClientError):
        producer.query(topic, "nobody")


def test_topics_in_the_route_have_the_queues_that_were_asked_for(
    puller: PullConsumer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """createTopic makes exactly that many queues for writing and reading."""
    topic = make_topic(7)
    route = raw.call(cluster.namesrv_addr, raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).body
    assert b'"readQueueNums":7' in route
    assert b'"writeQueueNums":7' in route
    assert [queue["queue"] for queue in puller.queues(topic)] == list(range(7))
