"""Who is connected: heartbeats, group membership, queue locks, and questions passed on to clients."""

from msgspec import field

from protocol.codes import RequestCode
from protocol.header import Header, request


@request(RequestCode.HEART_BEAT)
class HeartBeat(Header):
    """The groups of a client, as a body. The answer's version is what Java clients take as the broker's version."""


@request(RequestCode.UNREGISTER_CLIENT)
class UnregisterClient(Header):
    """A client leaves; C++ sends an empty text for the group that it has not got."""

    client_id: str = field(name="clientID")
    producer_group: str | None = None
    consumer_group: str | None = None


@request(RequestCode.GET_CONSUMER_LIST_BY_GROUP)
class GetConsumerListByGroup(Header):
    """The client ids of a group, as a body; the asker must be among them or it takes no queue."""

    consumer_group: str


@request(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
class NotifyConsumerIdsChanged(Header):
    """Broker to consumers, one-way: divide the queues anew."""

    consumer_group: str


@request(RequestCode.LOCK_BATCH_MQ)
class LockBatchMq(Header):
    """An orderly consumer locks the queues in the body."""


@request(RequestCode.UNLOCK_BATCH_MQ)
class UnlockBatchMq(Header):
    """An orderly consumer gives the queues in the body back; often one-way."""


@request(RequestCode.CHECK_CLIENT_CONFIG)
class CheckClientConfig(Header):
    """Would the broker accept the subscription in the body?"""


@request(RequestCode.QUERY_ASSIGNMENT)
class QueryAssignment(Header):
    """5.x: the broker divides the queues; only with clientRebalance=false."""


@request(RequestCode.SET_MESSAGE_REQUEST_MODE)
class SetMessageRequestMode(Header):
    """5.x: switch a group between PULL and POP, as a body."""


@request(RequestCode.GET_CONSUMER_CONNECTION_LIST)
class GetConsumerConnectionList(Header):
    """The connections and subscriptions of a group; CONSUMER_NOT_ONLINE if it has none."""

    consumer_group: str


@request(RequestCode.GET_PRODUCER_CONNECTION_LIST)
class GetProducerConnectionList(Header):
    """The connections of a producer group."""

    producer_group: str


@request(RequestCode.GET_ALL_PRODUCER_INFO)
class GetAllProducerInfo(Header):
    """All producers of all groups."""


@request(RequestCode.GET_CONSUMER_RUNNING_INFO)
class GetConsumerRunningInfo(Header):
    """What a consumer does right now; the broker passes the question on and the answer back."""

    consumer_group: str
    client_id: str
    jstack_enable: bool = False


@request(RequestCode.CONSUME_MESSAGE_DIRECTLY)
class ConsumeMessageDirectly(Header):
    """Have one consumer consume one message now; `msg_id` is an offset message id, its record the relayed body."""

    consumer_group: str
    client_id: str | None = None
    msg_id: str | None = None
    broker_name: str | None = None
