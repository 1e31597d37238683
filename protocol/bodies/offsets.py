"""Tables of offsets: of groups, of delay levels, and those that are told to or asked from consumers."""

from typing import Any, ClassVar

from msgspec import field

from protocol.bodies.base import Body, MessageQueue
from protocol.bodies.topics import DataVersion
from protocol.header import Int32, Int64
from protocol.javajson import pairs_to_object


class ConsumerOffsetBody(Body):
    """Offsets by `topic@group` and queue id; also the content of `config/consumerOffset.json`.

    The version is for slaves of 5.x, which cannot do without; 4.x knows none.
    """

    quoted_bytes_limit: ClassVar[int] = 64 << 20  # our own file or our master's answer

    data_version: DataVersion | None = None
    offset_table: dict[str, dict[Int32, Int64]] = field(default_factory=dict)


class DelayOffsetBody(Body):
    """Delivered offsets by delay level; also the content of `config/delayOffset.json`."""

    offset_table: dict[Int32, Int64] = field(default_factory=dict)


class ResetOffsetBody(Body):
    """Where consumers shall go on."""

    offset_table: dict[MessageQueue, Int64] = field(default_factory=dict)

    @classmethod
    def repair(cls, value: Any) -> None:
        _repair_tables(value, "offsetTable")


class MessageQueueForC(Body):
    """A queue with its offset."""

    broker_name: str
    offset: Int64
    queue_id: Int32
    topic: str


class ResetOffsetBodyForC(Body):
    """Where C++ consumers shall go on: they cannot read objects as keys."""

    offset_table: list[MessageQueueForC] = field(default_factory=list)


class GetConsumerStatusBody(Body):
    """Offsets as consumers see them: of one client, or by client id."""

    consumer_table: dict[str, dict[MessageQueue, Int64]] = field(default_factory=dict)
    message_queue_table: dict[MessageQueue, Int64] = field(default_factory=dict)

    @classmethod
    def repair(cls, value: Any) -> None:
        _repair_tables(value, "messageQueueTable")


def _repair_tables(value: Any, member: str) -> None:
    if isinstance(value, dict) and member in value:
        value[member] = pairs_to_object(value[member])


class QueryCorrectionOffsetBody(Body):
    """Offsets by queue id."""

    correction_offsets: dict[Int32, Int64] = field(default_factory=dict)


class OffsetMovedEvent(Body):
    """The body of a message in OFFSET_MOVED_EVENT: a group asked for an offset that is not there."""

    consumer_group: str
    message_queue: MessageQueue
    offset_new: Int64
    offset_request: Int64
