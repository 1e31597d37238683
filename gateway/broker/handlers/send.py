"""SEND_MESSAGE, SEND_MESSAGE_V2, SEND_BATCH_MESSAGE: all that one read of a socket brought is one append.

A send is answered when what the broker promises for it holds: at once under ASYNC_FLUSH and ASYNC_MASTER, else when
the flush and the slave have passed the end of the append. The receive loop does not wait for that: the next read's
messages are appended meanwhile, and one flush covers them all.

A slave on a fast network has often acknowledged an append by the time its answers are encoded. So a SYNC_MASTER looks
for that first and dispatches its messages then, while the producers have their answers already. No other task runs in
between: whoever asks after an answer finds the message.
"""

from time import perf_counter

from gateway.broker.incoming import asked_queue_id
from gateway.broker.state import Broker
from gateway.connection import Connection
from gateway.routing import Refused, Routes
from protocol.codes import FLAG_ONEWAY, RequestCode, ResponseCode
from protocol.command import Command, encode, response
from protocol.errors import RemoteProtocolError
from protocol.message import NewMessage
from protocol.requests.send import SendMessage, SendMessageV2, batch_header
from protocol.sendreply import Stored
from store.errors import StoreError

OVERLAPPED_REQUESTS = 48  # so many become two appends on a SYNC_MASTER, lest all producers wait at one time

routes = Routes()

_BATCH_CODE = RequestCode.SEND_BATCH_MESSAGE.value
_REMARKS = {
    ResponseCode.FLUSH_DISK_TIMEOUT: "stored, but not flushed in time: FLUSH_DISK_TIMEOUT",
    ResponseCode.SLAVE_NOT_AVAILABLE: "stored, but no slave is within reach: SLAVE_NOT_AVAILABLE",
    ResponseCode.FLUSH_SLAVE_TIMEOUT: "stored, but not replicated in time: FLUSH_SLAVE_TIMEOUT",
}


@routes.handle_batch(RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE)
def send_messages(broker: Broker, connection: Connection, commands: list[Command]) -> None:
    """Appends the messages of all these requests and answers each of them."""
    broker.storage.hear_slaves()
    started = perf_counter()
    count = step = len(commands)
    if count >= OVERLAPPED_REQUESTS and broker.storage.waits_for_slaves:
        step = (count + 1) // 2
    for begin in range(0, count, step):
        _send(broker, connection, commands[begin : begin + step], started)


def _send(broker: Broker, connection: Connection, commands: list[Command], started: float) -> None:
    """Plain sends in one append, apart from batches, which have their own."""
    incoming = broker.incoming
    is_guarded = incoming.is_guarded
    requests: list[Command] = []
    messages: list[NewMessage] = []
    for command in commands:
        try:
            header = command.header if type(command.header) is SendMessageV2 else _header(command)
            if is_guarded:
                incoming.check_writable(header.topic)
            if header.batch or command.code == _BATCH_CODE:
                batch = incoming.accept_batch(header, command, connection)
                _append(broker, connection, requests, messages, started)
                requests, messages = [], []
                _append_batch(broker, connection, command, batch, started)
            else:
                messages.append(incoming.accept(header, command, connection))
                requests.append(command)
        except (Refused, RemoteProtocolError) as refusal:
            _refuse(broker, connection, command, refusal, started)
    _append(broker, connection, requests, messages, started)


def _header(command: Command) -> SendMessage | SendMessageV2:
    if command.code == RequestCode.SEND_MESSAGE_V2:
        return command.typed_header(SendMessageV2)
    if command.code == RequestCode.SEND_MESSAGE:
        return command.typed_header(SendMessage)
    return command.typed_header(batch_header(command.fields))


def _append(
    broker: Broker, connection: Connection, requests: list[Command], messages: list[NewMessage], started: float
) -> None:
    """Plain sends: one message each, all in one write."""
    if not messages:
        return
    storage = broker.storage
    try:
        end = storage.append(messages, dispatch=not storage.waits_for_slaves)
    except StoreError as error:
        broker.stats.messages_failed(len(messages))
        for command in requests:
            _refuse(broker, connection, command, _store_refusal(error), started)
        return
    message_id = broker.incoming.message_id
    stored = [
        (
            command,
            message_id(message.physical_offset),
            message.queue_id if type(message) is NewMessage else asked_queue_id(message),
            message.queue_offset,
        )
        for command, message in zip(requests, messages, strict=True)
    ]
    if storage.promises_more_than_append:
        at_once = [each for each, message in zip(stored, messages, strict=True) if not message.wait]
        if at_once:
            stored = [each for each, message in zip(stored, messages, strict=True) if message.wait]
        _answer_later(broker, connection, stored, end, started)
        stored = at_once
    _make_visible(broker, messages)
    _answer(broker, connection, stored, started)


def _append_batch(
    broker: Broker, connection: Connection, command: Command, messages: list[NewMessage], started: float
) -> None:
    """A batch: many messages of one request, contiguous in the log."""
    storage = broker.storage
    try:
        end = storage.append(messages, atomic=True, dispatch=not storage.waits_for_slaves)
    except StoreError as error:
        broker.stats.messages_failed(len(messages))
        raise _store_refusal(error) from None
    ids = ",".join([broker.incoming.message_id(message.physical_offset) for message in messages])
    first = messages[0]
    stored = [(command, ids, first.queue_id, first.queue_offset)]
    if first.wait and storage.promises_more_than_append:
        _answer_later(broker, connection, stored, end, started)
        stored = []
    _make_visible(broker, messages)
    _answer(broker, connection, stored, started)


def _store_refusal(error: StoreError) -> Refused:
    return Refused(ResponseCode.SERVICE_NOT_AVAILABLE, f"service not available now: {error}")


def _make_visible(broker: Broker, messages: list[NewMessage]) -> None:
    """Dispatches the messages unless that is done, counts them, and wakes the consumers that wait for them."""
    broker.storage.dispatch_appended()
    size = broker.metrics.messages_stored(messages)
    broker.stats.messages_stored(len(messages), size)
    if broker.storage.consumers_see_appends:
        broker.pulls.arrived(messages)


def _answer_later(broker: Broker, connection: Connection, stored: list[Stored], end: int, started: float) -> None:
    """Answers when everything below `end` is as safe as the broker promises."""
    if not stored:
        return
    for each in stored:
        each[0].body = b""  # a slow flush must not keep the bodies
    answers = broker.send_replies.encode_all(stored)  # while nothing else can be done for them

    def told(code: ResponseCode) -> None:
        connection.end_waiting()
        if code == ResponseCode.SUCCESS:
            connection.post_now(*answers)
            _note_answered(broker, stored, started)
        else:
            _answer_unconfirmed(broker, connection, stored, code, started)

    connection.begin_waiting()
    broker.storage.when_confirmed(end, told)


def _answer_unconfirmed(
    broker: Broker, connection: Connection, stored: list[Stored], code: ResponseCode, started: float
) -> None:
    """The messages are stored; the code says which promise could not be kept in time."""
    seconds = perf_counter() - started
    broker.stats.put_times.note(len(stored), seconds)
    answers = []
    for command, message_id, queue_id, queue_offset in stored:
        broker.metrics.request_done(command.code, code, seconds)
        if not command.flag & FLAG_ONEWAY:
            header = broker.send_replies.header(message_id, queue_id, queue_offset)
            answers.append(encode(response(command, code, header=header, remark=_REMARKS.get(code))))
    connection.post_now(*answers)


def _answer(broker: Broker, connection: Connection, stored: list[Stored], started: float) -> None:
    if stored:
        # The receive loop sends it with all that this read asked for.
        connection.post(*broker.send_replies.encode_all(stored))
        _note_answered(broker, stored, started)


def _note_answered(broker: Broker, stored: list[Stored], started: float) -> None:
    seconds = perf_counter() - started
    broker.metrics.request_done(stored[0][0].code, ResponseCode.SUCCESS, seconds, count=len(stored))
    broker.stats.put_times.note(len(stored), seconds)


def _refuse(
    broker: Broker,
    connection: Connection,
    command: Command,
    refusal: Refused | RemoteProtocolError,
    started: float,
) -> None:
    code = refusal.code if isinstance(refusal, Refused) else refusal.response_code
    broker.metrics.request_done(command.code, code, perf_counter() - started)
    if not command.flag & FLAG_ONEWAY:
        connection.post(encode(response(command, code, remark=refusal.remark)))
