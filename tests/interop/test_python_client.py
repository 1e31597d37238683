"""`rocketmq` 0.4.4 from PyPI, the C++ client that rocketmq-client-python wraps: producer and push consumer.

The C++ client has habits of its own on the wire: JSON headers with numbers where Java has strings,
heartbeats with ordinals instead of names, no understanding of binary headers or of answers with numeric
fields.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.interop import external, maven
from tests.interop.child import wait_until
from tests.interop.conftest import give_up, has_route
from tests.interop.driver import Driver, Producer
from tests.interop.external import External
from tests.interop.messages import bodies
from tests.interop.processes import OURS, Cluster

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module", autouse=True)
def _package() -> None:
    try:
        external.cpp_package()
    except maven.Unavailable as error:
        give_up(str(error))


@pytest.fixture
def cpp(tmp_path: Path, cluster: Cluster) -> External:
    """The C++ client at the shared cluster."""
    return external.cpp(tmp_path, cluster.namesrv_addr)


def test_what_it_sends_java_reads(cpp: External, java: Driver, cluster: Cluster, topic: str) -> None:
    """Each way of sending.

    Tags, keys and properties; ids and offsets of the results are those of the messages.
    """
    results = cpp.produce(
        {"topic": topic, "body": "sync 内容", "tags": "T", "keys": "k1", "props": {"colour": "blau"}},
        {"topic": topic, "body": "async", "mode": "async"},
        {"topic": topic, "body": "oneway", "mode": "oneway"},
        {"topic": topic, "body": "orderly", "mode": "orderly", "shard": 1},
        {"topic": topic, "size": 1 << 20},
    )
    assert [result.get("status") for result in results] == ["OK", "OK", None, "OK", "OK"]
    with java.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
        received = consumer.received(5)
    assert len(received) == 5
    by_body: dict[str, Any] = {message.get("body", "big"): message for message in received}
    first = by_body["sync 内容"]
    assert (first["tags"], first["keys"], first["props"]["colour"]) == ("T", "k1", "blau")
    assert first["msgId"] == results[0]["id"]
    assert first["offset"] == results[0]["offset"]
    assert by_body["orderly"]["queue"] == 1
    assert by_body["big"]["size"] == 1 << 20


def test_its_batches(cpp: External, java: Driver, cluster: Cluster, topic: str, target: str) -> None:
    """It marks a batch by batch=1 where Java writes true; the messages come out one by one all the same."""
    if target != OURS:
        pytest.skip("an official broker takes only `true` for true, and stores the whole batch as one message")
    messages = [{"topic": topic, "body": f"batch {n}", "keys": f"b{n}"} for n in range(3)]
    assert [result["status"] for result in cpp.produce({"mode": "batch", "batch": messages})] == ["OK"]
    with java.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
        received = sorted(consumer.received(3), key=lambda message: str(message["body"]))
    assert [{key: message[key] for key in ("topic", "body", "keys")} for message in received] == messages


def test_a_topic_is_made_by_its_first_message(cpp: External, cluster: Cluster, java: Driver) -> None:
    """It asks for TBW102's route like any other client."""
    name = java.fresh("cpp-auto")
    (result,) = cpp.produce({"topic": name, "body": "first"})
    assert result["status"] == "OK"
    wait_until(lambda: has_route(cluster, name), "the route", 10)


def test_orderly_consumer(cpp: External, sender: Producer, topic: str) -> None:
    """It locks its queues at the broker, and each queue's messages come in order."""
    for number in range(20):
        sender.send(topic, f"m{number:02}", select=number % 2)
    with cpp.consume(topic, "cpp-orderly", "*", "orderly") as received:
        sender.send(topic, "end", select=0)
        wait_until(lambda: len(received()) >= 21, "the messages", 60)
        for queue in (0, 1):
            ordered = [m["body"] for m in received() if m["queue"] == queue and m["body"] != "end"]
            assert ordered == [f"m{number:02}" for number in range(queue, 20, 2)]


def test_it_shares_a_group_with_java(
    cpp: External, java: Driver, cluster: Cluster, sender: Producer, topic: str
) -> None:
    """The broker tells either of the other; they divide the queues and each message is read once."""
    with java.push(cluster.namesrv_addr, topic, group="cpp-and-java", where="FIRST_OFFSET") as consumer:
        wait_until(lambda: len(consumer.assigned(topic)) == 2, "the first assignment", 30)
        with cpp.consume(topic, "cpp-and-java") as received:
            wait_until(lambda: len(consumer.assigned(topic)) == 1, "the rebalance", 5)
            sender.send_many(topic, "m", 40)
            wait_until(lambda: len(consumer.received()) + len(received()) >= 40, "the messages", 40)
            assert set(bodies(consumer.received() + received())) == {f"m{n}" for n in range(40)}
            assert received()
