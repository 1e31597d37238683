"""Moving a consumer group, and asking where its members stand: the broker passes both on to the consumers.

INVOKE_BROKER_TO_RESET_OFFSET looks up the offsets of a time and tells them to every member of the group
(RESET_CONSUMER_CLIENT_OFFSET, one-way); the members go on there and commit it, the broker's own table stays as it is.
Without a member the answer is CONSUMER_NOT_ONLINE, and tools change the table themselves. Names, order of the checks
and remarks are those of Broker2Client of 4.9.4.
"""

from functools import partial

import structlog
import trio

from gateway.broker.members import Member
from gateway.broker.offsets import NOT_FOUND
from gateway.broker.state import Broker
from gateway.connection import ConnectionClosed
from gateway.routing import Call, Refused, Reply, Routes
from protocol import bodies
from protocol.codes import LanguageCode, RequestCode, ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from protocol.requests.offsets import (
    GetConsumerStatusFromClient,
    InvokeBrokerToGetConsumerStatus,
    InvokeBrokerToResetOffset,
    ResetConsumerClientOffset,
)
from store.options import BrokerRole

log = structlog.get_logger(__name__)
routes = Routes()

STATUS_SECONDS = 5.0
TO_THE_END = -1
"""The timestamp that stands for the end of each queue."""


@routes.handle
async def invoke_broker_to_reset_offset(broker: Broker, call: Call[InvokeBrokerToResetOffset]) -> Reply:
    """Sends the members of a group to a time; without `is_force` none of them goes forward."""
    header = call.header
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        raise Refused(ResponseCode.SYSTEM_ERROR, "Can not reset offset in slave broker")
    table = await _offsets_to_go_to(broker, header)
    group = broker.clients.consumer_group(header.group)
    members = list(group.members.values()) if group is not None else []
    if not members:
        remark = (
            f"Consumer not online, so can not reset offset, Group: {header.group} Topic: {header.topic}"
            f" Timestamp: {header.timestamp}"
        )
        raise Refused(ResponseCode.CONSUMER_NOT_ONLINE, remark)
    body = bodies.ResetOffsetBody(offset_table=table)
    notice = body.encode() if call.language != LanguageCode.CPP else _for_cpp(table).encode()
    told = ResetConsumerClientOffset(
        topic=header.topic, group=header.group, timestamp=header.timestamp, is_force=header.is_force
    )
    for member in members:
        member.connection.notify(Command(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, header=told, body=notice))
    log.info("group_is_reset", group=header.group, topic=header.topic, members=len(members), timestamp=header.timestamp)
    return Reply(body=body.encode())


async def _offsets_to_go_to(broker: Broker, header: InvokeBrokerToResetOffset) -> dict[bodies.MessageQueue, int]:
    """Where the group shall go on in each queue, or in the one that the request names; raises Refused."""
    topic, group = header.topic, header.group
    config = broker.topics.get(topic)
    if config is None:
        remark = f"[reset-offset] reset offset failed, no topic in this broker. topic={topic}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    table = {}
    for queue_id in range(config.write_queue_nums) if header.queue_id < 0 else (header.queue_id,):
        present = broker.offsets.query(group, topic, queue_id)
        if present == NOT_FOUND:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"THe consumer group <{group}> not exist")
        offset = await _offset_at(broker, header, queue_id)
        queue = bodies.MessageQueue(broker_name=broker.options.broker_name, queue_id=queue_id, topic=topic)
        table[queue] = offset if header.is_force or offset < present else present
    return table


async def _offset_at(broker: Broker, header: InvokeBrokerToResetOffset, queue_id: int) -> int:
    if header.offset is not None and header.offset >= 0:
        return header.offset
    if header.timestamp == TO_THE_END:
        return broker.store.max_offset(header.topic, queue_id)
    search = partial(broker.store.offset_by_time, header.topic, queue_id, header.timestamp)
    return await broker.storage.read_cold(search)


def _for_cpp(table: dict[bodies.MessageQueue, int]) -> bodies.ResetOffsetBodyForC:
    return bodies.ResetOffsetBodyForC(
        offset_table=[
            bodies.MessageQueueForC(
                broker_name=queue.broker_name, offset=offset, queue_id=queue.queue_id, topic=queue.topic
            )
            for queue, offset in table.items()
        ]
    )


@routes.handle
async def invoke_broker_to_get_consumer_status(broker: Broker, call: Call[InvokeBrokerToGetConsumerStatus]) -> Reply:
    """The offsets as the members of a group, or the named one, see them; who does not answer is left out."""
    header = call.header
    group = broker.clients.consumer_group(header.group)
    members = list(group.members.values()) if group is not None else []
    if not members:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"No Any Consumer online in the consumer group: [{header.group}]")
    asked = [member for member in members if header.client_addr in (None, "", member.client_id)]
    answers: dict[str, dict[bodies.MessageQueue, int]] = {}
    async with trio.open_nursery() as nursery:
        for member in asked:
            nursery.start_soon(_ask_status, member, header, answers)
    return Reply(body=bodies.GetConsumerStatusBody(consumer_table=answers).encode())


async def _ask_status(
    member: Member,
    header: InvokeBrokerToGetConsumerStatus,
    answers: dict[str, dict[bodies.MessageQueue, int]],
) -> None:
    question = GetConsumerStatusFromClient(topic=header.topic, group=header.group)
    command = Command(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, header=question)
    try:
        answer = await member.connection.request(command, STATUS_SECONDS)
        if answer.code == ResponseCode.SUCCESS and answer.body:
            answers[member.client_id] = bodies.GetConsumerStatusBody.decode(answer.body).message_queue_table
    except (trio.TooSlowError, ConnectionClosed, RemoteProtocolError) as error:
        log.warning("consumer_status_unknown", group=header.group, client=member.client_id, reason=str(error))
