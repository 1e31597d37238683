"""The Go client, rocketmq-client-go v2.

Producer and push consumer. It reads broker ids out of the route by itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import external, maven
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, has_route
from tests.interop.driver import Driver, Producer
from tests.interop.external import External
from tests.interop.messages import bodies
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop


@pytest.fixture
def go(tmp_path: Path, cluster: Cluster) -> External:
    """The Go client at the shared cluster; a matter of choice, so never required."""
    try:
        return external.go(tmp_path, cluster.namesrv_addr)
    except maven.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def java(drivers: MakeDriver) -> Driver:
    """A Java client for the other end."""
    return drivers("4.9.8")


@pytest.fixture
def sender(java: Driver, cluster: Cluster) -> Iterator[Producer]:
    """A Java producer."""
    with java.producer(cluster.namesrv_addr) as producer:
        yield producer


@pytest.fixture
def topic(sender: Producer, cluster: Cluster) -> str:
    """A topic with two queues."""
    name = sender.driver.fresh("go")
    sender.create_topic(name, 2)
    wait_until(lambda: has_route(cluster, name), "the route", 10)
    return name


def test_what_it_sends_java_reads(go: External, java: Driver, cluster: Cluster, topic: str) -> None:
    """Synchronous, asynchronous, one-way and batch sends, a compressed body, tags, keys and properties."""
    results = go.produce(
        {"topic": topic, "body": "sync 内容", "tags": "T", "keys": "k1", "props": {"colour": "blau"}},
        {"topic": topic, "body": "async", "mode": "async"},
        {"topic": topic, "body": "oneway", "mode": "oneway"},
        {"topic": topic, "size": 1 << 20},
        {"mode": "batch", "batch": [{"topic": topic, "body": f"batch {n}", "keys": f"b{n}"} for n in range(3)]},
    )
    assert [result.get("status") for result in results] == [0, 0, None, 0, 0]
    with java.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
        received = consumer.received(7)
    assert len(received) == 7
    by_body = {message.get("body", "big"): message for message in received}
    first = by_body["sync 内容"]
    assert (first["tags"], first["keys"], first["props"]["colour"]) == ("T", "k1", "blau")
    for field, named in (("msgId", "id"), ("offsetMsgId", "offsetMsgId"), ("queue", "queue"), ("offset", "offset")):
        assert first[field] == results[0][named], field
    assert by_body["big"]["size"] == 1 << 20
    assert [by_body[f"batch {n}"]["keys"].strip() for n in range(3)] == ["b0", "b1", "b2"]


def test_what_java_sends_it_reads(go: External, sender: Producer, topic: str) -> None:
    """A push consumer gets what is sent while it runs, filtered by tag, compressed bodies too."""
    with go.consume(topic, f"group-{topic}", "A || B") as received:
        sender.send(topic, "内容", tags="A", keys="k", props={"colour": "blau"})
        sender.send(topic, "not for it", tags="C")
        sender.send(topic, size=100_000, seed=7, tags="B")
        sender.send_many(topic, "m", 20, tags="B")
        wait_until(lambda: len(received()) >= 22, "the messages", 60)
        assert "not for it" not in bodies(received())
        assert 100_000 in {message["size"] for message in received()}
        (first,) = [message for message in received() if message["body"] == "内容"]
        assert (first["tags"], first["keys"].strip(), first["colour"]) == ("A", "k", "blau")


def test_offsets_survive_the_consumer(go: External, sender: Producer, topic: str) -> None:
    """A group that comes back goes on where it stopped."""
    group = f"group-{topic}"
    with go.consume(topic, group) as received:
        sender.send_many(topic, "before", 10)
        wait_until(lambda: len(received()) >= 10, "the messages", 60)
    with go.consume(topic, group) as received:
        sender.send_many(topic, "after", 10)
        wait_until(lambda: len(received()) >= 10, "the messages", 60)
        assert bodies(received()) == sorted(f"after{n}" for n in range(10))
