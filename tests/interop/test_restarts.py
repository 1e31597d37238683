"""Stops, kills and starts of the broker and the name server under official Java clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import CLIENTS, MakeDriver, has_route
from tests.interop.driver import ClientError, Json, Producer
from tests.interop.messages import bodies, read_queue
from tests.interop.processes import Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.beside]


@contextmanager
def servers(target: str, **settings: Any) -> Iterator[tuple[Cluster, Broker]]:
    """A name server and a broker that a test may stop."""
    with Cluster(target) as cluster:
        cluster.add_namesrv()
        yield cluster, cluster.add_broker(**settings)


def sends_again(producer: Producer, topic: str) -> bool:
    """Whether a send works, for waiting until the client has found the broker again."""
    try:
        producer.send(topic, "probe")
    except ClientError:
        return False
    return True


@pytest.mark.parametrize("version", CLIENTS)
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_messages_offsets_and_topics_survive_the_broker(
    drivers: MakeDriver, target: str, version: str, kill: bool
) -> None:
    """After a restart the group goes on where it was, and every message is where the send result said.

    What a killed broker had not written to its offset file yet, the group may see again; never less.
    """
    client = drivers(version)
    topic = client.fresh("restart")
    options: Json = {"group": client.fresh("group"), "where": "FIRST_OFFSET"}
    with servers(target) as (own, broker), client.producer(own.namesrv_addr, retries=5) as producer:
        producer.create_topic(topic, 3)
        wait_until(lambda: has_route(own, topic), "the route", 10)
        sent = producer.send_many(topic, "before", 30)
        with client.push(own.namesrv_addr, topic, **options) as consumer:
            assert len(consumer.received(30)) == 30
        broker.restart(kill=kill)
        own.wait_registered(broker)
        wait_until(lambda: has_route(own, topic), "the route", 10)
        wait_until(lambda: sends_again(producer, topic), "the first send", 30, 0.2)
        producer.send_many(topic, "after", 30)
        for queue in (0, 1, 2):
            with client.puller(own.namesrv_addr) as puller:
                seen = [m for m in read_queue(puller, {**sent[0], "queue": queue}) if m["body"] != "probe"]
            expected = [r["msgId"] for r in sent if r["queue"] == queue]
            assert [m["msgId"] for m in seen][: len(expected)] == expected
            assert [m["offset"] for m in seen][: len(expected)] == list(range(len(expected)))
        with client.push(own.namesrv_addr, topic, **options) as consumer:
            wanted = sorted(f"after{n}" for n in range(30))
            wait_until(lambda: set(wanted) <= set(bodies(consumer.received())), "the new messages", 45)
            if not kill:
                assert [body for body in bodies(consumer.received()) if body != "probe"] == wanted


@pytest.mark.parametrize("version", CLIENTS[1:])
def test_a_running_consumer_gets_over_the_restart(drivers: MakeDriver, target: str, version: str) -> None:
    """A consumer that stays up finds the broker again and misses nothing.

    A 4.x consumer takes its 30 s for that: it waits for the pull that the stopped broker will not answer.
    """
    client = drivers(version)
    topic = client.fresh("restart")
    with servers(target) as (own, broker), client.producer(own.namesrv_addr, retries=5) as producer:
        producer.create_topic(topic, 2)
        wait_until(lambda: has_route(own, topic), "the route", 10)
        with client.push(own.namesrv_addr, topic, where="FIRST_OFFSET", heartbeat=1000) as consumer:
            producer.send_many(topic, "before", 10)
            assert len(consumer.received(10)) == 10
            broker.restart()
            wait_until(lambda: sends_again(producer, topic), "the first send", 30, 0.2)
            producer.send_many(topic, "after", 10)
            wanted = {f"{when}{n}" for when in ("before", "after") for n in range(10)}
            wait_until(lambda: wanted <= set(bodies(consumer.received())), "all messages", 45)


def test_the_broker_finds_a_restarted_name_server(target: str, drivers: MakeDriver) -> None:
    """A name server that lost everything has the broker and its topics again at its next registration."""
    client = drivers(CLIENTS[0])
    period_ms = 10_000  # the shortest that an official broker takes
    with servers(target, registerNameServerPeriod=period_ms) as (cluster, broker):
        topic = client.fresh("restart")
        with client.producer(cluster.namesrv_addr) as producer:
            producer.create_topic(topic, 2)
            wait_until(lambda: has_route(cluster, topic), "the route", 10)
            cluster.namesrvs[0].restart(kill=True)
            cluster.wait_registered(broker)
            wait_until(lambda: has_route(cluster, topic), "the route", 25)
            assert producer.send(topic, "again")["status"] == "SEND_OK"
