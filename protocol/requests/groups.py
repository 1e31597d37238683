"""Consumer groups: settings, progress, and what they subscribe to."""

from protocol.codes import RequestCode
from protocol.header import Header, request


@request(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP)
class UpdateAndCreateSubscriptiongroup(Header):
    """The settings of one group, as a body."""


@request(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST)
class UpdateAndCreateSubscriptiongroupList(Header):
    """5.x: the settings of many groups, as a body."""


@request(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
class GetAllSubscriptiongroupConfig(Header):
    """The settings of all groups; asked by slaves every 10 s."""


@request(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG)
class GetSubscriptiongroupConfig(Header):
    """5.x: the settings of one group."""

    group: str


@request(RequestCode.DELETE_SUBSCRIPTIONGROUP)
class DeleteSubscriptiongroup(Header):
    """4.9 names the wish to drop the group's offsets too `removeOffset`, 5.x `cleanOffset`."""

    group_name: str
    remove_offset: bool = False
    clean_offset: bool = False


@request(RequestCode.GET_CONSUME_STATS)
class GetConsumeStats(Header):
    """Where the group stands in each queue of `topic`, or of all its topics; 5.x: `topic_list` joined by `;` wins."""

    consumer_group: str
    topic: str | None = None
    topic_list: str | None = None


@request(RequestCode.GET_BROKER_CONSUME_STATS)
class GetBrokerConsumeStats(Header):
    """Where all groups stand; `is_order` restricts it to topics registered as ordered."""

    is_order: bool


@request(RequestCode.QUERY_CONSUME_TIME_SPAN)
class QueryConsumeTimeSpan(Header):
    """Store times of the first, the last and the next message of each queue."""

    topic: str
    group: str


@request(RequestCode.QUERY_TOPICS_BY_CONSUMER)
class QueryTopicsByConsumer(Header):
    """5.x: the topics in which a group has offsets."""

    group: str


@request(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER)
class QuerySubscriptionByConsumer(Header):
    """5.x: what a group subscribes to in a topic."""

    group: str
    topic: str | None = None


@request(RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN)
class UpdateAndGetGroupForbidden(Header):
    """5.x: read, or with `readable` set, whether a group may read a topic."""

    group: str
    topic: str
    readable: bool | None = None
