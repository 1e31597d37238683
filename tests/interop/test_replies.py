"""Request-reply with official Java clients: a producer's question, a consumer's answer, through the broker."""

import concurrent.futures

import pytest

from tests.interop.conftest import MakeTopic, each_client_once
from tests.interop.driver import ClientError, Driver, Producer
from tests.interop.processes import Cluster

pytestmark = [pytest.mark.interop, each_client_once]


def respond(client: Driver, cluster: Cluster, topic: str) -> str:
    """Starts a consumer that answers in capitals; returns its name."""
    name = client.fresh("responder")
    client.do("responder", name=name, group=name, namesrv=cluster.namesrv_addr, topic=topic)
    return name


def test_a_question_gets_its_answer(
    client: Driver, producer: Producer, cluster: Cluster, make_topic: MakeTopic
) -> None:
    """Each of many at once gets its own."""
    topic = make_topic()
    name = respond(client, cluster, topic)
    try:
        first = producer.do("request", topic=topic, message={"body": "first"}, timeout=30_000)
        assert first["body"] == "FIRST"
        assert first["props"]["MSG_TYPE"] == "reply"
        assert {"CORRELATION_ID", "PUSH_REPLY_TIME"} <= first["props"].keys()

        def ask(number: int) -> str:
            reply = producer.do("request", topic=topic, message={"body": f"question {number}"}, timeout=10_000)
            body: str = reply["body"]
            return body

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert list(threads.map(ask, range(20))) == [f"QUESTION {number}" for number in range(20)]
    finally:
        client.do("shutdown", name=name)


def test_nobody_answers(producer: Producer, make_topic: MakeTopic) -> None:
    """The question fails when its time is over."""
    topic = make_topic()
    with pytest.raises(ClientError, match=r"(?i)timeout"):
        producer.do("request", topic=topic, message={"body": "hello?"}, timeout=500)
