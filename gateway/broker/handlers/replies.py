"""SEND_REPLY_MESSAGE and SEND_REPLY_MESSAGE_V2: a consumer's answer on its way to the producer that asked.

The producer is found by the client id that its request carried along; it gets the reply at once and says that it has
it. That decides the answer to the consumer. The reply is stored, too (storeReplyMessageEnable), for whoever looks at
the reply topic; as with official brokers that fails without a word, and does not happen on a slave.
"""

import structlog
import trio

from gateway.broker.ownmessages import put
from gateway.broker.state import Broker
from gateway.connection import ConnectionClosed
from gateway.routing import Call, Reply, Routes
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import NewMessage, format_properties, parse_properties
from protocol.requests.send import PushReplyMessageToClient, SendReplyMessage, SendReplyMessageV2
from store.errors import StoreError
from store.options import BrokerRole

log = structlog.get_logger(__name__)
routes = Routes()

PUSH_SECONDS = 10.0


@routes.handle
async def send_reply_message(broker: Broker, call: Call[SendReplyMessage]) -> Reply:
    """Pushes the reply to the producer that waits for it."""
    return await _reply(broker, call)


@routes.handle
async def send_reply_message_v2(broker: Broker, call: Call[SendReplyMessageV2]) -> Reply:
    """The same under short names."""
    return await _reply(broker, call)


async def _reply(broker: Broker, call: Call[SendReplyMessage] | Call[SendReplyMessageV2]) -> Reply:
    header = call.header
    message = None
    if broker.store_options.broker_role is not BrokerRole.SLAVE:
        message = broker.incoming.accept(header, call.command, call.connection)
    failure = await _push(broker, call)
    answer = broker.send_replies.header("0", header.queue_id, 0)
    if message is not None and broker.options.store_reply_message_enable and await _store(broker, message):
        message_id = broker.incoming.message_id(message.physical_offset)
        answer = broker.send_replies.header(message_id, message.queue_id, message.queue_offset)
    if failure:
        return Reply(answer, code=ResponseCode.SYSTEM_ERROR, remark=failure)
    return Reply(answer)


async def _push(broker: Broker, call: Call[SendReplyMessage] | Call[SendReplyMessageV2]) -> str | None:
    """Hands the reply to its producer; returns why that failed."""
    header = call.header
    properties = parse_properties(header.properties or "")
    client_id = properties.get("REPLY_TO_CLIENT")
    if client_id is None:
        return "REPLY_TO_CLIENT is null, can not reply message"
    client = broker.clients.find_client(client_id)
    if client is None:
        return f"push reply message fail, channel of <{client_id}> not found."
    now = broker.now_ms()
    properties["PUSH_REPLY_TIME"] = str(now)
    push = PushReplyMessageToClient(
        producer_group=header.producer_group,
        topic=header.topic,
        default_topic=header.default_topic,
        default_topic_queue_nums=header.default_topic_queue_nums,
        queue_id=header.queue_id,
        sys_flag=header.sys_flag,
        born_timestamp=header.born_timestamp,
        flag=header.flag,
        born_host=call.connection.remote_address,
        store_host=f"{broker.options.broker_ip1}:{broker.options.listen_port}",
        store_timestamp=now,
        properties=format_properties(properties),
        reconsume_times=header.reconsume_times or 0,
        unit_mode=header.unit_mode,
    )
    question = Command(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, header=push, body=call.body)
    try:
        answer = await client.request(question, PUSH_SECONDS)
    except trio.TooSlowError:
        return f"push reply message to {client_id} fail: no answer within {PUSH_SECONDS:.0f} s"
    except ConnectionClosed as error:
        return f"push reply message to {client_id} fail: {error}"
    if answer.code != ResponseCode.SUCCESS:
        return f"push reply message to {client_id} fail: {answer.remark}"
    return None


async def _store(broker: Broker, message: NewMessage) -> bool:
    try:
        end = put(broker, [message])
    except StoreError as error:
        log.warning("reply_not_stored", topic=message.topic, reason=str(error))
        return False
    if message.wait and broker.storage.promises_more_than_append:
        await broker.storage.confirm(end)
    return True
