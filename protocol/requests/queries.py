"""Looking messages up by key, by id, or entry by entry in a consume queue."""

from msgspec import field

from protocol.codes import RequestCode
from protocol.header import Header, Int32, Int64, request


class QueryMessageReply(Header):
    """How far the index has come: the store time (ms) and commitlog offset of the last indexed message."""

    index_last_update_timestamp: Int64
    index_last_update_phyoffset: Int64


@request(RequestCode.QUERY_MESSAGE, reply=QueryMessageReply)
class QueryMessage(Header):
    """`key` is a business key, or a client's message id if `unique_key_query`; timestamps are store times in ms."""

    topic: str
    key: str
    max_num: Int32
    begin_timestamp: Int64
    end_timestamp: Int64
    unique_key_query: bool = field(default=False, name="_UNIQUE_KEY_QUERY")


@request(RequestCode.VIEW_MESSAGE_BY_ID)
class ViewMessageById(Header):
    """`offset` in the commitlog, taken by the client from the offset message id."""

    offset: Int64
    topic: str | None = None


@request(RequestCode.QUERY_CONSUME_QUEUE)
class QueryConsumeQueue(Header):
    """`count` entries from `index` on; `consumer_group` asks to evaluate its filter on each."""

    topic: str | None = None
    queue_id: Int32 = 0
    index: Int64 = 0
    count: Int32 = 0
    consumer_group: str | None = None
