"""What Prometheus reads from the broker's tables."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from gateway.broker.gauges import register_gauges
from gateway.connection import Connection
from gateway.ha.progress import Replica
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import Rig, samples

Make = Callable[..., Rig]
OF_MASTERS = {
    "rocketmq_replication_slaves",
    "rocketmq_replication_behind_bytes",
    "rocketmq_half_messages",
    "rocketmq_producer_offset",
    "rocketmq_consumer_offset",
    "rocketmq_consumer_lag_messages",
}


def names(rig: Rig) -> set[str]:
    register_gauges(rig.broker.metrics, rig.broker)
    return {family.name for family in rig.broker.metrics.collect()}


async def test_a_slave_reports_nothing_that_its_master_reports(make_rig: Make) -> None:
    """Dashboards sum over brokers."""
    of_master = names(make_rig())
    of_slave = names(make_rig(store={"broker_role": BrokerRole.SLAVE}))
    assert of_master - of_slave == OF_MASTERS
    assert of_slave < of_master


async def test_what_connections_take_together(rig: Rig, nursery: trio.Nursery) -> None:
    register_gauges(rig.broker.metrics, rig.broker)
    budgets = rig.broker.connections.budgets
    client, server = trio.testing.memory_stream_pair()
    connection = Connection(server, ("10.0.0.9", 40_000), rig.router, budgets)
    nursery.start_soon(connection.serve)
    await client.send_all((1_000_000).to_bytes(4, "big") + bytes(199_996))
    await trio.testing.wait_all_tasks_blocked()
    connection.start_waiting(trio.sleep_forever)
    assert samples(rig, "rocketmq_connections_incomplete_bytes") == {(): 200_000}
    assert samples(rig, "rocketmq_requests_waiting") == {(): 1}
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    connection.close()
    await trio.testing.wait_all_tasks_blocked()
    assert samples(rig, "rocketmq_connections_incomplete_bytes") == {(): 0}
    assert samples(rig, "rocketmq_requests_waiting") == {(): 0}


async def test_lag_of_groups(rig: Rig) -> None:
    rig.store_messages("T", 0, 5)
    rig.store_messages("T", 1, 2)
    rig.broker.offsets.commit("g", "T", 0, 3, ceiling=5)
    rig.broker.offsets.commit("g", "T", 1, 2, ceiling=2)
    register_gauges(rig.broker.metrics, rig.broker)
    labels = ("topic", "consumer_group")
    assert samples(rig, "rocketmq_consumer_lag_messages", *labels) == {("T", "g"): 2}
    assert samples(rig, "rocketmq_consumer_offset", "topic", "group") == {("T", "g"): 5}
    assert samples(rig, "rocketmq_producer_offset", "topic") == {("T",): 7}


async def test_slaves_and_how_far_they_are_behind(rig: Rig) -> None:
    """A slave of ours is known by its id, official ones by their host."""
    rig.store_messages("T", 0, 5)
    end = rig.broker.store.end_offset
    master = rig.broker.replication.master
    assert master is not None
    for name, host, offset, broker_id in (
        ("own:1", "10.0.0.1", end - 100, 1),
        ("official:2", "10.0.0.2", end, None),
        ("its half-dead link:3", "10.0.0.2", end - 300, None),
    ):
        master.progress.attach(Replica(name, host, offset, broker_id))
    register_gauges(rig.broker.metrics, rig.broker)
    assert samples(rig, "rocketmq_replication_slaves") == {(): 3}
    assert samples(rig, "rocketmq_replication_behind_bytes", "slave") == {("1",): 100, ("10.0.0.2",): 300}


@pytest.mark.parametrize(("free", "used"), [(25, 0.75), (0, 1.0)])
async def test_use_of_the_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch, free: int, used: float) -> None:
    """Blocks that only root may fill do not count."""
    only_for_root = 5
    figures = SimpleNamespace(f_frsize=4096, f_blocks=100 + only_for_root, f_bfree=free + only_for_root, f_bavail=free)
    monkeypatch.setattr("store.files.os.statvfs", lambda _: figures)
    register_gauges(rig.broker.metrics, rig.broker)
    assert samples(rig, "rocketmq_storage_disk_used_ratio") == {(): used}
