"""Replication between brokers of every make: the same bytes, the same answers, and what happens when one of them dies.

A pair is (master, slave). Commitlogs are compared as files; consume queues and the key index by what pulls
and queries answer, because makes keep them on disk at different times.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import Site
from tests.interop.driver import ClientError, Json, Producer
from tests.interop.processes import OURS, Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.slow]

UPDATE_BROKER_CONFIG: Final = 25
PULL_MESSAGE: Final = 11
QUERY_MESSAGE: Final = 12
GET_ALL_TOPIC_CONFIG: Final = 21
GET_ALL_CONSUMER_OFFSET: Final = 43
SUSPEND: Final = 2
SUBSCRIPTION_IN_REQUEST: Final = 4
DELETE_TOPIC_IN_BROKER: Final = 215
TOPIC_NOT_EXIST: Final = 17
FOUND: Final = 0
SYSTEM_BUSY: Final = 2

FILE_SIZE: Final = 1 << 20
OFFICIAL: Final = ("5.3.3", "4.9.4", "4.8.0")  # those that take longest are begun first
PAIRS: Final = [
    *((OURS, official) for official in OFFICIAL),
    *((official, OURS) for official in OFFICIAL),
    (OURS, OURS),
]


def add_master(cluster: Cluster, kind: str, role: str = "SYNC_MASTER", **settings: Any) -> Broker:
    # inSyncReplicas: without it a 5.x SYNC_MASTER does not wait for anybody; the others take 2 anyway. The
    # times are those of a wait for the slave in 4.9 and later, and in 4.8; the client gives up after 3 s.
    times = {"slaveTimeout": 2000, "syncFlushTimeout": 2000}
    common = {"mappedFileSizeCommitLog": FILE_SIZE, "inSyncReplicas": 2, **times}
    return cluster.add_broker(kind, role=role, **{**common, **settings})


def add_slave(cluster: Cluster, kind: str, **settings: Any) -> Broker:
    # A 5.x slave answers pulls only with slaveReadEnable.
    settings = {"slaveReadEnable": "true", **settings}
    return cluster.add_broker(kind, broker_id=1, role="SLAVE", mappedFileSizeCommitLog=FILE_SIZE, **settings)


def new_topic(producer: Producer, cluster: Cluster) -> str:
    topic = producer.driver.fresh("topic")
    producer.create_topic(topic, 2)
    namesrv = cluster.namesrvs[0]
    wait_until(lambda: namesrv.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).code == 0, f"route of {topic}", 10)
    return topic


def commitlog(broker: Broker) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (broker.store / "commitlog").iterdir() if path.name.isdigit()}


def is_copy(slave: Broker, master: Broker) -> bool:
    """Whether both have the same files; a file that is still empty need not be there."""
    theirs, ours = commitlog(slave), commitlog(master)
    return all(
        theirs.get(name, b"") == ours.get(name, b"") for name in theirs.keys() | ours.keys() if used(name, ours, theirs)
    )


def filled(broker: Broker) -> dict[str, bytes]:
    """The broker's files but those that were only made ahead."""
    log = commitlog(broker)
    return {name: data for name, data in log.items() if used(name, log)}


def used(name: str, *logs: dict[str, bytes]) -> bool:
    return any(log.get(name, b"").strip(b"\0") for log in logs)


def wait_copied(slave: Broker, master: Broker, timeout: float = 30) -> None:
    wait_until(lambda: is_copy(slave, master), f"the log of {master.kind} at its slave {slave.kind}", timeout)


def pulled(broker: Broker, topic: str, queue: int) -> bytes:
    """All records of a queue as this very broker answers them."""
    records = b""
    offset = 0
    while True:
        answer = broker.call(PULL_MESSAGE, pull_fields(topic, queue, offset))
        if answer.code != FOUND:
            return records
        records += answer.body
        offset = int(answer.fields["nextBeginOffset"])


def pull_fields(topic: str, queue: int, offset: int, *, suspend_ms: int = 0) -> Json:
    flags = SUBSCRIPTION_IN_REQUEST | (SUSPEND if suspend_ms else 0)
    return {
        **{"consumerGroup": "ha-check", "topic": topic, "queueId": queue, "queueOffset": offset, "maxMsgNums": 32},
        **{"sysFlag": flags, "commitOffset": 0, "suspendTimeoutMillis": suspend_ms},
        **{"subscription": "*", "subVersion": 0, "expressionType": "TAG"},
    }


def found_by_key(broker: Broker, topic: str, key: str) -> bytes:
    fields = {"topic": topic, "key": key, "maxNum": 64, "beginTimestamp": 0, "endTimestamp": 1 << 60}
    return b"".join(sorted(split(broker.call(QUERY_MESSAGE, fields).body)))


def split(records: bytes) -> Iterator[bytes]:
    """The records of an answer."""
    while records:
        size = int.from_bytes(records[:4], "big")
        yield records[:size]
        records = records[size:]


def wait_same_answers(slave: Broker, master: Broker, topic: str, keys: list[str]) -> None:
    """Until the slave answers pulls and queries as its master does."""
    patience = 90 if slave.kind.startswith("5") else 30  # a 5.x slave copies the tables once a minute
    for queue in range(2):
        expected = pulled(master, topic, queue)
        assert expected
        wait_until(partial(answers, expected, pulled, slave, topic, queue), f"queue {queue} at {slave.kind}", patience)
    for key in keys:
        expected = found_by_key(master, topic, key)
        assert expected
        wait_until(partial(answers, expected, found_by_key, slave, topic, key), f"{key} at {slave.kind}", patience)


def answers(expected: bytes, ask: Callable[..., bytes], *arguments: object) -> bool:
    return ask(*arguments) == expected


def send_until_replicated(producer: Producer, topic: str) -> None:
    """Sends until a send is acknowledged by the slave."""
    send_until(producer, topic, {"SEND_OK"})


def send_until(producer: Producer, topic: str, statuses: set[str]) -> None:
    def sent() -> bool:
        try:
            return producer.send(topic, "is it there?")["status"] in statuses
        except ClientError:  # while the master's restart is news to the client
            return False

    wait_until(sent, f"a send that ends in {statuses}", 75, 0.2)


def says(broker: Broker, *words: str, timeout: float = 30) -> str:
    """The line of the broker's output with all these words, once there is one."""
    return broker.running.wait_line("".join(f"(?=.*{re.escape(word)})" for word in words), timeout)


def acknowledged(results: list[Json]) -> None:
    assert {result["status"] for result in results} == {"SEND_OK"}


@pytest.mark.beside
@pytest.mark.parametrize(("master_kind", "slave_kind"), PAIRS, ids=lambda kind: str(kind))
def test_a_slave_is_a_copy_of_its_master_through_deaths(site: Site, master_kind: str, slave_kind: str) -> None:
    """Replicates over several files, catches up after the slave was killed, and serves when the master is
    killed.
    """
    with site() as (cluster, producer):
        master = add_master(cluster, master_kind)
        topic = new_topic(producer, cluster)
        producer.send_many(topic, "before", 20, keys="k-before", wait=False)
        slave = add_slave(cluster, slave_kind)
        send_until_replicated(producer, topic)
        # More than a file's worth; a record of 4 KiB leaves filler at the end of a file.
        acknowledged(producer.send_many(topic, "big", 300, size=4000, keys="k-big"))
        acknowledged(producer.send_many(topic, "small", 200, keys="k-small"))
        wait_copied(slave, master)
        wait_same_answers(slave, master, topic, ["k-before", "k-big", "k-small"])

        slave.kill()
        statuses = {result["status"] for result in producer.send_many(topic, "alone", 3)}
        assert "SEND_OK" not in statuses
        slave.start()
        send_until_replicated(producer, topic)
        wait_copied(slave, master)
        # An official broker that was killed throws its last index file away and indexes anew only what came after its
        # checkpoint, of each minute: it may no longer find the older keys.
        wait_same_answers(slave, master, topic, ["k-before", "k-big"] if slave_kind == OURS else [])
        count = sum(len(list(split(pulled(master, topic, queue)))) for queue in range(2))

        master.kill()
        with producer.driver.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
            assert len(consumer.received(count)) >= count


@pytest.mark.beside
@pytest.mark.parametrize("master_kind", [OURS, "5.3.3"])
def test_a_topic_that_is_made_anew_is_new_at_our_slave(site: Site, master_kind: str) -> None:
    with site() as (cluster, producer):
        master = add_master(cluster, master_kind)
        topic = new_topic(producer, cluster)
        slave = add_slave(cluster, OURS)
        send_until_replicated(producer, topic)
        acknowledged(producer.send_many(topic, "old", 20))
        wait_same_answers(slave, master, topic, [])
        assert master.call(DELETE_TOPIC_IN_BROKER, {"topic": topic}).code == 0
        wait_until(lambda: master.call(PULL_MESSAGE, pull_fields(topic, 0, 0)).code == TOPIC_NOT_EXIST, "deletion", 10)
        producer.create_topic(topic, 2)
        acknowledged(producer.send_many(topic, "new", 20))
        wait_same_answers(slave, master, topic, [])
        assert b"old" not in pulled(slave, topic, 0)
        assert pulled(slave.restart(kill=True), topic, 0) == pulled(master, topic, 0)


@pytest.mark.beside
@pytest.mark.parametrize("master_kind", [OURS, "4.9.4"])
def test_a_master_begins_and_ceases_to_wait_for_its_slave_while_it_runs(site: Site, master_kind: str) -> None:
    def change_role(role: str) -> None:
        assert master.call(UPDATE_BROKER_CONFIG, body=f"brokerRole={role}\n".encode()).code == 0

    with site() as (cluster, producer):
        master = add_master(cluster, master_kind, role="ASYNC_MASTER")
        topic = new_topic(producer, cluster)
        slave = add_slave(cluster, OURS)
        acknowledged(producer.send_many(topic, "first", 20))
        wait_copied(slave, master)

        change_role("SYNC_MASTER")
        send_until_replicated(producer, topic)
        slave.pause()
        assert producer.send(topic, "the slave stands still")["status"] != "SEND_OK"
        change_role("ASYNC_MASTER")
        acknowledged(producer.send_many(topic, "nobody waits", 20))
        slave.resume()
        wait_copied(slave, master)


@pytest.mark.parametrize("master_kind", [OURS, "4.9.4"])
def test_a_pull_that_waits_at_our_slave_is_woken_by_replication(site: Site, master_kind: str) -> None:
    """An official slave would look once in 5 s."""
    with site() as (cluster, producer):
        master = add_master(cluster, master_kind)
        topic = new_topic(producer, cluster)
        slave = add_slave(cluster, OURS)
        send_until_replicated(producer, topic)
        acknowledged(producer.send_many(topic, "before", 8))
        wait_same_answers(slave, master, topic, [])
        queue = next(queue for queue in producer.queues(topic) if queue["queue"] == 0)
        end = len(list(split(pulled(slave, topic, 0))))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(slave.call, PULL_MESSAGE, pull_fields(topic, 0, end, suspend_ms=4000))
            time.sleep(0.5)  # the pull has to be parked before the message comes
            assert not waiting.done()
            began = time.monotonic()
            acknowledged([producer.send(topic, "wakes", to=queue)])
            answer = waiting.result()
            assert time.monotonic() - began < 2
        assert answer.code == FOUND
        assert b"wakes" in answer.body


# ---- histories that differ


NOT_REPLICATED: Final = {"SLAVE_NOT_AVAILABLE", "FLUSH_SLAVE_TIMEOUT"}


class Torn(NamedTuple):
    """A slave, what it has, and its master started again without the last of that."""

    master: Broker
    slave: Broker
    topic: str
    kept: dict[str, bytes]


def lose_the_tail(cluster: Cluster, producer: Producer, master_kind: str, slave_kind: str) -> Torn:
    master = add_master(cluster, master_kind)
    topic = new_topic(producer, cluster)
    slave = add_slave(cluster, slave_kind)
    send_until_replicated(producer, topic)
    master.kill()
    aside = master.store.with_name("store-aside")
    shutil.copytree(master.store, aside)
    master.start()
    cluster.wait_registered(master)
    send_until_replicated(producer, topic)
    acknowledged(producer.send_many(topic, "kept by the slave only", 5))
    wait_copied(slave, master)
    kept = filled(slave)
    master.kill()
    shutil.rmtree(master.store)
    aside.rename(master.store)
    master.start()
    return Torn(master, slave, topic, kept)


def route(cluster: Cluster, topic: str) -> bytes:
    return cluster.namesrvs[0].call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).body


def grow(cluster: Cluster, producer: Producer, torn: Torn) -> None:
    """Makes the master's log longer than its slave's, with other messages."""
    cluster.wait_registered(torn.master)
    send_until(producer, torn.topic, NOT_REPLICATED)
    producer.send_many(torn.topic, "written anew", 100, size=2000, wait=False)


@pytest.mark.beside
@pytest.mark.parametrize("master_kind", ["5.3.3", "4.9.4", "4.8.0", OURS])
def test_our_slave_does_not_follow_a_master_that_lost_its_tail(site: Site, master_kind: str) -> None:
    """First the master is behind, then it has grown beyond the slave with other messages.

    Both are told apart, and consumers are kept away from the slave.
    """
    with site() as (cluster, producer):
        torn = lose_the_tail(cluster, producer, master_kind, OURS)
        says(torn.slave, "replication_refused", "bytes that the master lacks")
        wait_until(lambda: torn.slave.address.encode() not in route(cluster, torn.topic), "a route without it", 10)
        assert torn.slave.call(PULL_MESSAGE, pull_fields(torn.topic, 0, 0)).code == SYSTEM_BUSY
        grow(cluster, producer, torn)
        line = says(torn.slave, "replication_refused", "the two logs were written by different masters", timeout=75)
        if master_kind == OURS:
            assert "They are equal up to offset" in line
            says(torn.master, "slave_refused", "different masters")
        assert producer.send(torn.topic, "alone")["status"] in NOT_REPLICATED
        assert filled(torn.slave) == torn.kept


@pytest.mark.beside
@pytest.mark.parametrize("slave_kind", ["5.3.3", "4.9.4", "4.8.0"])
def test_our_master_that_lost_its_tail_does_not_count_an_official_slave(site: Site, slave_kind: str) -> None:
    with site() as (cluster, producer):
        torn = lose_the_tail(cluster, producer, OURS, slave_kind)
        says(torn.master, "slave_refused", "bytes that the master lacks")
        grow(cluster, producer, torn)
        says(torn.master, "slave_refused", "the two logs were written by different masters")
        assert {result["status"] for result in producer.send_many(torn.topic, "alone", 2)} == {"SLAVE_NOT_AVAILABLE"}


# ---- a new slave, a late master, a change of roles


@pytest.mark.beside
@pytest.mark.parametrize("master_kind", [OURS, "4.9.4", "5.3.3"])
def test_a_new_slave_takes_the_whole_log_if_it_is_told_to(site: Site, master_kind: str) -> None:
    with site() as (cluster, producer):
        master = add_master(cluster, master_kind, "ASYNC_MASTER")
        topic = new_topic(producer, cluster)
        producer.send_many(topic, "old", 700, size=4000, keys="k-old")
        slave = add_slave(cluster, OURS, haSyncWholeLog="true")
        wait_copied(slave, master)
        assert len(commitlog(slave)) >= 3
        wait_same_answers(slave, master, topic, ["k-old"])
        slave.restart(kill=True)
        producer.send_many(topic, "new", 10)
        wait_copied(slave, master)


@pytest.mark.parametrize("master_kind", [OURS, "4.9.4"])
def test_a_slave_that_waits_links_soon_after_its_masters_start(site: Site, master_kind: str) -> None:
    with site() as (cluster, _):
        slave = add_slave(cluster, OURS)
        master = add_master(cluster, master_kind)
        booted = time.monotonic()
        slave.running.wait_line("linked_to_master", 10)
        assert time.monotonic() - booted < 2.5
        master.restart(kill=True)
        booted = time.monotonic()
        wait_until(lambda: slave.running.output.count("linked_to_master") == 2, "the second link", 10)
        assert time.monotonic() - booted < 2.5


@pytest.mark.beside
@pytest.mark.parametrize("official", ["5.3.3", "4.9.4", "4.8.0"])
def test_a_broker_moves_house_and_back(site: Site, official: str) -> None:
    """An official master is replaced by its PocketMQ slave and becomes the slave of that.

    Then the other way round.
    """
    with site() as (cluster, producer):
        theirs = add_master(cluster, official, slaveReadEnable="true")
        topic = new_topic(producer, cluster)
        ours = add_slave(cluster, OURS)
        send_until_replicated(producer, topic)
        acknowledged(producer.send_many(topic, "official", 50))
        wait_copied(ours, theirs)
        wait_same_answers(ours, theirs, topic, [])  # it has the topic too

        theirs.stop(90)
        ours.restart(brokerId=0, brokerRole="SYNC_MASTER")
        theirs.start(brokerId=1, brokerRole="SLAVE")
        cluster.wait_registered(ours)
        send_until_replicated(producer, topic)
        acknowledged(producer.send_many(topic, "ours", 50))
        wait_copied(theirs, ours)
        wait_same_answers(theirs, ours, topic, [])

        ours.stop()
        theirs.restart(brokerId=0, brokerRole="SYNC_MASTER")
        ours.start(brokerId=1, brokerRole="SLAVE")
        cluster.wait_registered(theirs)
        send_until_replicated(producer, topic)
        acknowledged(producer.send_many(topic, "official again", 50))
        wait_copied(ours, theirs)
        wait_same_answers(ours, theirs, topic, [])
        with producer.driver.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
            count = sum(len(list(split(pulled(theirs, topic, queue)))) for queue in range(2))
            bodies = {message["body"] for message in consumer.received(count)}
        wanted = {f"{prefix}{number}" for prefix in ("official", "ours", "official again") for number in range(50)}
        assert wanted <= bodies
