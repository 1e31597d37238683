"""The four shapes of the README, started with its commands, under an official Java client; and what it says of deaths.

The client looks for routes each second here instead of each 30 s; all else is as the README says.
"""

import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.interop import raw
from tests.interop.child import Process, free_ports, wait_until
from tests.interop.conftest import MakeDriver
from tests.interop.driver import ClientError, Driver, Json, Producer
from tests.interop.guide import BIN, GuideCluster, code, section
from tests.interop.processes import BOOT, OURS

pytestmark = [pytest.mark.interop, pytest.mark.slow]

GET_MAX_OFFSET: Final = 30
QUEUES: Final = 2  # on each master
MESSAGES: Final = 40


@pytest.fixture(autouse=True)
def _only_ours(target: str) -> None:
    if target != OURS:
        pytest.skip("the commands of the README start PocketMQ")


@pytest.fixture
def client(drivers: MakeDriver) -> Driver:
    return drivers("4.9.8")


def new_topic(producer: Producer, cluster: GuideCluster) -> str:
    """A topic on every master, known to every name server."""
    topic = producer.driver.fresh("topic")
    producer.create_topic(topic, QUEUES)
    masters = len({broker.name.removesuffix("-s") for broker in cluster.brokers})
    for namesrv in cluster.namesrvs:
        wait_until(
            lambda at=namesrv: at.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).code == 0,  # type: ignore[misc]
            f"the route of {topic} at {namesrv.name}",
            10,
        )
    wait_until(lambda: len(producer.queues(topic)) == QUEUES * masters, f"all queues of {topic}", 10)
    return topic


def send(producer: Producer, topic: str, prefix: str, status: str = "SEND_OK", count: int = MESSAGES) -> list[Json]:
    """Sends with the client's own retries; all must have that status."""
    results = producer.send_many(topic, prefix, count)
    assert {result["status"] for result in results} == {status}
    return results


def bodies(messages: list[Json]) -> set[str]:
    return {message["body"] for message in messages}


def numbered(*prefixes: str, count: int = MESSAGES) -> set[str]:
    return {f"{prefix}{n}" for prefix in prefixes for n in range(count)}


def consumes(client: Driver, cluster: GuideCluster, topic: str, *prefixes: str) -> None:
    """A consumer that starts now gets everything that was sent under these prefixes."""
    expected = numbered(*prefixes)
    with client.push(cluster.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
        consumer.received(len(expected))
        wait_until(lambda: bodies(consumer.received()) >= expected, "all messages", 30)


def used(results: list[Json]) -> set[str]:
    return {result["broker"] for result in results}


# ---- one master


def test_one_master(client: Driver) -> None:
    """Nothing acknowledged is lost with the broker, and a name server is found again within 2 s."""
    with GuideCluster("One master") as cluster, client.producer(cluster.namesrv_addr) as producer:
        broker, namesrv = cluster["broker"], cluster["namesrv-1"]
        topic = new_topic(producer, cluster)
        send(producer, topic, "before")
        broker.kill()
        with pytest.raises(ClientError):
            producer.send(topic, "nobody is there")
        cluster.start("broker")
        wait_until(lambda: sends(producer, topic), "sends after the restart", 20, 0.1)
        send(producer, topic, "after")
        consumes(client, cluster, topic, "before", "after")

        namesrv.kill()
        send(producer, topic, "blind")
        cluster.start("namesrv-1")
        cluster.wait_listed(broker, timeout=2)
        consumes(client, cluster, topic, "before", "after", "blind")


def sends(producer: Producer, topic: str) -> bool:
    try:
        return bool(producer.send(topic, "probe")["status"] == "SEND_OK")
    except ClientError:
        return False


# ---- masters without slaves


def test_masters_without_slaves(client: Driver) -> None:
    """With one master dead sends go on, and with one name server dead everything does."""
    with (
        GuideCluster("Masters without slaves") as cluster,
        client.producer(cluster.namesrv_addr) as producer,
    ):
        topic = new_topic(producer, cluster)
        assert used(send(producer, topic, "both")) == {"broker-a", "broker-b"}
        cluster["namesrv-1"].kill()
        cluster["broker-a"].kill()
        assert used(send(producer, topic, "one")) == {"broker-b"}
        cluster.wait_listed(cluster["broker-a"], listed=False, timeout=5)
        wait_until(lambda: len(producer.queues(topic)) == QUEUES, "a route without the dead master", 5)

        cluster.start("broker-a")
        wait_until(lambda: used(send(producer, topic, "again")) == {"broker-a", "broker-b"}, "both masters", 20)
        consumes(client, cluster, topic, "both", "one", "again")


# ---- masters with slaves


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_masters_with_slaves(client: Driver, kind: str) -> None:
    """With one master dead its slave serves what it has, sends go to the other, and a returned master is
    taken up.
    """
    with (
        GuideCluster(f"Masters with slaves, {kind}") as cluster,
        client.producer(cluster.namesrv_addr) as producer,
    ):
        master, slave = cluster["broker-a"], cluster["broker-a-s"]
        topic = new_topic(producer, cluster)
        wait_until(lambda: sends_everywhere(producer, topic), "slaves that follow", 20, 0.1)
        assert used(send(producer, topic, "both")) == {"broker-a", "broker-b"}
        if kind == "asynchronous":
            wait_until(partial(has_all, slave.address, master.address, topic), "what the slave lacks", 5)
        # The slave knows the topic from its next look at the master's tables.
        wait_until(lambda: topic in slave.call(GET_ALL_TOPIC_CONFIG).body.decode(), "the topic at the slave", 15)
        master.kill()
        assert used(send(producer, topic, "one")) == {"broker-b"}
        consumes(client, cluster, topic, "both", "one")

        cluster.start("broker-a")
        wait_until(lambda: used(send_as_it_comes(producer, topic)) == {"broker-a", "broker-b"}, "both masters", 20)
        wait_until(lambda: sends_everywhere(producer, topic), "slaves that follow", 20, 0.1)
        cluster["broker-b-s"].kill()
        status = "SLAVE_NOT_AVAILABLE" if kind == "synchronous" else "SEND_OK"
        to_b = [queue for queue in producer.queues(topic) if queue["broker"] == "broker-b"]
        assert producer.send(topic, "without its slave", to=to_b[0])["status"] == status
        consumes(client, cluster, topic, "both", "one")


GET_ALL_TOPIC_CONFIG: Final = 21


def sends_everywhere(producer: Producer, topic: str) -> bool:
    """Whether each master acknowledges; a synchronous one does so when its slave follows."""
    try:
        results = [producer.send(topic, "probe", to=queue) for queue in producer.queues(topic)]
    except ClientError:
        return False
    return {result["status"] for result in results} == {"SEND_OK"}


def send_as_it_comes(producer: Producer, topic: str) -> list[Json]:
    """Sends whose status does not matter: the slave may not have found its master again."""
    return producer.send_many(topic, "some", 8)


def has_all(slave: str, master: str, topic: str) -> bool:
    return all(reach(slave, topic, queue) == reach(master, topic, queue) for queue in range(QUEUES))


def reach(address: str, topic: str, queue: int) -> int:
    return int(raw.call(address, GET_MAX_OFFSET, {"topic": topic, "queueId": queue}).fields["offset"])


# ---- all of it on one machine


@pytest.fixture
def script(tmp_path: Path) -> tuple[str, list[int]]:
    """The README's script for one machine with free ports and another folder, and the ports.

    Name servers first.
    """
    text = code(section("All on one machine")).replace("/tmp/try", str(tmp_path))
    namesrvs = sorted(set(re.findall(r"listenPort=(\d+)", text)))
    brokers = sorted(set(re.findall(r"^broker \S+ (\d+)$", text, re.M)))
    assert (len(namesrvs), len(brokers)) == (2, 4)
    ports = {**{port: free_ports() for port in namesrvs}, **{port: free_ports(2, 1) for port in brokers}}
    text = re.sub("|".join(ports), lambda match: str(ports[match[0]]), text)
    return text, list(ports.values())


@pytest.fixture
def started(script: tuple[str, list[int]], tmp_path: Path) -> Iterator[Process]:
    process = Process(["sh", "-c", f"{script[0]}\nwait"], BIN, {"HOME": str(tmp_path)}, log=str(tmp_path / "out"))
    yield process
    process.signal(signal.SIGKILL)
    process.wait()


def test_all_on_one_machine(client: Driver, script: tuple[str, list[int]], started: Process) -> None:
    """Two name servers, two masters, two slaves: all serve, and a send is acknowledged by a slave."""
    _, (first, second, *brokers) = script
    wait_until(lambda: started.output.count(BOOT) == 6, "six boot lines", 60)
    for namesrv in (first, second):
        address = f"127.0.0.1:{namesrv}"
        for port in brokers:
            wait_until(
                lambda at=address, one=port: f':{one}"' in table(at),  # type: ignore[misc]
                f"broker {port} at {address}",
                20,
            )
    with client.producer(f"127.0.0.1:{first};127.0.0.1:{second}") as producer:
        topic = client.fresh("topic")
        wait_until(lambda: sends(producer, topic), "an acknowledged send", 20, 0.1)


def table(address: str) -> str:
    return raw.call(address, raw.GET_BROKER_CLUSTER_INFO).body.decode()
