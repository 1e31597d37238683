"""Names of topics and groups: which exist by convention, and which text may become one.

A topic's name becomes a directory (`consumequeue/<topic>`), so nothing but the characters that RocketMQ's own
TopicValidator allows may pass: neither `.` nor `/` nor NUL is among them, hence no name can leave the store.

`HeaderNames` holds this for every request, whatever its handler does with the name.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec.structs import fields

from gateway.routing import Refused
from protocol.codes import ResponseCode
from protocol.header import Header

MAX_TOPIC_LENGTH = 127  # the record keeps the topic's length in one signed byte
MAX_GROUP_LENGTH = 255

RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
SYSTEM_TOPIC_PREFIX = "rmq_sys_"
SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"
TRANSACTION_GROUP = "CID_RMQ_SYS_TRANS"

AUTO_CREATE_TOPIC = "TBW102"
SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"
BENCHMARK_TOPIC = "BenchmarkTest"
HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
TRANS_CHECK_MAX_TIME_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
SELF_TEST_TOPIC = "SELF_TEST_TOPIC"
OFFSET_MOVED_TOPIC = "OFFSET_MOVED_EVENT"
TIMER_TOPIC = "rmq_sys_wheel_timer"
"""Where official brokers of 5.x keep messages that are due at a time of their own; nothing here delivers them."""

SYSTEM_TOPICS = frozenset(
    {
        AUTO_CREATE_TOPIC,
        SCHEDULE_TOPIC,
        BENCHMARK_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        TRANS_CHECK_MAX_TIME_TOPIC,
        TRACE_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
    }
)
SEND_FORBIDDEN_TOPICS = SYSTEM_TOPICS - {AUTO_CREATE_TOPIC, BENCHMARK_TOPIC, TRACE_TOPIC}
SYSTEM_GROUPS = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
)

_allowed = re.compile(r"[%|a-zA-Z0-9_-]+").fullmatch


def is_topic(topic: str) -> bool:
    """Whether the text may be a topic's name."""
    return len(topic) <= MAX_TOPIC_LENGTH and _allowed(topic) is not None


def is_group(group: str) -> bool:
    """Whether the text may be a group's name."""
    return len(group) <= MAX_GROUP_LENGTH and _allowed(group) is not None


def check_topic(topic: str) -> None:
    """Refuses what may not be a topic's name, in the words that mqadmin users know."""
    if is_topic(topic):
        return
    if not topic.strip():
        remark = "The specified topic is blank."
    elif not _allowed(topic):
        remark = "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    else:
        remark = "The specified topic is longer than topic max length."
    raise Refused(ResponseCode.SYSTEM_ERROR, remark)


def check_group(group: str) -> None:
    """Refuses what may not be a group's name."""
    if is_group(group):
        return
    if not group.strip():
        remark = "The specified group is blank."
    elif not _allowed(group):
        remark = "The specified group contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    else:
        remark = f"The specified group is longer than group max length {MAX_GROUP_LENGTH}."
    raise Refused(ResponseCode.SYSTEM_ERROR, remark)


def is_system_topic(topic: str) -> bool:
    """Whether the topic belongs to the broker itself on every RocketMQ broker."""
    return topic in SYSTEM_TOPICS or topic.startswith(SYSTEM_TOPIC_PREFIX)


def retry_topic(group: str) -> str:
    """The topic that keeps what the group could not consume and shall see again."""
    return RETRY_PREFIX + group


def dead_letter_topic(group: str) -> str:
    """The topic that keeps what the group could not consume at all."""
    return DLQ_PREFIX + group


class NameTable(Protocol):
    """As much of a table as tells which names are in it."""

    def __contains__(self, name: str) -> bool: ...


class _NameField(NamedTuple):
    """A header attribute that names a topic or a group."""

    attribute: str
    required: bool
    known: NameTable
    check: Callable[[str], None]


class HeaderNames:
    """Refuses requests whose header names a topic or a group that may not be.

    What is in the tables may be: a broker's own topics are called like cluster and broker, and a host name has dots.
    An optional field that is empty names nothing. A send's producer group is not looked at, as nothing is kept of it.
    """

    def __init__(self, topics: NameTable, groups: NameTable) -> None:
        self._kinds = (
            (("topic", "origin_topic"), topics, check_topic),
            (
                ("group", "consumer_group", "producer_group", "group_name", "src_group", "dest_group", "compare_group"),
                groups,
                check_group,
            ),
        )
        self._fields: dict[type[Header], tuple[_NameField, ...]] = {}

    def check(self, header: Header) -> None:
        """Raises Refused."""
        known = self._fields.get(type(header))
        if known is None:
            known = self._fields[type(header)] = self._fields_of(type(header))
        for field in known:
            name = getattr(header, field.attribute)
            if name not in field.known and (name or field.required):
                field.check(name)

    def _fields_of(self, header: type[Header]) -> tuple[_NameField, ...]:
        required = {field.name: field.required for field in fields(header)}
        return tuple(
            _NameField(attribute, required[attribute], known, check)
            for attributes, known, check in self._kinds
            for attribute in attributes
            if attribute in required
        )
