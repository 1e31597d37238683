"""Connections of groups, queue locks, and what single clients answer."""

from msgspec import field

from protocol.bodies.base import Body, MessageQueue
from protocol.bodies.heartbeat import ConsumeFromWhere, ConsumeType, MessageModel, SubscriptionData
from protocol.header import Int32, Int64


class ConsumerList(Body):
    """The client ids of a group (GetConsumerListByGroupResponseBody)."""

    consumer_id_list: list[str] = field(default_factory=list)


class LockBatchRequestBody(Body):
    """Queues that a client locks or unlocks for a group."""

    client_id: str
    consumer_group: str
    mq_set: list[MessageQueue] = field(default_factory=list)


class LockBatchResponseBody(Body):
    """The queues that the client holds now."""

    lock_ok_mq_set: list[MessageQueue] = field(default_factory=list, name="lockOKMQSet")


class Connection(Body):
    """A client at its end of a connection: `ip:port`, the name of its language, its version's ordinal."""

    client_addr: str
    client_id: str
    language: str
    version: Int32


class ProducerConnection(Body):
    """The connections of a producer group."""

    connection_set: list[Connection] = field(default_factory=list)


class ConsumerConnection(Body, kw_only=True):
    """The connections of a consumer group and what it consumes how."""

    connection_set: list[Connection] = field(default_factory=list)
    consume_from_where: ConsumeFromWhere
    consume_type: ConsumeType
    message_model: MessageModel
    subscription_table: dict[str, SubscriptionData] = field(default_factory=dict)


class ProducerInfo(Body, kw_only=True):
    """One producer; `remote_ip` is `ip:port`, the last heartbeat in epoch ms."""

    client_id: str
    language: str
    last_update_timestamp: Int64
    remote_ip: str = field(name="remoteIP")
    version: Int32


class ProducerTableInfo(Body):
    """All producers by group."""

    data: dict[str, list[ProducerInfo]] = field(default_factory=dict)


class ConsumeMessageDirectlyResult(Body):
    """What a consumer made of one message: CR_SUCCESS, CR_LATER, CR_THROW_EXCEPTION and so on."""

    auto_commit: bool = True
    consume_result: str | None = None
    order: bool = False
    remark: str | None = None
    spent_time_mills: Int64 = 0


class QueryAssignmentRequestBody(Body, kw_only=True):
    """5.x: a consumer asks the broker which queues are its own."""

    client_id: str
    consumer_group: str
    message_model: MessageModel = MessageModel.CLUSTERING
    strategy_name: str | None = None
    topic: str


class MessageQueueAssignment(Body):
    """5.x: one queue, to be pulled or popped (`PULL`, `POP`)."""

    message_queue: MessageQueue
    mode: str = "PULL"


class QueryAssignmentResponseBody(Body):
    """5.x: the queues of the asker."""

    message_queue_assignments: list[MessageQueueAssignment]
