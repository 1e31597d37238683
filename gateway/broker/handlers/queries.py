"""Looking at single messages, for tools and for clients that ask by message id. Reads run in a thread."""

from functools import partial

from gateway.broker.state import Broker
from gateway.routing import Call, Refused, Reply, Routes
from protocol.codes import ResponseCode
from protocol.requests.queries import QueryMessage, QueryMessageReply, ViewMessageById

routes = Routes()

MAX_ANSWER_BYTES = 8 << 20  # clients take frames of 16 MiB


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
