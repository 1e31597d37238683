"""Consumer groups: their settings, and where they stand in their queues."""

from typing import Any

from msgspec import field

from protocol.bodies.base import Body, MessageQueue, OpenBody
from protocol.bodies.heartbeat import SubscriptionData
from protocol.bodies.topics import NO_VERSION, DataVersion
from protocol.header import Int32, Int64


class SubscriptionGroupConfig(OpenBody):
    """The settings of one group that 4.x knows, the others as they came; the defaults are those of the Java class."""

    group_name: str
    broker_id: Int64 = 0
    consume_broadcast_enable: bool = True
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    notify_consumer_ids_changed_enable: bool = True
    retry_max_times: Int32 = 16
    retry_queue_nums: Int32 = 1
    which_broker_when_consume_slowly: Int64 = 1


class GroupTableBody(OpenBody):
    """All groups of a broker: SubscriptionGroupWrapper, also the content of `config/subscriptionGroup.json`."""

    data_version: DataVersion = NO_VERSION
    subscription_group_table: dict[str, SubscriptionGroupConfig] = field(default_factory=dict)

    @classmethod
    def gather(cls, value: Any) -> None:
        super().gather(value)
        match value:
            case {"subscriptionGroupTable": dict(table)}:
                for config in table.values():
                    SubscriptionGroupConfig.gather(config)


class SubscriptionGroupList(OpenBody):
    """5.x: groups to create."""

    group_config_list: list[SubscriptionGroupConfig]

    @classmethod
    def gather(cls, value: Any) -> None:
        super().gather(value)
        match value:
            case {"groupConfigList": list(configs)}:
                for config in configs:
                    SubscriptionGroupConfig.gather(config)


class OffsetWrapper(Body):
    """Where a group stands in a queue; `last_timestamp` is the store time (ms) of its last consumed message.

    `pull_offset` (5.x) is up to where it was given messages; tools take what is between the two for being consumed.
    """

    broker_offset: Int64 = 0
    consumer_offset: Int64 = 0
    pull_offset: Int64 | None = None
    last_timestamp: Int64 = 0


class ConsumeStats(Body):
    """Where a group stands in all queues, and its messages per second."""

    consume_tps: float = 0.0
    offset_table: dict[MessageQueue, OffsetWrapper] = field(default_factory=dict)


class ConsumeStatsList(Body):
    """Where all groups of a broker stand; `total_diff` counts the messages that they have not got yet."""

    broker_addr: str | None = None
    consume_stats_list: list[dict[str, list[ConsumeStats]]] = field(default_factory=list)
    total_diff: Int64 = 0


class QueueTimeSpan(Body, kw_only=True):
    """Store times (ms) of the first, the last and the last consumed message of a queue; `delay_time` in ms."""

    consume_time_stamp: Int64 = 0
    delay_time: Int64 = 0
    max_time_stamp: Int64 = 0
    message_queue: MessageQueue
    min_time_stamp: Int64 = 0


class QueryConsumeTimeSpanBody(Body):
    """The time spans of a topic's queues."""

    consume_time_span_set: list[QueueTimeSpan] = field(default_factory=list)


class QuerySubscriptionResponseBody(Body):
    """5.x: what a group wants of a topic."""

    group: str
    subscription_data: SubscriptionData | None = None
    topic: str | None = None


class GroupForbidden(Body):
    """5.x: whether a group may read a topic."""

    group: str
    readable: bool
    topic: str
