"""Offsets: of consumer groups, of queues, and as whole tables for slaves (spec/remoting.md 5.1, 6.1)."""

from protocol.codes import RequestCode
from protocol.header import Header, Int32, Int64, request


class OffsetReply(Header):
    """An offset in a consume queue, counted in messages."""

    offset: Int64


@request(RequestCode.QUERY_CONSUMER_OFFSET, reply=OffsetReply)
class QueryConsumerOffset(Header):
    """Where a group goes on; QUERY_NOT_FOUND is the only answer that means "nowhere yet" to 5.x clients."""

    consumer_group: str
    topic: str
    queue_id: Int32
    set_zero_if_not_found: bool | None = None


@request(RequestCode.UPDATE_CONSUMER_OFFSET)
class UpdateConsumerOffset(Header):
    """Where a group goes on from now; mostly one-way."""

    consumer_group: str
    topic: str
    queue_id: Int32
    commit_offset: Int64


@request(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, reply=OffsetReply)
class SearchOffsetByTimestamp(Header):
    """The first message stored at `timestamp` (ms) or later; 5.x: `boundary_type` UPPER asks for the last of equals."""

    topic: str
    queue_id: Int32
    timestamp: Int64
    boundary_type: str | None = None


@request(RequestCode.GET_MAX_OFFSET, reply=OffsetReply)
class GetMaxOffset(Header):
    """The offset that the next message of the queue will get."""

    topic: str
    queue_id: Int32
    committed: bool | None = None


@request(RequestCode.GET_MIN_OFFSET, reply=OffsetReply)
class GetMinOffset(Header):
    """The offset of the oldest message of the queue."""

    topic: str
    queue_id: Int32


class TimestampReply(Header):
    """Epoch ms, or -1."""

    timestamp: Int64


@request(RequestCode.GET_EARLIEST_MSG_STORETIME, reply=TimestampReply)
class GetEarliestMsgStoretime(Header):
    """When the oldest message of the queue was stored."""

    topic: str
    queue_id: Int32


@request(RequestCode.GET_ALL_CONSUMER_OFFSET)
class GetAllConsumerOffset(Header):
    """The offsets of all groups, as a body; slaves ask every 10 s."""


@request(RequestCode.GET_ALL_DELAY_OFFSET)
class GetAllDelayOffset(Header):
    """How far each delay level is delivered, as a body; slaves ask every 10 s."""


@request(RequestCode.QUERY_CORRECTION_OFFSET)
class QueryCorrectionOffset(Header):
    """The offsets of `compare_group` where they are ahead of all other groups but `filter_groups` (comma-separated)."""

    compare_group: str
    topic: str
    filter_groups: str | None = None


@request(RequestCode.CLONE_GROUP_OFFSET)
class CloneGroupOffset(Header):
    """Lets `dest_group` start where `src_group` stands, for one topic or (without `topic`) for all of its topics."""

    src_group: str
    dest_group: str
    topic: str | None = None
    offline: bool = False


@request(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET)
class InvokeBrokerToResetOffset(Header):
    """Moves a group to `timestamp` (ms, -1 = the end); back only, unless `is_force`.

    5.x tools also send `queue_id` and `offset`, -1 where they do not matter.
    """

    topic: str
    group: str
    timestamp: Int64
    is_force: bool
    queue_id: Int32 = -1
    offset: Int64 | None = None


@request(RequestCode.RESET_CONSUMER_CLIENT_OFFSET)
class ResetConsumerClientOffset(Header):
    """Broker to consumers: go on at the offsets in the body; `timestamp` and `is_force` as in the tool's request."""

    topic: str
    group: str
    timestamp: Int64
    is_force: bool


@request(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS)
class InvokeBrokerToGetConsumerStatus(Header):
    """The offsets as consumers see them; `client_addr` is a client id and limits the question to that client."""

    topic: str
    group: str
    client_addr: str | None = None


@request(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT)
class GetConsumerStatusFromClient(Header):
    """Broker to consumer: where are you in each queue of the topic?"""

    topic: str
    group: str
    client_addr: str | None = None
