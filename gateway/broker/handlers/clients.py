"""Heartbeats, membership of groups, queue locks, and questions that are passed on to clients.

A heartbeat is applied before it is answered, because a consumer asks for the members of its group right after it and
takes no queue unless it is among them. Each change of a group's members or topics is told to all of its connections
(NOTIFY_CONSUMER_IDS_CHANGED), the one that caused it included.

Relays (GET_CONSUMER_RUNNING_INFO, CONSUME_MESSAGE_DIRECTLY) carry a tool's question to one consumer and its answer back
untouched. C++ consumers do not answer the second; the tool then gets CONSUME_MSG_TIMEOUT.
"""

from collections.abc import Iterable, Mapping

import structlog
import trio

from gateway.broker import names
from gateway.broker.members import GroupChange, Member
from gateway.broker.state import Broker
from gateway.broker.subscriptions import is_tag_type
from gateway.connection import Connection, ConnectionClosed
from gateway.routing import Call, Refused, Reply, Routes
from protocol import bodies
from protocol.codes import LanguageCode, RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import parse_message_id
from protocol.requests.clients import (
    CheckClientConfig,
    ConsumeMessageDirectly,
    GetAllProducerInfo,
    GetConsumerConnectionList,
    GetConsumerListByGroup,
    GetConsumerRunningInfo,
    GetProducerConnectionList,
    HeartBeat,
    LockBatchMq,
    NotifyConsumerIdsChanged,
    UnlockBatchMq,
    UnregisterClient,
)

log = structlog.get_logger(__name__)
routes = Routes()

MAX_HEARTBEAT_BYTES = 1 << 20
MAX_CLIENT_ID_LENGTH = 1024
RELAY_SECONDS = 10.0
UNDERSTANDS_RELAYS = 62
"""Clients from V3_1_8 on answer relayed questions."""
UNIT_SUBSCRIPTION = 2

_LANGUAGE_NAMES = {language.value: language.name for language in LanguageCode}


# ---- heartbeats


@routes.handle
def heart_beat(broker: Broker, call: Call[HeartBeat]) -> None:
    """Registers or renews a client's groups; makes the groups and their retry topics where that is allowed."""
    if len(call.body) > MAX_HEARTBEAT_BYTES:
        remark = f"a heartbeat of {len(call.body)} bytes, the limit is {MAX_HEARTBEAT_BYTES}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    beat = bodies.HeartbeatData.decode(call.body)
    producers = [producer.group_name for producer in beat.producer_data_set]
    _check_client_id(beat.client_id)
    for group in [consumer.group_name for consumer in beat.consumer_data_set] + producers:
        names.check_group(group)
    for consumer in beat.consumer_data_set:
        for subscription in consumer.subscription_data_set:
            if subscription.topic != names.retry_topic(consumer.group_name):  # clients add it, however long it gets
                _check_topic(broker, subscription.topic)
    changes, conflicts = broker.clients.heartbeat(
        call.connection, beat.client_id, call.language, call.version, beat.consumer_data_set, producers
    )
    for consumer in beat.consumer_data_set:
        _make_retry_topic(broker, consumer)
    for conflict in conflicts:
        log.warning(
            "subscriptions_differ",
            group=conflict.group,
            client=conflict.member,
            subscription=conflict.subscription,
            other_client=conflict.other_member,
            other_subscription=conflict.other_subscription,
        )
    _tell(broker, changes)


def _check_client_id(client_id: str) -> None:
    if len(client_id) > MAX_CLIENT_ID_LENGTH:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"the client id is longer than {MAX_CLIENT_ID_LENGTH} characters")


def _check_topic(broker: Broker, topic: str) -> None:
    """Refuses what can be no topic's name; a broker's own topics may be called as they like."""
    if topic not in broker.topics:
        names.check_topic(topic)


def _make_retry_topic(broker: Broker, consumer: bodies.ConsumerData) -> None:
    """The topic that takes what the group could not consume; not for a group that may not be, nor a name too long."""
    group = consumer.group_name
    topic = names.retry_topic(group)
    if topic in broker.topics or not names.is_topic(topic):
        return
    try:
        config = broker.groups.find(group)
        sys_flag = UNIT_SUBSCRIPTION if consumer.unit_mode else 0
        broker.topics.create_if_absent(topic, config.retry_queue_nums, topic_sys_flag=sys_flag)
    except Refused as refusal:
        log.warning("retry_topic_not_created", group=group, reason=refusal.remark)
    else:
        broker.registration.topic_changed(topic)


def _tell(broker: Broker, changes: Iterable[GroupChange]) -> None:
    """Lets the members of changed groups divide their queues anew, unless that is switched off."""
    if not broker.options.notify_consumer_ids_changed_enable:
        return
    for change in changes:
        config = broker.groups.get(change.group)
        if config is not None and not config.notify_consumer_ids_changed_enable:
            continue
        header = NotifyConsumerIdsChanged(consumer_group=change.group)
        for connection in change.connections:
            connection.notify(Command(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, header=header))


@routes.handle
def unregister_client(broker: Broker, call: Call[UnregisterClient]) -> None:
    """A client leaves its groups; the rest of them are told."""
    header = call.header
    _tell(broker, broker.clients.unregister(call.connection, header.producer_group, header.consumer_group))


def connection_closed(broker: Broker, connection: Connection) -> None:
    """Forgets a connection that has ended; the rest of its groups are told."""
    _tell(broker, broker.clients.disconnect(connection))


def expire_silent_clients(broker: Broker) -> None:
    """Ends memberships without heartbeats, and connections that were good for nothing else."""
    departures = broker.clients.expire()
    for connection in departures.silent:
        log.info("silent_client_closed", peer=connection.remote_address)
        connection.close()
    _tell(broker, departures.changes)


@routes.handle
def check_client_config(broker: Broker, call: Call[CheckClientConfig]) -> None:
    """Tells a consumer before it starts whether its expression can be served: tags can."""
    body = bodies.CheckClientRequestBody.decode(call.body)
    subscription = body.subscription_data
    names.check_group(body.group)
    _check_topic(broker, subscription.topic)
    if not is_tag_type(subscription.expression_type):
        remark = f"The broker does not support consumer to filter message by {subscription.expression_type}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)


# ---- who is connected


@routes.handle
def get_consumer_list_by_group(broker: Broker, call: Call[GetConsumerListByGroup]) -> Reply:
    """The client ids among which a group divides its queues."""
    group = broker.clients.consumer_group(call.header.consumer_group)
    if group is None:
        remark = f"no consumer for this group, {call.header.consumer_group}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    return Reply(body=bodies.ConsumerList(consumer_id_list=group.client_ids()).encode())


@routes.handle
def get_consumer_connection_list(broker: Broker, call: Call[GetConsumerConnectionList]) -> Reply:
    """The connections of a group and what they subscribe to, for tools."""
    group = broker.clients.consumer_group(call.header.consumer_group)
    if group is None:
        remark = f"the consumer group[{call.header.consumer_group}] not online"
        raise Refused(ResponseCode.CONSUMER_NOT_ONLINE, remark)
    body = bodies.ConsumerConnection(
        connection_set=_connections(group.members.values()),
        consume_from_where=group.consume_from_where,
        consume_type=group.consume_type,
        message_model=group.message_model,
        subscription_table=group.subscriptions,
    )
    return Reply(body=body.encode())


@routes.handle
def get_producer_connection_list(broker: Broker, call: Call[GetProducerConnectionList]) -> Reply:
    """The connections of a producer group, for tools."""
    members = broker.clients.producers(call.header.producer_group)
    if members is None:
        remark = f"the producer group[{call.header.producer_group}] not exist"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    return Reply(body=bodies.ProducerConnection(connection_set=_connections(members)).encode())


@routes.handle
def get_all_producer_info(broker: Broker, call: Call[GetAllProducerInfo]) -> Reply:
    """All producers by group, for tools and rocketmq-exporter."""
    table = {
        group: [
            bodies.ProducerInfo(
                client_id=member.client_id,
                language=_language(member),
                last_update_timestamp=member.last_heartbeat_ms,
                remote_ip=member.connection.remote_address,
                version=member.version,
            )
            for member in members
        ]
        for group, members in broker.clients.producer_groups().items()
    }
    return Reply(body=bodies.ProducerTableInfo(data=table).encode())


def _connections(members: Iterable[Member]) -> list[bodies.Connection]:
    return [
        bodies.Connection(
            client_addr=member.connection.remote_address,
            client_id=member.client_id,
            language=_language(member),
            version=member.version,
        )
        for member in members
    ]


def _language(member: Member) -> str:
    return _LANGUAGE_NAMES.get(member.language, LanguageCode.OTHER.name)


# ---- queue locks


@routes.handle
def lock_batch_mq(broker: Broker, call: Call[LockBatchMq]) -> Reply:
    """An orderly consumer locks queues; the answer lists those that it holds now."""
    body = bodies.LockBatchRequestBody.decode(call.body)
    names.check_group(body.consumer_group)
    _check_client_id(body.client_id)
    own = broker.options.broker_name
    queues = [queue for queue in body.mq_set if queue.broker_name == own and names.is_topic(queue.topic)]
    held = broker.locks.lock(body.consumer_group, body.client_id, queues)
    return Reply(body=bodies.LockBatchResponseBody(lock_ok_mq_set=held).encode())


@routes.handle
def unlock_batch_mq(broker: Broker, call: Call[UnlockBatchMq]) -> None:
    """An orderly consumer gives queues back."""
    body = bodies.LockBatchRequestBody.decode(call.body)
    names.check_group(body.consumer_group)
    broker.locks.unlock(body.consumer_group, body.client_id, body.mq_set)


# ---- questions for clients


@routes.handle
async def get_consumer_running_info(broker: Broker, call: Call[GetConsumerRunningInfo]) -> Reply:
    """What a consumer does right now, as it says itself."""
    header = call.header
    return await _relay(broker, call.command, header.consumer_group, header.client_id, call.command.fields, b"")


@routes.handle
async def consume_message_directly(broker: Broker, call: Call[ConsumeMessageDirectly]) -> Reply:
    """Has one consumer consume one stored message now; the answer says what it made of it."""
    header = call.header
    try:
        _, offset = parse_message_id(header.msg_id or "")
    except ValueError as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"msgId {header.msg_id}: {error}") from None
    message = await broker.storage.read_cold(lambda: broker.store.message_at(offset))
    if message is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
    fields = call.command.fields | {"brokerName": broker.options.broker_name}
    return await _relay(broker, call.command, header.consumer_group, header.client_id or "", fields, message.raw)


async def _relay(
    broker: Broker, command: Command, group: str, client_id: str, fields: Mapping[str, str], body: bytes
) -> Reply:
    member = broker.clients.find_consumer(group, client_id)
    if member is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"The Consumer <{group}> <{client_id}> not online")
    if member.version < UNDERSTANDS_RELAYS:
        remark = f"The Consumer <{client_id}> Version <{member.version}> too low to finish"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    question = Command(command.code, fields=dict(fields), body=body)
    try:
        answer = await member.connection.request(question, RELAY_SECONDS)
    except trio.TooSlowError:
        remark = f"consumer <{group}> <{client_id}> Timeout: no answer within {RELAY_SECONDS:.0f} s"
        raise Refused(ResponseCode.CONSUME_MSG_TIMEOUT, remark) from None
    except ConnectionClosed as error:
        remark = f"invoke consumer <{group}> <{client_id}> Exception: {error}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
    return Reply(body=answer.body, code=answer.code, remark=answer.remark)
