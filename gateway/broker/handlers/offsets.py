"""Where groups stand, and how far queues reach: the offsets that consumers start and go on with.

What has to look into the log (the store time of a message) does so in a thread, so that a cold disk delays nobody
else.
"""

from functools import partial

from gateway.broker.handlers.admin import delivered_offsets
from gateway.broker.offsets import NOT_FOUND
from gateway.broker.state import Broker
from gateway.routing import Call, Later, Refused, Reply, Routes
from protocol.codes import ResponseCode
from protocol.requests.offsets import (
    GetAllConsumerOffset,
    GetAllDelayOffset,
    GetEarliestMsgStoretime,
    GetMaxOffset,
    GetMinOffset,
    OffsetReply,
    QueryConsumerOffset,
    SearchOffsetByTimestamp,
    TimestampReply,
    UpdateConsumerOffset,
)
from store.consumequeue import Boundary
from store.engine import ColdRead
from store.options import BrokerRole

routes = Routes()

LARGEST_OFFSET = 2**63 - 1
_BOUNDARIES: dict[str, Boundary] = {"LOWER": "LOWER", "UPPER": "UPPER"}


@routes.handle
def query_consumer_offset(broker: Broker, call: Call[QueryConsumerOffset]) -> OffsetReply | Later:
    """Where the group goes on in a queue.

    A group without an offset starts at 0 if the whole queue is recent (it begins at 0, within the part of the log that
    counts as in memory): it then gets what was sent before it came, which clients rely on. Otherwise
    QUERY_NOT_FOUND lets the client decide by its consumeFromWhere.
    """
    header = call.header
    offset = broker.offsets.query(header.consumer_group, header.topic, header.queue_id)
    if offset != NOT_FOUND:
        return OffsetReply(offset=offset)
    if header.set_zero_if_not_found is False:
        raise _no_offset()
    try:
        return _first_offset(broker, header, allow_cold=False)
    except ColdRead:
        return call.wait(broker.storage.read_cold, partial(_first_offset, broker, header, allow_cold=True))


def _first_offset(broker: Broker, header: QueryConsumerOffset, *, allow_cold: bool) -> OffsetReply:
    """0 for a queue that is recent as a whole; raises Refused for others, ColdRead if it would have to wait."""
    if broker.store.min_offset(header.topic, header.queue_id) > 0:
        raise _no_offset()
    first = broker.store.get(header.topic, header.queue_id, 0, 1, matches=None, allow_cold=allow_cold)
    if first.fell_behind_memory:
        raise _no_offset()
    return OffsetReply(offset=0)


def _no_offset() -> Refused:
    return Refused(ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first")


@routes.handle
def update_consumer_offset(broker: Broker, call: Call[UpdateConsumerOffset]) -> None:
    """Notes where the group goes on; never beyond the end of the queue, never for a queue that does not exist."""
    header = call.header
    topic = broker.topics.get(header.topic)
    if topic is None:
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist")
    if not 0 <= header.queue_id < max(topic.read_queue_nums, topic.write_queue_nums):
        remark = f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}] has {topic.read_queue_nums} queues"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    broker.groups.find(header.consumer_group)
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        ceiling = LARGEST_OFFSET  # its log may be behind what consumers got from the master
    else:
        ceiling = broker.store.max_offset(header.topic, header.queue_id)
    broker.offsets.commit(header.consumer_group, header.topic, header.queue_id, header.commit_offset, ceiling=ceiling)


@routes.handle
def get_max_offset(broker: Broker, call: Call[GetMaxOffset]) -> OffsetReply:
    """The offset that the next message will get; 0 for an unknown queue."""
    return OffsetReply(offset=broker.store.max_offset(call.header.topic, call.header.queue_id))


@routes.handle
def get_min_offset(broker: Broker, call: Call[GetMinOffset]) -> OffsetReply:
    """The offset of the oldest message; 0 for an unknown queue."""
    return OffsetReply(offset=broker.store.min_offset(call.header.topic, call.header.queue_id))


@routes.handle
async def search_offset_by_timestamp(broker: Broker, call: Call[SearchOffsetByTimestamp]) -> OffsetReply:
    """The message stored at a time: what 4.x clients get is the nearest one, 5.x clients may name a boundary."""
    header = call.header
    boundary = _BOUNDARIES.get((header.boundary_type or "").upper(), "NEAREST")
    search = partial(broker.store.offset_by_time, header.topic, header.queue_id, header.timestamp, boundary)
    return OffsetReply(offset=await broker.storage.read_cold(search))


@routes.handle
async def get_earliest_msg_storetime(broker: Broker, call: Call[GetEarliestMsgStoretime]) -> TimestampReply:
    """When the oldest message of the queue was stored; -1 without one."""
    read = partial(broker.store.earliest_store_time, call.header.topic, call.header.queue_id)
    return TimestampReply(timestamp=await broker.storage.read_cold(read))


@routes.handle
def get_all_consumer_offset(broker: Broker, call: Call[GetAllConsumerOffset]) -> Reply:
    """All groups' offsets, for slaves."""
    return Reply(body=broker.offsets.encode_for_slaves())


@routes.handle
def get_all_delay_offset(broker: Broker, call: Call[GetAllDelayOffset]) -> Reply:
    """How far each delay level is delivered, for slaves."""
    return Reply(body=delivered_offsets(broker).encode())
