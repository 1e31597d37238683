"""END_TRANSACTION and RESUME_CHECK_HALF_MESSAGE: what becomes of half messages.

A commit puts the message where its producer wanted it, together with the op message that says so, in one append. What
is decided already is not decided again: a decision that comes twice, or after the answer to a check, changes nothing.
"""

from gateway.broker import names
from gateway.broker.ownmessages import copy_message, put, read_message, real_place
from gateway.broker.state import Broker
from gateway.broker.transactions import CHECK_TIMES, OP_TAG
from gateway.routing import LATER, Call, Later, Refused, Routes
from protocol.codes import FLAG_ONEWAY, ResponseCode
from protocol.message import (
    TRANSACTION_COMMIT,
    TRANSACTION_MASK,
    TRANSACTION_ROLLBACK,
    NewMessage,
    StoredMessage,
    parse_message_id,
    tags_code,
)
from protocol.requests.transactions import EndTransaction, ResumeCheckHalfMessage
from store.engine import ColdRead
from store.errors import StoreError
from store.options import BrokerRole

routes = Routes()

_OP_PROPERTIES = b"WAIT\x01true\x02TAGS\x01" + OP_TAG.encode()
_OP_TAGS_CODE = tags_code(OP_TAG)


@routes.handle
def end_transaction(broker: Broker, call: Call[EndTransaction]) -> Later | None:
    """A producer has decided about a half message, or says that it does not know yet."""
    header = call.header
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        raise Refused(ResponseCode.SLAVE_NOT_AVAILABLE, "this broker is a slave, end the transaction at its master")
    if header.commit_or_rollback not in (TRANSACTION_COMMIT, TRANSACTION_ROLLBACK):
        return None
    offset = header.commit_log_offset
    if broker.store.dispatched_offset <= offset < broker.storage.appended.offset:
        call.connection.start_waiting(_end_when_flushed, broker, call)
        return LATER
    try:
        record = broker.store.message_at(offset, allow_cold=False)
    except ColdRead:
        call.connection.start_waiting(_end_cold, broker, call)
        return LATER
    end = _end(broker, header, record)
    if end and broker.storage.promises_more_than_append and not call.command.flag & FLAG_ONEWAY:
        return call.wait(_confirmed, broker, end)
    return None


async def _confirmed(broker: Broker, end: int) -> None:
    """As official, the answer says that the transaction has ended, whichever promise could not be kept in time."""
    await broker.storage.confirm(end)


async def _end_when_flushed(broker: Broker, call: Call[EndTransaction]) -> None:
    """Under SYNC_FLUSH what was stored a moment ago is not known to its queue yet."""
    await broker.storage.flushed.wait_for(call.header.commit_log_offset + 1)
    await _end_cold(broker, call)


async def _end_cold(broker: Broker, call: Call[EndTransaction]) -> None:
    try:
        end = _end(broker, call.header, await read_message(broker, call.header.commit_log_offset))
        await broker.storage.confirm(end)
    except Refused as refusal:
        call.answer(refusal)
    else:
        call.answer(None)


def _end(broker: Broker, header: EndTransaction, record: StoredMessage | None) -> int:
    """Commits or rolls back the half message that was found at the place of the request.

    Returns the offset below which that stands in the log; 0 if it was decided before.
    """
    if record is None or record.topic != names.HALF_TOPIC:
        raise Refused(ResponseCode.SYSTEM_ERROR, "Find prepared transaction message failed")
    properties = record.properties
    if properties.get("PGROUP") != header.producer_group:
        raise Refused(ResponseCode.SYSTEM_ERROR, "The producer group wrong")
    if record.queue_offset != header.tran_state_table_offset:
        raise Refused(ResponseCode.SYSTEM_ERROR, "The transaction state table offset wrong")
    halves = broker.half_messages
    if halves.is_decided(record.queue_offset):
        return 0
    is_commit = header.commit_or_rollback == TRANSACTION_COMMIT
    messages = [_committed(broker, record, properties)] if is_commit else []
    latest = halves.latest(record.queue_offset)
    op_message = _op_message(broker, record.queue_offset if latest < 0 else latest)
    messages.append(op_message)
    try:
        end = put(broker, messages)
    except StoreError as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"SERVICE_NOT_AVAILABLE: {error}") from None
    halves.decided(op_message.queue_offset, [int(op_message.body)])
    broker.metrics.transaction_ended(properties.get("REAL_TOPIC", ""), is_commit=is_commit)
    return end


def _committed(broker: Broker, record: StoredMessage, properties: dict[str, str]) -> NewMessage:
    """The message as consumers get it; a delayed one begins its delay now."""
    place = real_place(properties)
    if place is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, "the half message names no topic and queue to go to")
    level = broker.delays.level(properties)
    topic, queue_id = broker.delays.schedule(properties, *place, level) if level > 0 else place
    return copy_message(
        record,
        topic,
        queue_id,
        properties,
        text=None if level > 0 else record.properties_data,
        sys_flag=record.sys_flag & ~TRANSACTION_MASK | TRANSACTION_COMMIT,
        prepared_transaction_offset=record.physical_offset,
    )


def _op_message(broker: Broker, half_offset: int) -> NewMessage:
    """Says for good that the half message at that queue offset is decided."""
    incoming = broker.incoming
    return NewMessage(
        topic=names.OP_HALF_TOPIC,
        queue_id=0,
        flag=0,
        sys_flag=incoming.own_host_flags,
        born_timestamp=broker.now_ms(),
        born_host=incoming.store_host,
        store_host=incoming.store_host,
        body=b"%d" % half_offset,
        properties=_OP_PROPERTIES,
        tags_code=_OP_TAGS_CODE,
        wait=False,
    )


@routes.handle
async def resume_check_half_message(broker: Broker, call: Call[ResumeCheckHalfMessage]) -> None:
    """A half message that was given up is asked about again, from the first check on."""
    failed = Refused(ResponseCode.SYSTEM_ERROR, "Put message back to RMQ_SYS_TRANS_HALF_TOPIC failed.")
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        raise Refused(ResponseCode.SYSTEM_ERROR, "this broker is a slave, resume the check at its master")
    try:
        _, offset = parse_message_id(call.header.msg_id or "")
    except ValueError:
        raise failed from None
    record = await read_message(broker, offset)
    if record is None or record.topic not in (names.TRANS_CHECK_MAX_TIME_TOPIC, names.HALF_TOPIC):
        raise failed
    properties = record.properties | {CHECK_TIMES: "0"}
    try:
        end = put(broker, [copy_message(record, names.HALF_TOPIC, 0, properties)])
    except StoreError:
        raise failed from None
    await broker.storage.confirm(end)
