"""The Go client, rocketmq-client-go v2, as a producer. It reads broker ids out of the route by itself."""

from pathlib import Path

import pytest

from tests.interop import external, maven
from tests.interop.driver import Driver
from tests.interop.external import External
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop


@pytest.fixture
def go(tmp_path: Path, cluster: Cluster) -> External:
    """The Go client at the shared cluster; a matter of choice, so never required."""
    try:
        return external.go(tmp_path, cluster.namesrv_addr)
    except maven.Unavailable as error:
        pytest.skip(str(error))


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
