"""A store directory goes from one make of broker to the other and back, stopped or killed, and nothing is missing.

The clients stay the same official ones; each broker serves what the other stored, appends, and finds by key and time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, has_route
from tests.interop.driver import ClientError, Driver, Producer
from tests.interop.messages import found_by_key, read_queue
from tests.interop.processes import OURS, Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.beside]

OFFICIAL: Final = ("5.3.3", "4.9.4", "4.8.0")

COUNT: Final = 120
QUEUES: Final = 3
# Small files, so that both makes roll over several of them, and a body that lets few fit in.
FILES: Final[dict[str, Any]] = {
    "mappedFileSizeCommitLog": 64 * 1024,
    "mappedFileSizeConsumeQueue": 20 * 64,
    "maxHashSlotNum": 1000,
    "maxIndexNum": 500,
}


class Exchange:
    """One topic on a broker that changes its make, and what was sent to it."""

    def __init__(self, cluster: Cluster, driver: Driver, broker: Broker) -> None:
        self.cluster = cluster
        self.driver = driver
        self.broker = broker
        self.topic = driver.fresh("exchange")
        self.sent: dict[str, tuple[int, int]] = {}  # key -> queue, offset

    def create(self) -> None:
        with self.driver.producer(self.cluster.namesrv_addr) as producer:
            producer.create_topic(self.topic, QUEUES)
            self._wait()

    def _wait(self) -> None:
        wait_until(lambda: has_route(self.cluster, self.topic), "the route", 30)

    def become(self, kind: str, *, kill: bool) -> None:
        self.broker.restart(kind, kill=kill)
        self.cluster.wait_registered(self.broker)
        self._wait()

    def send(self, prefix: str) -> None:
        """Every send is acknowledged; the first may have to find the new broker."""
        with self.driver.producer(self.cluster.namesrv_addr, retries=5) as producer:
            wait_until(lambda: self._send(producer, f"{prefix}-first"), "the first send", 30, 0.2)
            for number in range(COUNT):
                assert self._send(producer, f"{prefix}-{number}")

    def _send(self, producer: Producer, key: str) -> bool:
        try:
            result = producer.send(self.topic, key + "x" * 700, keys=key, tags="T")
        except ClientError:
            return False
        if result["status"] != "SEND_OK":
            return False
        self.sent[key] = (result["queue"], result["offset"])
        return True

    def check(self) -> None:
        """Every message is at its offset, without a hole, and is found by its key."""
        with self.driver.puller(self.cluster.namesrv_addr) as puller:
            for queue in range(QUEUES):
                where = {"topic": self.topic, "broker": self.broker.name, "queue": queue}
                found = read_queue(puller, where)
                assert [message["offset"] for message in found] == list(range(len(found)))
                keys = {(message["keys"], message["offset"]) for message in found}
                assert {(key, offset) for key, (place, offset) in self.sent.items() if place == queue} <= keys
        with self.driver.producer(self.cluster.namesrv_addr) as producer:
            for key in list(self.sent)[:: max(1, len(self.sent) // 15)]:
                assert key in [message["keys"] for message in found_by_key(producer, self.topic, key)], key


@contextmanager
def exchange(drivers: MakeDriver, kind: str) -> Iterator[Exchange]:
    """A broker of that make with its topic, and nobody else at its name server."""
    with Cluster(OURS) as cluster:
        cluster.add_namesrv()
        made = Exchange(cluster, drivers("4.9.8"), cluster.add_broker(kind, **FILES))
        made.create()
        yield made


@pytest.mark.parametrize("official", OFFICIAL)
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_from_ours_to_the_official_broker_and_back(drivers: MakeDriver, official: str, kill: bool) -> None:
    """Our directory opens there, is appended to, and opens here again."""
    with exchange(drivers, OURS) as handed:
        handed.send("ours")
        handed.check()
        handed.become(official, kill=kill)
        handed.check()
        handed.send("official")
        handed.check()
        handed.become(OURS, kill=kill)
        handed.check()
        handed.send("again")
        handed.check()


@pytest.mark.parametrize("official", OFFICIAL)
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_from_the_official_broker_to_ours_and_back(drivers: MakeDriver, official: str, kill: bool) -> None:
    """Their directory opens here, is appended to, and opens there again."""
    with exchange(drivers, official) as handed:
        handed.send("official")
        handed.become(OURS, kill=kill)
        handed.check()
        handed.send("ours")
        handed.check()
        handed.become(official, kill=kill)
        handed.check()


def test_the_lock_keeps_the_other_make_out(drivers: MakeDriver) -> None:
    """Ours refuses a directory that an official broker uses, with one line, and touches nothing in it."""
    with exchange(drivers, "4.9.4") as handed:
        handed.send("official")
        theirs = handed.broker
        before = {path: path.stat().st_mtime_ns for path in (theirs.store / "consumequeue").rglob("*")}
        ours = handed.cluster.add_broker(OURS, start=False, name="broker-b", store=theirs.store, **FILES)
        process = ours.launch()
        assert process.wait(30) != 0
        assert "lock" in process.output
        assert {path: path.stat().st_mtime_ns for path in before} == before
        handed.check()
