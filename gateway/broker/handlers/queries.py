"""Looking at single messages, for tools and for clients that ask by message id. Reads run in a thread."""

from functools import partial

from gateway.broker.state import Broker
from gateway.routing import Call, Refused, Reply, Routes
from protocol.codes import ResponseCode
from protocol.requests.queries import ViewMessageById

routes = Routes()


@routes.handle
async def view_message_by_id(broker: Broker, call: Call[ViewMessageById]) -> Reply:
    """The record that begins at the commitlog offset of an offset message id; an offset inside a record is refused."""
    offset = call.header.offset
    message = await broker.storage.read_cold(partial(broker.store.message_at, offset))
    if message is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {offset}")
    return Reply(body=message.raw)
