"""Chaos: what an official client was told SEND_OK for is at master and slave, whatever befell the cluster meanwhile.

By default a few faults; POCKETMQ_LONG=1 makes it sixty. The seed is in the report; POCKETMQ_SEED brings a run back, as
far as processes and networks allow.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.interop.chaos import NAMES, PROXIED, QUEUES, ChaosCluster, Faults, Record, commitlog
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, give_up
from tests.interop.driver import Driver, Flow, Producer, PushConsumer
from tests.interop.faultproxy import FaultProxy
from tests.interop.processes import OURS, Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.crash, pytest.mark.slow]

LONG: Final = bool(os.environ.get("POCKETMQ_LONG"))
FAULTS: Final = 60 if LONG else 6
THREADS: Final = 4
RECOVERY_SECONDS: Final = 30.0


@pytest.fixture
def chaos(target: str) -> Iterator[ChaosCluster]:
    if target != OURS:
        pytest.skip("official brokers have no bindAddress, so the proxy has no place")
    with FaultProxy() as proxy, Cluster() as cluster:
        try:
            yield ChaosCluster(cluster, proxy)
        except OSError as error:
            give_up(f"no second loopback address {PROXIED}: {error}")


@pytest.fixture
def client(drivers: MakeDriver) -> Driver:
    return drivers("4.9.8")


class Traffic:
    """A producer that sends and a consumer that consumes, all the time."""

    def __init__(self, client: Driver, chaos: ChaosCluster, folder: Path, *, timeout_ms: int = 2000) -> None:
        self.topic = client.fresh("chaos")
        self.record = Record(folder / "acknowledged")
        self.producer: Producer = client.producer(chaos.namesrv_addr, timeout=timeout_ms)
        self.producer.create_topic(self.topic, QUEUES)
        wait_until(lambda: len(self.producer.queues(self.topic)) == QUEUES * len(NAMES), "the queues", 15)
        self.consumer: PushConsumer = client.push(
            chaos.namesrv_addr, self.topic, where="FIRST_OFFSET", heartbeat=1000, persist=1000
        )
        self.flow: Flow = self.producer.flow(
            self.topic, folder / "acknowledged", threads=THREADS, size=400, pause=30 if LONG else 10
        )

    def wait_acknowledged(self) -> float:
        """Until sends to both names are acknowledged again; the seconds that took."""
        before = self.record.count_by_name()
        return wait_until(
            lambda: all(count_is_above(self.record, name, before[name] + 5) for name in NAMES),
            "acknowledged sends to both masters",
            RECOVERY_SECONDS,
            0.1,
        )


def count_is_above(record: Record, name: str, least: int) -> bool:
    return record.count_by_name()[name] > least


def test_nothing_acknowledged_is_missing_anywhere(
    chaos: ChaosCluster, client: Driver, tmp_path: Path, seeded_random: random.Random
) -> None:
    """Faults one after the other, under load; at each death of a master its slave has all that was acknowledged."""
    chaos.wait_ready()
    traffic = Traffic(client, chaos, tmp_path)
    traffic.wait_acknowledged()
    chaos.wait_tables(traffic.topic)

    def master_killed(name: str) -> None:
        chaos.audit(chaos.slaves[name].server, name, traffic.topic, traffic.record.acknowledged())

    faults = Faults(chaos, seeded_random, master_killed)
    began = time.monotonic()
    for number in range(FAULTS):
        fault = faults.next()
        print(f"{time.monotonic() - began:6.1f} s  {number + 1}. {fault.name}")  # noqa: T201 - the report of a failure
        faults.act(fault)
        seconds = traffic.wait_acknowledged()
        print(f"{time.monotonic() - began:6.1f} s  acknowledged again after {seconds:.1f} s")  # noqa: T201
    assert sum(faults.done.values()) == FAULTS
    traffic.flow.stop()
    promised = traffic.record.acknowledged()
    for name in NAMES:
        master, slave = chaos.masters[name].server, chaos.slaves[name].server
        wait_until(lambda one=name: chaos.is_linked(one), f"a slave of {name} that has everything", 20)  # type: ignore[misc]
        chaos.audit(master, name, traffic.topic, promised)
        chaos.audit(slave, name, traffic.topic, promised)
        assert isinstance(master, Broker)
        assert isinstance(slave, Broker)
        assert commitlog(master) == commitlog(slave)
    keys = {row["key"] for row in promised}
    seen: set[str] = set()
    wait_until(lambda: consumed(traffic.consumer, seen) >= keys, "everything at the consumer", 60, 0.5)


def consumed(consumer: PushConsumer, seen: set[str]) -> set[str]:
    seen.update(message["keys"] for message in consumer.received())
    return seen


def test_sends_go_on_when_a_master_dies(chaos: ChaosCluster, client: Driver, tmp_path: Path) -> None:
    """With two masters the client's own retries hide that one, its slave or a name server is killed.

    Except what is under way at a master in that very moment: when a connection ends without a reset, the official
    client goes on waiting for its answers until the send's time is over.
    """
    chaos.wait_ready()
    traffic = Traffic(client, chaos, tmp_path, timeout_ms=5000)
    traffic.wait_acknowledged()
    for member in (chaos.masters["broker-a"], chaos.slaves["broker-b"], chaos.namesrvs[0]):
        sent = traffic.flow.state()["acknowledged"]
        member.server.kill()
        wait_until(lambda least=sent: traffic.flow.state()["acknowledged"] > least + 100, "sends", 15)  # type: ignore[misc]
        member.server.start()
        traffic.wait_acknowledged()
    assert traffic.flow.stop()["failed"] <= THREADS
