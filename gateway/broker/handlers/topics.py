"""Topics as tools see and change them.

A change is on disk, and known to the name servers that can be reached, before it is answered: a client that creates a
topic and sends to it right away finds its route.
"""

from collections.abc import Mapping

import msgspec
import structlog

from gateway.broker.handlers.admin import delete_in_slices, known_topic, queues_of, refuse_on_slave
from gateway.broker.names import NameTable, is_system_topic
from gateway.broker.state import Broker
from gateway.routing import Call, Refused, Reply, Routes
from protocol import bodies
from protocol.codes import ResponseCode
from protocol.requests.topics import (
    CleanUnusedTopic,
    DeleteTopicInBroker,
    GetAllTopicConfig,
    GetSystemTopicListFromBroker,
    GetTopicConfig,
    GetTopicStatsInfo,
    QueryTopicConsumeByWho,
    UpdateAndCreateTopic,
    UpdateAndCreateTopicList,
)

log = structlog.get_logger(__name__)
routes = Routes()

MESSAGE_TYPE = "message.type"
"""The attribute of 5.x that tools show; the others change how a topic is stored, which this broker does not do."""


@routes.handle
async def update_and_create_topic(broker: Broker, call: Call[UpdateAndCreateTopic]) -> None:
    """Creates or changes one topic. The order flag is the name servers' and is not taken from here, as in 4.9."""
    header = call.header
    try:
        filter_type = bodies.TopicFilterType(header.topic_filter_type)
    except ValueError:
        remark = f"topicFilterType {header.topic_filter_type}: allowed are {', '.join(bodies.TopicFilterType)}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
    pairs = (pair.partition("=") for pair in (header.attributes or "").split(",") if pair)
    config = bodies.TopicConfig(
        topic_name=header.topic,
        read_queue_nums=header.read_queue_nums,
        write_queue_nums=header.write_queue_nums,
        perm=header.perm,
        topic_filter_type=filter_type,
        topic_sys_flag=header.topic_sys_flag or 0,
        attributes={name.strip(): value.strip() for name, _, value in pairs},
    )
    await _update(broker, [config], call.connection.remote_address)


@routes.handle
async def update_and_create_topic_list(broker: Broker, call: Call[UpdateAndCreateTopicList]) -> None:
    """Creates or changes many topics, all or none."""
    configs = bodies.TopicConfigList.decode(call.body).topic_config_list
    await _update(broker, configs, call.connection.remote_address)


async def _update(broker: Broker, configs: list[bodies.TopicConfig], asker: str) -> None:
    refuse_on_slave(broker)
    names = broker.topics.update(_with_attributes(broker, config) for config in configs)
    log.info("topics_updated", topics=names, by=asker)
    await broker.registration.announce()


def _with_attributes(broker: Broker, config: bodies.TopicConfig) -> bodies.TopicConfig:
    """The config with the attributes that the topic has after the asked-for changes: `+name` sets, `-name` drops."""
    known = broker.topics.get(config.topic_name)
    attributes = dict(known.attributes or {}) if known is not None else {}
    for change, value in (config.attributes or {}).items():
        sign, name = change[:1], change[1:]
        if name != MESSAGE_TYPE or sign not in ("+", "-"):
            remark = f"attribute {change}: this broker knows +{MESSAGE_TYPE}=value and -{MESSAGE_TYPE}"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        attributes.pop(name, None)
        if sign == "+":
            attributes[name] = value
    return msgspec.structs.replace(config, attributes=attributes or None)


@routes.handle
async def delete_topic_in_broker(broker: Broker, call: Call[DeleteTopicInBroker]) -> None:
    """Forgets a topic, its queues and the offsets of groups in it; unknown topics are gone already."""
    refuse_on_slave(broker)
    topic = call.header.topic
    known = broker.topics.delete(topic)
    broker.offsets.remove_topic(topic)
    broker.metrics.forget_topics({topic})
    queues = await delete_in_slices(lambda limit: broker.store.delete_queues(topic, limit))
    log.info("topic_deleted", topic=topic, known=known, queues=queues, by=call.connection.remote_address)


@routes.handle
async def clean_unused_topic(broker: Broker, call: Call[CleanUnusedTopic]) -> None:
    """Removes the queues of topics that are in the table no more; on a slave in that of its master as it is now."""
    seen = _stored_topics(broker)
    sync = broker.replication.sync
    if sync is not None and not await sync.sync_topics():
        raise Refused(ResponseCode.SYSTEM_ERROR, "the master does not say which topics there are")
    used = _UsedTopics(broker.topics, seen)
    queues = await delete_in_slices(lambda limit: broker.store.delete_unused_queues(used, limit))
    topics = seen - _stored_topics(broker)
    broker.metrics.forget_topics(topics)
    log.info("unused_topics_removed", topics=sorted(topics), queues=queues, by=call.connection.remote_address)


def _stored_topics(broker: Broker) -> set[str]:
    return {topic for topic, _ in broker.store.queues()}


class _UsedTopics:
    """The topics whose queues stay: those in the table when it is asked, the broker's own, and those not `seen`.

    A slave may get messages of a topic that is younger than the table it just copied.
    """

    def __init__(self, table: NameTable, seen: set[str]) -> None:
        self._table = table
        self._seen = seen

    def __contains__(self, topic: object) -> bool:
        return not isinstance(topic, str) or topic not in self._seen or topic in self._table or is_system_topic(topic)


@routes.handle
def get_all_topic_config(broker: Broker, call: Call[GetAllTopicConfig]) -> Reply:
    """The whole table, for slaves and tools."""
    return Reply(body=broker.topics.encode(pretty=False))


@routes.handle
def get_topic_config(broker: Broker, call: Call[GetTopicConfig]) -> Reply:
    """One topic, for tools of 5.x."""
    topic = call.header.topic
    config = broker.topics.get(topic)
    if config is None:
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {topic}")
    return Reply(body=config.encode())


@routes.handle
async def get_topic_stats_info(broker: Broker, call: Call[GetTopicStatsInfo]) -> Reply:
    """How far each queue of a topic reaches, and when its last message came."""
    queues = queues_of(broker, known_topic(broker, call.header.topic))

    def measure() -> Mapping[bodies.MessageQueue, bodies.TopicOffset]:
        return {queue: _reach(broker, queue) for queue in queues}

    table = dict(await broker.storage.read_cold(measure))
    return Reply(body=bodies.TopicStatsTable(offset_table=table).encode())


def _reach(broker: Broker, queue: bodies.MessageQueue) -> bodies.TopicOffset:
    store, topic, queue_id = broker.store, queue.topic, queue.queue_id
    end = store.max_offset(topic, queue_id)
    return bodies.TopicOffset(
        min_offset=store.min_offset(topic, queue_id),
        max_offset=end,
        last_update_timestamp=store.store_time_at(topic, queue_id, end - 1) if end > 0 else 0,
    )


@routes.handle
def query_topic_consume_by_who(broker: Broker, call: Call[QueryTopicConsumeByWho]) -> Reply:
    """The groups that subscribe to a topic now or have offsets in it."""
    topic = call.header.topic
    groups = dict.fromkeys(broker.clients.groups_subscribing(topic) + broker.offsets.groups_of(topic))
    return Reply(body=bodies.GroupList(group_list=list(groups)).encode())


@routes.handle
def get_system_topic_list_from_broker(broker: Broker, call: Call[GetSystemTopicListFromBroker]) -> Reply:
    """The topics that tools keep out of their lists of user topics."""
    return Reply(body=bodies.TopicList(topic_list=broker.topics.system_topics()).encode())
