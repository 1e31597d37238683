"""Sending: messages, batches, replies to requests, send-backs of consumers.

SEND_MESSAGE_V2 carries the fields of SEND_MESSAGE under one-letter names, in the same order. Both classes have
the same attributes, so that a handler need not know which of them came in. Whether a body is a batch is said by
`batch`, not by the code: the C++ client sends batches as SEND_MESSAGE_V2.
"""

from collections.abc import Mapping
from typing import ClassVar

from msgspec import field

from protocol.codes import RequestCode
from protocol.header import WHOLE_FRAME_BYTES, Header, Int32, Int64, request


class SendMessageReply(Header):
    """What Java producers need of each stored message: all three, and extFields that are not empty.

    `msg_id` is the offset message id, for a batch one per message, separated by commas.
    """

    msg_id: str
    queue_id: Int32
    queue_offset: Int64
    transaction_id: str | None = None
    batch_uniq_id: str | None = None
    msg_region: str | None = field(default=None, name="MSG_REGION")
    trace_on: str | None = field(default=None, name="TRACE_ON")


@request(RequestCode.SEND_MESSAGE, reply=SendMessageReply)
class SendMessage(Header):
    """`born_timestamp` in ms; `queue_id` below 0 lets the broker choose; `properties` in the text form of a record."""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: Int32
    queue_id: Int32
    sys_flag: Int32
    born_timestamp: Int64
    flag: Int32
    properties: str | None = None
    reconsume_times: Int32 | None = None
    unit_mode: bool = False
    batch: bool = False
    max_reconsume_times: Int32 | None = None


@request(RequestCode.SEND_MESSAGE_V2, reply=SendMessageReply)
class SendMessageV2(Header):
    """`SendMessage` under short names; the default of Java and C++ producers."""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c")
    default_topic_queue_nums: Int32 = field(name="d")
    queue_id: Int32 = field(name="e")
    sys_flag: Int32 = field(name="f")
    born_timestamp: Int64 = field(name="g")
    flag: Int32 = field(name="h")
    properties: str | None = field(default=None, name="i")
    reconsume_times: Int32 | None = field(default=None, name="j")
    unit_mode: bool = field(default=False, name="k")
    max_reconsume_times: Int32 | None = field(default=None, name="l")
    batch: bool = field(default=False, name="m")


@request(RequestCode.SEND_BATCH_MESSAGE, reply=SendMessageReply)
class SendBatchMessage(SendMessageV2):
    """A batch under short names; an early Go client wrote it under long ones, see `batch_header`."""


@request(RequestCode.SEND_REPLY_MESSAGE, reply=SendMessageReply)
class SendReplyMessage(SendMessage):
    """A consumer's answer to a producer's request, for the client that its REPLY_TO_CLIENT property names."""

    max_body_bytes: ClassVar[int] = WHOLE_FRAME_BYTES


@request(RequestCode.SEND_REPLY_MESSAGE_V2, reply=SendMessageReply)
class SendReplyMessageV2(SendMessageV2):
    """`SendReplyMessage` under short names."""

    max_body_bytes: ClassVar[int] = WHOLE_FRAME_BYTES


@request(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT)
class PushReplyMessageToClient(Header):
    """Broker to the producer that waits for a reply; both hosts as `ip:port`, both timestamps in ms."""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queue_nums: Int32
    queue_id: Int32
    sys_flag: Int32
    born_timestamp: Int64
    flag: Int32
    born_host: str
    store_host: str
    store_timestamp: Int64
    properties: str | None = None
    reconsume_times: Int32 | None = None
    unit_mode: bool = False


@request(RequestCode.CONSUMER_SEND_MSG_BACK)
class ConsumerSendMsgBack(Header):
    """A consumer failed on the message at commitlog `offset`: deliver it again, or to the dead letters.

    `delay_level` 0 lets the broker choose, below 0 means dead letters.
    """

    offset: Int64
    group: str
    delay_level: Int32
    origin_msg_id: str | None = None
    origin_topic: str | None = None
    unit_mode: bool = False
    max_reconsume_times: Int32 | None = None


class RecallMessageReply(Header):
    """The id of the message that will not be delivered."""

    msg_id: str


@request(RequestCode.RECALL_MESSAGE, reply=RecallMessageReply)
class RecallMessage(Header):
    """5.x: take back a message whose delivery time has not come."""

    topic: str
    recall_handle: str
    producer_group: str | None = None


def batch_header(fields: Mapping[str, str]) -> type[SendMessage] | type[SendBatchMessage]:
    """Which header a SEND_BATCH_MESSAGE with these fields carries: a Go client of 4.x wrote the long names."""
    return SendMessage if "producerGroup" in fields else SendBatchMessage
