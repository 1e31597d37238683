"""SIGKILL under the load of the official client: what was acknowledged is there afterwards, where it was said to be.

KILL_ROUNDS in the environment sets the number of kills a flush mode (2 unless set).
"""

import os
from pathlib import Path

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, has_route
from tests.interop.driver import Flow
from tests.interop.processes import Broker, Cluster

pytestmark = [pytest.mark.interop, pytest.mark.crash]

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
QUEUES = 4
A_ROUND = 1500  # acknowledged messages between two kills


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_nothing_acknowledged_is_lost_by_a_kill(target: str, drivers: MakeDriver, tmp_path: Path, flush: str) -> None:
    """Each key that the client was told SEND_OK for is at the queue and offset of its send result, after every kill."""
    driver = drivers("4.9.8")
    record = tmp_path / "acknowledged"
    with Cluster(target) as cluster:
        cluster.add_namesrv()
        broker = cluster.add_broker(flushDiskType=flush)
        with driver.producer(cluster.namesrv_addr, retries=0, timeout=1000) as producer:
            topic = driver.fresh("kill")
            producer.create_topic(topic, QUEUES)
            wait_until(lambda: has_route(cluster, topic), "the route", 10)
            flow = producer.flow(topic, record, threads=16, size=200)
            checked = dict.fromkeys(range(QUEUES), 0)
            for _ in range(ROUNDS):
                wait_for(flow, flow.state()["acknowledged"] + A_ROUND)
                broker.restart(kill=True)
                checked = check(broker, topic, record, checked)
            state = flow.stop()
        assert state["acknowledged"] == len(Flow.acknowledged(record))
        check(broker, topic, record, dict.fromkeys(range(QUEUES), 0))


def wait_for(flow: Flow, least: int) -> None:
    """Until that many messages have been acknowledged."""
    wait_until(lambda: flow.state()["acknowledged"] > least, f"{least} acknowledged messages", 60)


def check(broker: Broker, topic: str, record: Path, begin: dict[int, int]) -> dict[int, int]:
    """Compares the client's record, as far as it is written now, with the broker's queues from their `begin` on.

    Returns where they end now: the next check need not read again what lies in front of it, the last one does.
    """
    promised = [line for line in Flow.acknowledged(record) if line["offset"] >= begin[line["queue"]]]
    stored = {
        (message.queue, message.offset): message.properties["KEYS"]
        for queue in range(QUEUES)
        for message in raw.read_queue(broker.address, topic, queue, begin[queue])
    }
    lost = [line for line in promised if stored.get((line["queue"], line["offset"])) != line["key"]]
    assert promised
    assert not lost, f"{len(lost)} of {len(promised)} acknowledged messages, the first {lost[0]}"
    return {queue: max(offset for at, offset in stored if at == queue) + 1 for queue in range(QUEUES)}
