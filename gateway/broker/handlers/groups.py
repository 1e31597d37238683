"""Consumer groups as tools see and change them: their settings, and where they stand."""

from collections.abc import Iterable

import msgspec
import structlog

from gateway.broker.handlers.admin import known_topic, queues_of, refuse_on_slave
from gateway.broker.state import Broker
from gateway.routing import Call, Refused, Reply, Routes
from protocol import bodies
from protocol.codes import ResponseCode
from protocol.requests.groups import (
    DeleteSubscriptiongroup,
    GetAllSubscriptiongroupConfig,
    GetBrokerConsumeStats,
    GetConsumeStats,
    GetSubscriptiongroupConfig,
    QueryConsumeTimeSpan,
    QuerySubscriptionByConsumer,
    QueryTopicsByConsumer,
    UpdateAndCreateSubscriptiongroup,
    UpdateAndCreateSubscriptiongroupList,
)
from protocol.requests.offsets import CloneGroupOffset

log = structlog.get_logger(__name__)
routes = Routes()

ATTRIBUTES = "attributes"
"""The member of 5.x that says what is to change in a group's attributes, not what they shall be."""


# ---- settings


@routes.handle
def update_and_create_subscriptiongroup(broker: Broker, call: Call[UpdateAndCreateSubscriptiongroup]) -> None:
    """Creates or changes one group."""
    _update(broker, [bodies.SubscriptionGroupConfig.decode(call.body)], call.connection.remote_address)


@routes.handle
def update_and_create_subscriptiongroup_list(broker: Broker, call: Call[UpdateAndCreateSubscriptiongroupList]) -> None:
    """Creates or changes many groups, all or none."""
    configs = bodies.SubscriptionGroupList.decode(call.body).group_config_list
    _update(broker, configs, call.connection.remote_address)


def _update(broker: Broker, configs: list[bodies.SubscriptionGroupConfig], asker: str) -> None:
    refuse_on_slave(broker)
    broker.groups.update(_with_attributes(broker, config) for config in configs)
    log.info("groups_updated", groups=[config.group_name for config in configs], by=asker)


def _with_attributes(broker: Broker, config: bodies.SubscriptionGroupConfig) -> bodies.SubscriptionGroupConfig:
    """The config with the attributes that the group has: those of a request are changes, and 5.3.3 knows none."""
    others = config.others or {}
    if others.get(ATTRIBUTES):
        remark = f"group {config.group_name}: this broker knows no attributes of groups that could be changed"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    known = broker.groups.get(config.group_name)
    attributes = known.others.get(ATTRIBUTES) if known is not None and known.others else None
    return msgspec.structs.replace(config, others=others | {ATTRIBUTES: attributes}) if attributes else config


@routes.handle
def get_all_subscriptiongroup_config(broker: Broker, call: Call[GetAllSubscriptiongroupConfig]) -> Reply:
    """The whole table, for slaves and tools."""
    return Reply(body=broker.groups.encode(pretty=False))


@routes.handle
def get_subscriptiongroup_config(broker: Broker, call: Call[GetSubscriptiongroupConfig]) -> Reply:
    """One group, for tools of 5.x."""
    group = call.header.group
    config = broker.groups.get(group)
    if config is None:
        remark = f"No group in this broker. group: {group}"
        raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
    return Reply(body=config.encode())


@routes.handle
def delete_subscriptiongroup(broker: Broker, call: Call[DeleteSubscriptiongroup]) -> None:
    """Forgets a group's settings and, if asked, where it stands; unknown groups are gone already."""
    refuse_on_slave(broker)
    header = call.header
    known = broker.groups.delete(header.group_name)
    if header.remove_offset or header.clean_offset:
        broker.offsets.remove_group(header.group_name)
    broker.metrics.forget_group(header.group_name)
    log.info("group_deleted", group=header.group_name, known=known, by=call.connection.remote_address)


# ---- where groups stand


@routes.handle
async def get_consume_stats(broker: Broker, call: Call[GetConsumeStats]) -> Reply:
    """Where a group stands in the queues of one topic, of several, or of all in which it has offsets."""
    header = call.header
    if header.topic_list:
        topics = [topic for topic in header.topic_list.split(";") if topic]
    elif header.topic and header.topic.strip():
        topics = [header.topic]
    else:
        topics = broker.offsets.topics_of(header.consumer_group)
    positions = _Positions(broker, header.consumer_group, topics)
    stats = bodies.ConsumeStats(
        consume_tps=positions.per_second, offset_table=await broker.storage.read_cold(positions.measure)
    )
    return Reply(body=stats.encode())


@routes.handle
async def get_broker_consume_stats(broker: Broker, call: Call[GetBrokerConsumeStats]) -> Reply:
    """Where all groups stand, one entry per group and topic."""
    wanted = [
        (group, _Positions(broker, group, [topic]))
        for group in broker.groups.names()
        for topic in broker.offsets.topics_of(group)
        if broker.topics.is_ordered(topic) or not call.header.is_order
    ]
    tables = await broker.storage.read_cold(lambda: [each.measure() for _, each in wanted])
    stats: dict[str, list[bodies.ConsumeStats]] = {}
    behind = 0
    for (group, positions), table in zip(wanted, tables, strict=True):
        entry = bodies.ConsumeStats(consume_tps=positions.per_second, offset_table=table)
        stats.setdefault(group, []).append(entry)
        behind += sum(place.broker_offset - place.consumer_offset for place in table.values())
    body = bodies.ConsumeStatsList(
        broker_addr=f"{broker.options.broker_ip1}:{broker.options.listen_port}",
        consume_stats_list=[{group: of_group} for group, of_group in stats.items()],
        total_diff=behind,
    )
    return Reply(body=body.encode())


class _Positions:
    """Where a group stands in some topics: what the tables say is read at once, what the log says in a thread."""

    def __init__(self, broker: Broker, group: str, topics: Iterable[str]) -> None:
        self._store = broker.store
        self._consumed: list[tuple[bodies.MessageQueue, int, int]] = []
        self.per_second = 0.0
        """Messages that the group was given in the last minute, per second."""
        online = broker.clients.consumer_group(group)
        for topic in topics:
            config = broker.topics.get(topic)
            if config is None or (online is not None and online.subscriptions and topic not in online.subscriptions):
                continue  # what an online group subscribes to no more is left out, as official does
            self.per_second += broker.traffic.per_second("GROUP_GET_NUMS", f"{topic}@{group}")
            consumed = broker.offsets.queues(group, topic)
            pulled = broker.offsets.pulled_queues(group, topic)
            self._consumed += [
                (queue, consumed.get(queue.queue_id, 0), pulled.get(queue.queue_id, 0))
                for queue in queues_of(broker, config)
            ]

    def measure(self) -> dict[bodies.MessageQueue, bodies.OffsetWrapper]:
        """The group's place in each queue; in any thread."""
        return {queue: self._place(queue, offset, pulled) for queue, offset, pulled in self._consumed}

    def _place(self, queue: bodies.MessageQueue, offset: int, pulled: int) -> bodies.OffsetWrapper:
        last = self._store.store_time_at(queue.topic, queue.queue_id, offset - 1) if offset > 0 else 0
        return bodies.OffsetWrapper(
            broker_offset=self._store.max_offset(queue.topic, queue.queue_id),
            consumer_offset=offset,
            pull_offset=max(offset, pulled),
            last_timestamp=max(last, 0),
        )


@routes.handle
async def query_consume_time_span(broker: Broker, call: Call[QueryConsumeTimeSpan]) -> Reply:
    """For each queue of a topic the store times of its first and last message and of what the group consumed last."""
    header = call.header
    queues = queues_of(broker, known_topic(broker, header.topic))
    consumed = broker.offsets.queues(header.group, header.topic)
    now_ms = broker.now_ms()

    def measure(queue: bodies.MessageQueue) -> bodies.QueueTimeSpan:
        def time_at(offset: int) -> int:
            return broker.store.store_time_at(queue.topic, queue.queue_id, offset)

        end = broker.store.max_offset(queue.topic, queue.queue_id)
        offset = consumed.get(queue.queue_id, -1)
        first_ms = broker.store.earliest_store_time(queue.topic, queue.queue_id)
        return bodies.QueueTimeSpan(
            message_queue=queue,
            min_time_stamp=first_ms,
            max_time_stamp=time_at(end - 1),
            consume_time_stamp=time_at(offset - 1) if offset > 0 else first_ms,
            delay_time=now_ms - time_at(offset) if 0 <= offset < end else 0,
        )

    spans = await broker.storage.read_cold(lambda: [measure(queue) for queue in queues])
    return Reply(body=bodies.QueryConsumeTimeSpanBody(consume_time_span_set=spans).encode())


@routes.handle
def clone_group_offset(broker: Broker, call: Call[CloneGroupOffset]) -> None:
    """Lets one group go on where another stands, in one topic or in all of that group's topics."""
    header = call.header
    broker.groups.find(header.dest_group)
    topics = [header.topic] if header.topic else broker.offsets.topics_of(header.src_group)
    for topic in topics:
        if topic in broker.topics:
            broker.offsets.clone(header.src_group, header.dest_group, topic)


# ---- what groups consume


@routes.handle
def query_topics_by_consumer(broker: Broker, call: Call[QueryTopicsByConsumer]) -> Reply:
    """The topics in which a group has offsets."""
    body = bodies.TopicList(
        topic_list=broker.offsets.topics_of(call.header.group),
        broker_addr=f"{broker.options.broker_ip1}:{broker.options.listen_port}",
    )
    return Reply(body=body.encode())


@routes.handle
def query_subscription_by_consumer(broker: Broker, call: Call[QuerySubscriptionByConsumer]) -> Reply:
    """What the connected members of a group want of a topic."""
    header = call.header
    body = bodies.QuerySubscriptionResponseBody(
        group=header.group,
        topic=header.topic,
        subscription_data=broker.clients.subscription(header.group, header.topic or ""),
    )
    return Reply(body=body.encode())
