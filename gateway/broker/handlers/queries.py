"""Looking at single messages and queue entries, for tools and for clients that ask by id. Reads run in a thread."""

from functools import partial

from gateway.broker.state import Broker
from gateway.broker.subscriptions import is_tag_type, tag_matcher
from gateway.routing import Call, Refused, Reply, Routes
from protocol.bodies import ConsumeQueueData, QueryConsumeQueueResponseBody
from protocol.codes import ResponseCode
from protocol.requests.queries import QueryConsumeQueue, QueryMessage, QueryMessageReply, ViewMessageById
from store.queuefiles import BLANK_SIZE

routes = Routes()

MAX_ANSWER_BYTES = 8 << 20  # clients take frames of 16 MiB
MAX_ENTRIES = 10_000


@routes.handle
async def query_message(broker: Broker, call: Call[QueryMessage]) -> Reply:
    """The newest messages with a key, or with a client's message id; as many as an answer may hold.

    Others whose keys have an equal hash may be among them: clients compare, as they do with the official broker.
    """
    header, options = call.header, broker.store_options
    wanted = options.default_query_max_num if header.unique_key_query else header.max_num
    count = max(0, min(wanted, options.max_msgs_num_batch))
    find = partial(
        broker.store.query_keys, header.topic, header.key, count, header.begin_timestamp, header.end_timestamp
    )
    result = await broker.storage.read_cold(find)
    reply = QueryMessageReply(
        index_last_update_timestamp=result.index_timestamp, index_last_update_phyoffset=result.index_offset
    )
    records = _as_many_as_fit(result.records)
    if not records:
        remark = "can not find message, maybe time range not correct"
        return Reply(reply, code=ResponseCode.QUERY_NOT_FOUND, remark=remark)
    return Reply(reply, body=b"".join(records))


def _as_many_as_fit(records: list[bytes]) -> list[bytes]:
    """The first of the records, the very first always: a single message fits any answer."""
    size = 0
    for number, record in enumerate(records):
        size += len(record)
        if number and size > MAX_ANSWER_BYTES:
            return records[:number]
    return records


@routes.handle
async def view_message_by_id(broker: Broker, call: Call[ViewMessageById]) -> Reply:
    """The record that begins at the commitlog offset of an offset message id; an offset inside a record is refused."""
    offset = call.header.offset
    message = await broker.storage.read_cold(partial(broker.store.message_at, offset))
    if message is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
    return Reply(body=message.raw)


@routes.handle
async def query_consume_queue(broker: Broker, call: Call[QueryConsumeQueue]) -> Reply:
    """Entries of a consume queue as they stand there; for a connected group, whether each passes its filter."""
    header, store = call.header, broker.store
    topic, queue_id = header.topic or "", header.queue_id
    if not store.has_queue(topic, queue_id):
        raise Refused(ResponseCode.SYSTEM_ERROR, f"{queue_id}@{topic} is not exist!")
    body = QueryConsumeQueueResponseBody(
        min_queue_index=store.min_offset(topic, queue_id), max_queue_index=store.max_offset(topic, queue_id)
    )
    passes = None
    if header.consumer_group is not None:
        body.subscription_data = broker.clients.subscription(header.consumer_group, topic)
        if body.subscription_data is None:
            body.filter_data = f"{header.consumer_group}@{topic} is not online!"
        elif is_tag_type(body.subscription_data.expression_type):
            passes = tag_matcher(body.subscription_data) or (lambda tags_code: True)
    if not body.min_queue_index <= header.index < body.max_queue_index:
        return Reply(body=body.encode(), remark=f"Index {header.index} of {queue_id}@{topic} is not exist!")
    count = min(header.count, MAX_ENTRIES, body.max_queue_index - header.index)
    read = partial(store.queue_units, topic, queue_id, header.index, max(count, 0))
    body.queue_data = [
        ConsumeQueueData(
            physic_offset=physical_offset,
            physic_size=size,
            tags_code=tags_code,
            eval=passes is not None and passes(tags_code),
        )
        for physical_offset, size, tags_code in await broker.storage.read_cold(read)
        if size != BLANK_SIZE
    ]
    return Reply(body=body.encode())
