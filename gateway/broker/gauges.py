"""What Prometheus reads from the broker's tables at each scrape: connections, queue fill, lag, storage.

Names are those of RocketMQ 5.x, and for offsets those of rocketmq-exporter, whose dashboards sum producer_offset and
consumer_offset over brokers: each master reports its own queues, and a slave reports none of them. Replication and the
room of the disk have no metric in 5.x; those names are ours.
"""

from collections.abc import Iterable, Iterator, Sequence

from gateway.broker import names
from gateway.broker.state import Broker
from gateway.ha.progress import Replica
from gateway.metrics import Metrics
from store.files import FileSystem
from store.options import BrokerRole

Row = tuple[Sequence[str], float]


def register_gauges(metrics: Metrics, broker: Broker) -> None:
    """Lets `metrics` read this broker at each scrape."""
    native = metrics.gauge_source
    native("rocketmq_broker_permission", "Permission bits of the broker.", (), lambda: _one(_permission(broker)))
    native("rocketmq_topic_number", "Topics.", (), lambda: _one(len(broker.topics)))
    native("rocketmq_consumer_group_number", "Consumer groups.", (), lambda: _one(len(broker.groups)))
    native("rocketmq_connections", "Open connections of clients.", (), lambda: _one(len(broker.connections)))
    native(
        "rocketmq_connections_unsent_bytes",
        "Bytes that wait for slow readers.",
        (),
        lambda: _one(broker.connections.unsent_bytes),
    )
    native(
        "rocketmq_connections_incomplete_bytes",
        "Bytes of large requests that have not arrived completely.",
        (),
        lambda: _one(broker.connections.budgets.frames.held_bytes),
    )
    native(
        "rocketmq_requests_waiting",
        "Requests that wait for a flush, a slave or the disk.",
        (),
        lambda: _one(broker.connections.budgets.waiting),
    )
    native("rocketmq_parked_pulls", "Pulls that wait for a message.", (), lambda: _one(len(broker.pulls)))
    native(
        "rocketmq_consumer_connections", "Connections of consumers.", ("consumer_group",), lambda: _consumers(broker)
    )
    native(
        "rocketmq_producer_connections", "Connections of producers.", ("producer_group",), lambda: _producers(broker)
    )
    native(
        "rocketmq_storage_size",
        "Bytes of the commitlog that can be read.",
        ("storage_type", "storage_medium"),
        lambda: [(("local", "disk"), broker.store.end_offset - broker.store.start_offset)],
    )
    native(
        "rocketmq_storage_flush_behind_bytes",
        "Bytes that are appended and not flushed.",
        ("storage_type", "storage_medium"),
        lambda: [(("local", "disk"), broker.store.end_offset - broker.store.flushed_offset)],
    )
    native(
        "rocketmq_storage_dispatch_behind_bytes",
        "Bytes that are appended and not in the consume queues.",
        ("storage_type", "storage_medium"),
        lambda: [(("local", "disk"), broker.store.end_offset - broker.store.dispatched_offset)],
    )
    native("rocketmq_storage_writable", "1 while the store takes messages.", (), lambda: _one(broker.store.writable[0]))
    native(
        "rocketmq_storage_disk_used_ratio",
        "Used share of the log's file system, as diskMaxUsedSpaceRatio counts it.",
        ("storage_type", "storage_medium"),
        lambda: _disk_used(broker),
    )
    if broker.replication.master is not None:
        progress = broker.replication.master.progress
        native("rocketmq_replication_slaves", "Slaves that follow.", (), lambda: _one(len(progress.replicas)))
        native(
            "rocketmq_replication_behind_bytes",
            "Bytes that a slave has not confirmed.",
            ("slave",),
            lambda: _behind(progress.replicas, broker.store.end_offset),
        )
    if broker.store_options.broker_role is not BrokerRole.SLAVE:
        native("rocketmq_half_messages", "Half messages without a decision.", (), lambda: _one(_undecided(broker)))
        _register_offsets(metrics, broker)


def _register_offsets(metrics: Metrics, broker: Broker) -> None:
    options = broker.options
    node = (options.broker_cluster_name, options.broker_name)
    metrics.gauge_source(
        "rocketmq_producer_offset",
        "Messages that the queues of a topic have seen.",
        ("cluster", "broker", "topic"),
        lambda: [((*node, topic), end) for topic, end in _queue_ends(broker).items()],
        native=False,
    )
    metrics.gauge_source(
        "rocketmq_consumer_offset",
        "How far a group has come in a topic.",
        ("cluster", "broker", "topic", "group"),
        lambda: [((*node, topic, group), offset) for topic, group, offset, _ in _progress(broker)],
        native=False,
    )
    metrics.gauge_source(
        "rocketmq_consumer_lag_messages",
        "Messages that a group has not consumed.",
        ("consumer_group", "topic", "is_retry"),
        lambda: [
            ((group, topic, str(topic.startswith(names.RETRY_PREFIX)).lower()), lag)
            for topic, group, _, lag in _progress(broker)
        ],
    )


def _one(value: float) -> list[Row]:
    return [((), float(value))]


def _disk_used(broker: Broker) -> list[Row]:
    """Nothing when the system does not tell."""
    options = broker.store_options
    try:
        share = FileSystem().usage(options.store_path_commit_log or options.store_path_root_dir).share
    except OSError:
        return []
    return [] if share is None else [(("local", "disk"), share)]


def _behind(slaves: Iterable[Replica], end: int) -> list[Row]:
    """By broker id, or by host for an official slave, which does not tell its id; a port changes with each link."""
    behind: dict[str, int] = {}
    for slave in slaves:
        name = slave.host if slave.broker_id is None else str(slave.broker_id)
        behind[name] = max(behind.get(name, 0), end - slave.acked)
    return [((name,), count) for name, count in behind.items()]


def _permission(broker: Broker) -> int:
    return broker.options.broker_permission


def _undecided(broker: Broker) -> int:
    halves = broker.half_messages
    return max(broker.store.max_offset(names.HALF_TOPIC, 0) - halves.progress - len(halves), 0)


def _consumers(broker: Broker) -> Iterator[Row]:
    for group in broker.clients.consumer_groups():
        yield (group.name,), len(group.members)


def _producers(broker: Broker) -> Iterator[Row]:
    for name, members in broker.clients.producer_groups().items():
        yield (name,), len(members)


def _queue_ends(broker: Broker) -> dict[str, int]:
    ends: dict[str, int] = {}
    for topic, queue_id in broker.store.queues():
        ends[topic] = ends.get(topic, 0) + broker.store.max_offset(topic, queue_id)
    return ends


def _progress(broker: Broker) -> Iterator[tuple[str, str, int, int]]:
    """(topic, group, sum of offsets, messages behind) of every group in every topic."""
    for key, queues in broker.offsets.snapshot().offset_table.items():
        topic, _, group = key.partition("@")
        behind = sum(max(broker.store.max_offset(topic, queue) - offset, 0) for queue, offset in queues.items())
        yield topic, group, sum(queues.values()), behind
