"""Transactions with official Java clients: decided at once, on demand, by another producer, under another make."""

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import ASKS_SOON, CLIENTS, MakeDriver, has_route
from tests.interop.driver import Json, Producer
from tests.interop.processes import OURS, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.beside]
each_version = pytest.mark.parametrize("version", CLIENTS)

FIRST: Json = {"where": "FIRST_OFFSET"}
OTHER = "4.9.4"


def make_topic(producer: Producer, cluster: Cluster) -> str:
    topic = producer.driver.fresh("tx")
    producer.create_topic(topic, 1)
    wait_until(lambda: has_route(cluster, topic), f"the route of {topic}", 10)
    return topic


def transaction(producer: Producer, topic: str, body: str, local: str, check: str = "UNKNOW") -> Json:
    """Sends a message whose local transaction ends as `local`, and as `check` when the broker asks."""
    message = {"body": body, "keys": "key", "tags": "Tag", "props": {"local": local, "check": check, "n": "内"}}
    result: Json = producer.do("transaction", topic=topic, message=message)
    assert result["status"] == "SEND_OK"
    return result


@each_version
def test_decided_at_once_and_when_asked(drivers: MakeDriver, asking: Cluster, version: str) -> None:
    """Consumers see what was committed, at once or after the broker's question, and nothing else."""
    client = drivers(version)
    with client.producer(asking.namesrv_addr, transactional=True) as producer:
        topic = make_topic(producer, asking)
        with client.push(asking.namesrv_addr, topic, **FIRST) as consumer:
            sent = transaction(producer, topic, "commit", "COMMIT_MESSAGE")
            transaction(producer, topic, "rollback", "ROLLBACK_MESSAGE")
            transaction(producer, topic, "later commit", "UNKNOW", "COMMIT_MESSAGE")
            transaction(producer, topic, "later rollback", "UNKNOW", "ROLLBACK_MESSAGE")
            transaction(producer, topic, "last", "COMMIT_MESSAGE")
            messages = sorted(consumer.received(3), key=lambda message: int(message["offset"]))  # it has many threads
            assert len(consumer.received(4, timeout=4.0)) == 3
    assert [message["body"] for message in messages] == ["commit", "last", "later commit"]
    first = messages[0]
    assert (first["topic"], first["queue"], first["msgId"]) == (topic, sent["queue"], sent["msgId"])
    assert (first["tags"], first["keys"], first["props"]["n"]) == ("Tag", "key", "内")
    assert first["sysFlag"] & 0xC == 8
    assert first["preparedTransactionOffset"] < first["commitLogOffset"]


@each_version
def test_another_producer_of_the_group_is_asked(drivers: MakeDriver, asking: Cluster, version: str) -> None:
    """The one that sent it is gone."""
    client = drivers(version)
    group = client.fresh("group")
    with client.producer(asking.namesrv_addr, group=group, transactional=True) as producer:
        topic = make_topic(producer, asking)
        transaction(producer, topic, "orphan", "UNKNOW", "COMMIT_MESSAGE")
    with (
        client.producer(asking.namesrv_addr, group=group, transactional=True, heartbeat=1000) as other,
        client.push(asking.namesrv_addr, topic, **FIRST) as consumer,
    ):
        transaction(other, topic, "rollback", "ROLLBACK_MESSAGE")  # 5.x beats only at brokers to which it has sent
        (message,) = consumer.received(1)
    assert message["body"] == "orphan"


@each_version
def test_given_up_after_the_last_check(drivers: MakeDriver, asking: Cluster, version: str) -> None:
    """What its producer never knows about ends in a topic of its own, for whoever looks there."""
    client = drivers(version)
    given_up = "TRANS_CHECK_MAX_TIME_TOPIC"
    with client.producer(asking.namesrv_addr, transactional=True) as producer:
        topic = make_topic(producer, asking)
        body = client.fresh("hopeless")
        transaction(producer, topic, body, "UNKNOW")
        with client.puller(asking.namesrv_addr) as puller:
            wait_until(lambda: has_route(asking, given_up), f"the route of {given_up}", 20)
            (queue,) = puller.queues(given_up)

            def found() -> list[Json]:
                result = puller.pull(queue, 0)
                return [message for message in result.get("messages", []) if message["body"] == body]

            wait_until(lambda: len(found()) == 1, "the message that was given up", 20)
            (message,) = found()
    assert message["props"]["TRANSACTION_CHECK_TIMES"] == "5"
    assert message["props"]["REAL_TOPIC"] == topic


@each_version
def test_a_consumer_fails_on_a_committed_message(drivers: MakeDriver, asking: Cluster, version: str) -> None:
    """It comes again, and is not taken for a half message."""
    client = drivers(version)
    with client.producer(asking.namesrv_addr, transactional=True) as producer:
        topic = make_topic(producer, asking)
        with client.push(asking.namesrv_addr, topic, failures=1, delayLevel=1, **FIRST) as consumer:
            transaction(producer, topic, "hard", "COMMIT_MESSAGE")
            messages = consumer.received(2, timeout=30.0)
    assert [(message["body"], message["reconsumeTimes"]) for message in messages] == [("hard", 0), ("hard", 1)]


@pytest.mark.parametrize(("first", "second"), [(OURS, OURS), (OURS, OTHER), (OTHER, OURS)])
def test_undecided_ones_survive_the_broker(drivers: MakeDriver, target: str, first: str, second: str) -> None:
    """What was undecided when the broker ended is asked about by the next one, and what was decided is not."""
    if target != OURS:
        pytest.skip("hands stores from and to ours")
    client = drivers(CLIENTS[1])
    with Cluster(first) as own:
        own.add_namesrv(OURS)
        broker = own.add_broker(first, transactionCheckInterval=600_000)
        with client.producer(own.namesrv_addr, transactional=True, heartbeat=1000) as producer:
            topic = make_topic(producer, own)
            transaction(producer, topic, "unknown", "UNKNOW", "COMMIT_MESSAGE")
            transaction(producer, topic, "rollback", "ROLLBACK_MESSAGE", "COMMIT_MESSAGE")
            transaction(producer, topic, "commit", "COMMIT_MESSAGE", "COMMIT_MESSAGE")
            with client.push(own.namesrv_addr, topic, **FIRST) as consumer:
                assert [message["body"] for message in consumer.received(1)] == ["commit"]
            broker.restart(second, timeout=60, **ASKS_SOON)
            own.wait_registered(broker)
            with client.push(own.namesrv_addr, topic, **FIRST) as consumer:
                messages = consumer.received(2, timeout=30)
                assert len(consumer.received(3, timeout=4.0)) == 2
    assert sorted(message["body"] for message in messages) == ["commit", "unknown"]
