"""Topics of one broker: create, delete, list, measure."""

from protocol.codes import RequestCode
from protocol.header import Header, Int32, request


@request(RequestCode.UPDATE_AND_CREATE_TOPIC)
class UpdateAndCreateTopic(Header):
    """`perm` in PERM_* bits, `topic_filter_type` SINGLE_TAG or MULTI_TAG; 5.x: `attributes` as `+key=value,-key`."""

    topic: str
    default_topic: str
    read_queue_nums: Int32
    write_queue_nums: Int32
    perm: Int32
    topic_filter_type: str
    topic_sys_flag: Int32 | None = None
    order: bool = False
    attributes: str | None = None


@request(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST)
class UpdateAndCreateTopicList(Header):
    """5.x: many topics at once, as a body."""


@request(RequestCode.GET_ALL_TOPIC_CONFIG)
class GetAllTopicConfig(Header):
    """The whole topic table; asked by slaves every 10 s on the fast port."""


@request(RequestCode.GET_TOPIC_CONFIG)
class GetTopicConfig(Header):
    """5.x: one topic; the pages and commands of 5.x tools accept no failure but TOPIC_NOT_EXIST."""

    topic: str


@request(RequestCode.DELETE_TOPIC_IN_BROKER)
class DeleteTopicInBroker(Header):
    """Forget a topic and its queues."""

    topic: str


@request(RequestCode.GET_TOPIC_STATS_INFO)
class GetTopicStatsInfo(Header):
    """First and last offset and last store time of each queue."""

    topic: str


@request(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO)
class QueryTopicConsumeByWho(Header):
    """The groups that subscribe to a topic now or have offsets in it."""

    topic: str


@request(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER)
class GetSystemTopicListFromBroker(Header):
    """The topics that this broker keeps for its own use."""


@request(RequestCode.CLEAN_UNUSED_TOPIC)
class CleanUnusedTopic(Header):
    """Remove the queues of topics that are in no topic table any more."""
