"""Heartbeats, and what a consumer says in them (spec/remoting.md 5.3).

Java writes names of enums, C++ their numbers and subVersion as text, Go null where Java writes an empty list. All
come out alike.
"""

from enum import StrEnum
from typing import Any, Self

from msgspec import field

from protocol.bodies.base import Body
from protocol.header import Int32, Int64


class ConsumeType(StrEnum):
    """Whether the broker's messages are pulled by the application, by the client library, or popped (5.x)."""

    CONSUME_ACTIVELY = "CONSUME_ACTIVELY"
    CONSUME_PASSIVELY = "CONSUME_PASSIVELY"
    CONSUME_POP = "CONSUME_POP"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """An early Go client wrote the names that its users know."""
        names = {"PULL": "CONSUME_ACTIVELY", "PUSH": "CONSUME_PASSIVELY"}
        return cls(names[value]) if isinstance(value, str) and value in names else None


class MessageModel(StrEnum):
    """Whether each consumer of a group gets every message, or one of them does."""

    BROADCASTING = "BROADCASTING"
    CLUSTERING = "CLUSTERING"


class ConsumeFromWhere(StrEnum):
    """Where a group starts that has no offset; in the order of the Java enum."""

    CONSUME_FROM_LAST_OFFSET = "CONSUME_FROM_LAST_OFFSET"
    CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST = "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST"
    CONSUME_FROM_MIN_OFFSET = "CONSUME_FROM_MIN_OFFSET"
    CONSUME_FROM_MAX_OFFSET = "CONSUME_FROM_MAX_OFFSET"
    CONSUME_FROM_FIRST_OFFSET = "CONSUME_FROM_FIRST_OFFSET"
    CONSUME_FROM_TIMESTAMP = "CONSUME_FROM_TIMESTAMP"


class SubscriptionData(Body):
    """What a consumer wants of a topic: `*` or `a || b`, the tags in it and their Java hash codes.

    `sub_version` is the client's time (ms) when it subscribed: the newest counts.
    """

    topic: str
    sub_string: str = "*"
    sub_version: Int64 = 0
    expression_type: str = "TAG"
    tags_set: list[str] = field(default_factory=list)
    code_set: list[Int32] = field(default_factory=list)
    class_filter_mode: bool = False


class ConsumerData(Body):
    """One consumer group of a client."""

    group_name: str
    consume_type: ConsumeType = ConsumeType.CONSUME_PASSIVELY
    message_model: MessageModel = MessageModel.CLUSTERING
    consume_from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET
    subscription_data_set: list[SubscriptionData] = field(default_factory=list)
    unit_mode: bool = False


class ProducerData(Body):
    """One producer group of a client."""

    group_name: str


class HeartbeatData(Body):
    """A client and all of its groups."""

    client_id: str = field(name="clientID")
    consumer_data_set: list[ConsumerData] = field(default_factory=list)
    producer_data_set: list[ProducerData] = field(default_factory=list)

    @classmethod
    def repair(cls, value: Any) -> None:
        """Puts the names of enums where C++ writes their numbers."""
        consumers = value.get("consumerDataSet") if isinstance(value, dict) else None
        for consumer in consumers if isinstance(consumers, list) else ():
            if isinstance(consumer, dict):
                for member, names in _ENUMS.items():
                    number = consumer.get(member)
                    if type(number) is int and 0 <= number < len(names):
                        consumer[member] = names[number]


_ENUMS: dict[str, list[str]] = {
    "consumeType": list(ConsumeType),
    "messageModel": list(MessageModel),
    "consumeFromWhere": list(ConsumeFromWhere),
}


class CheckClientRequestBody(Body):
    """A subscription that a consumer would like to know valid before it starts."""

    client_id: str
    group: str
    subscription_data: SubscriptionData
