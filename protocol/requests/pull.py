"""Pulling messages from a queue, the way consumers read (spec/remoting.md 5.1, 5.4)."""

from protocol.codes import RequestCode
from protocol.header import Header, Int32, Int64, request


class PullMessageReply(Header):
    """Java clients need all four with the codes 0, 19, 20 and 21."""

    suggest_which_broker_id: Int64
    next_begin_offset: Int64
    min_offset: Int64
    max_offset: Int64


@request(RequestCode.PULL_MESSAGE, reply=PullMessageReply)
class PullMessage(Header):
    """`sys_flag` holds the PULL_* bits of protocol.codes; `suspend_timeout_millis` bounds the wait for a message."""

    consumer_group: str
    topic: str
    queue_id: Int32
    queue_offset: Int64
    max_msg_nums: Int32
    sys_flag: Int32
    commit_offset: Int64
    suspend_timeout_millis: Int64
    sub_version: Int64
    subscription: str | None = None
    expression_type: str | None = None
    max_msg_bytes: Int32 | None = None


@request(RequestCode.LITE_PULL_MESSAGE, reply=PullMessageReply)
class LitePullMessage(PullMessage):
    """5.x lite pull consumers send this number where 4.9 sends PULL_MESSAGE with the lite bit."""
