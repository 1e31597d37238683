"""A slave behind a network link that goes down: no end of a connection, no reset, nothing.

The slave runs in a network namespace of its own, joined to the master's by a pair of veth devices. That takes root and
the tool `ip`; without them the test is skipped.
"""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.interop.chaos import commitlog
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, has_route
from tests.interop.driver import Json
from tests.interop.processes import OURS, Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.slow]

HOUSEKEEPING_SECONDS: Final = 2.0


class Cable(NamedTuple):
    """A link between this network and that of the namespace; `near` and `far` are its two addresses."""

    namespace: str
    device: str
    near: str
    far: str

    def set(self, state: str) -> None:
        """`up` or `down`."""
        ip("link", "set", self.device, state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the tool ip")
    number = random.randrange(1 << 14)
    net = f"10.213.{number >> 6}.{(number & 63) << 2}"
    prefix, _, last = net.rpartition(".")
    cable = Cable(f"pmq{number}", f"pmq{number}a", f"{prefix}.{int(last) + 1}", f"{prefix}.{int(last) + 2}")
    far_device = f"pmq{number}b"
    inside = ("-n", cable.namespace)
    try:
        try:
            ip("netns", "add", cable.namespace)
            ip("link", "add", cable.device, "type", "veth", "peer", "name", far_device, "netns", cable.namespace)
            ip("addr", "add", f"{cable.near}/30", "dev", cable.device)
            ip(*inside, "addr", "add", f"{cable.far}/30", "dev", far_device)
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "link", "set", far_device, "up")
            cable.set("up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield cable
    finally:
        for words in (("link", "del", cable.device), ("netns", "del", cable.namespace)):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*words)


def test_the_link_to_the_slave_goes_down_and_comes_back(target: str, drivers: MakeDriver, cable: Cable) -> None:
    """Sends say that the slave has not got them, soon without waiting; when it is back it gets what it missed."""
    if target != OURS:
        pytest.skip("official masters and slaves notice it after minutes")
    common: Json = {
        "mappedFileSizeCommitLog": 1 << 20,
        "haHousekeepingInterval": int(HOUSEKEEPING_SECONDS * 1000),
        "haSendHeartbeatInterval": 400,
        "slaveTimeout": 500,
    }
    with Cluster() as cluster:
        namesrv = cluster.add_namesrv()
        common["namesrvAddr"] = f"{cable.near}:{namesrv.port}"
        near: Json = {**common, "brokerIP1": cable.near, "brokerIP2": cable.near}
        far: Json = {**common, "brokerIP1": cable.far, "brokerIP2": cable.far}
        master = cluster.add_broker(start=False, role="SYNC_MASTER", **near)
        slave = cluster.add_broker(start=False, broker_id=1, role="SLAVE", **far)
        slave.prefix = ["ip", "netns", "exec", cable.namespace]
        master.start()
        slave.start()
        client = drivers("4.9.8")
        with client.producer(cluster.namesrv_addr) as producer:
            topic = client.fresh("partition")
            producer.create_topic(topic, 1)
            wait_until(lambda: has_route(cluster, topic), "the route", 10)

            def status() -> str:
                word: str = producer.send(topic, "m")["status"]
                return word

            wait_until(lambda: status() == "SEND_OK", "a slave that follows", 10)
            cable.set("down")
            assert status() == "FLUSH_SLAVE_TIMEOUT"
            slave.running.wait_line("master_silent", HOUSEKEEPING_SECONDS + 2)
            master.running.wait_line("slave_closed", HOUSEKEEPING_SECONDS + 2)
            assert status() == "SLAVE_NOT_AVAILABLE"
            missed = producer.send_many(topic, "missed", 20)
            assert {result["status"] for result in missed} == {"SLAVE_NOT_AVAILABLE"}
            cable.set("up")
            wait_until(lambda: status() == "SEND_OK", "a slave that follows again", 10, 0.1)
            wait_until(lambda: same_log(master, slave), "an equal log", 10)


def same_log(master: Broker, slave: Broker) -> bool:
    return commitlog(master) == commitlog(slave)
