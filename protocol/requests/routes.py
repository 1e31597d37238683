"""What the name server is asked: registration, routes, topic lists, key-value settings (spec/remoting.md 4)."""

from typing import ClassVar

from protocol.codes import RequestCode
from protocol.header import PROPERTIES_BYTES, WHOLE_FRAME_BYTES, Header, Int32, Int64, request


@request(RequestCode.PUT_KV_CONFIG)
class PutKvConfig(Header):
    """Set one key."""

    namespace: str
    key: str
    value: str


class KvConfigReply(Header):
    """The value of one key."""

    value: str | None = None


@request(RequestCode.GET_KV_CONFIG, reply=KvConfigReply)
class GetKvConfig(Header):
    """One key; QUERY_NOT_FOUND if it is not set."""

    namespace: str
    key: str


@request(RequestCode.DELETE_KV_CONFIG)
class DeleteKvConfig(Header):
    """Forget one key; forgetting what is not there succeeds."""

    namespace: str
    key: str


@request(RequestCode.GET_KVLIST_BY_NAMESPACE)
class GetKvlistByNamespace(Header):
    """All keys of a namespace, as a body."""

    namespace: str


class RegisterBrokerReply(Header):
    """To slaves: their master's HA address and its address; both absent for a master."""

    ha_server_addr: str | None = None
    master_addr: str | None = None


@request(RequestCode.REGISTER_BROKER, reply=RegisterBrokerReply)
class RegisterBroker(Header):
    """`body_crc32` covers the body as sent, `& 0x7FFFFFFF`, 0 = unchecked; `compressed` tells which form it has."""

    max_body_bytes: ClassVar[int] = WHOLE_FRAME_BYTES

    broker_name: str
    broker_addr: str
    cluster_name: str
    ha_server_addr: str
    broker_id: Int64
    compressed: bool = False
    body_crc32: Int32 = 0
    heartbeat_timeout_millis: Int64 | None = None
    enable_acting_master: bool | None = None


@request(RequestCode.UNREGISTER_BROKER)
class UnregisterBroker(Header):
    """A broker leaves."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: Int64


class DataVersionReply(Header):
    """Whether the registered table is another than the asker's; the name server's version comes as a body."""

    changed: bool


@request(RequestCode.QUERY_DATA_VERSION, reply=DataVersionReply)
class QueryDataVersion(Header):
    """A broker asks whether it has to register anew; its DataVersion is the body."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: Int64


@request(RequestCode.GET_ROUTEINFO_BY_TOPIC)
class GetRouteinfoByTopic(Header):
    """Which brokers have the topic; `accept_standard_json_only` asks for quoted broker ids."""

    topic: str
    accept_standard_json_only: bool | None = None


@request(RequestCode.GET_BROKER_CLUSTER_INFO)
class GetBrokerClusterInfo(Header):
    """All brokers of all clusters."""


class WipeWritePermReply(Header):
    """On how many topics the write permission was taken away."""

    wipe_topic_count: Int32


@request(RequestCode.WIPE_WRITE_PERM_OF_BROKER, reply=WipeWritePermReply)
class WipeWritePermOfBroker(Header):
    """Let producers leave a broker; in memory only, until its next changed registration."""

    broker_name: str


class AddWritePermReply(Header):
    """On how many topics reading and writing was permitted."""

    add_topic_count: Int32


@request(RequestCode.ADD_WRITE_PERM_OF_BROKER, reply=AddWritePermReply)
class AddWritePermOfBroker(Header):
    """Let producers return to a broker."""

    broker_name: str


@request(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
class GetAllTopicListFromNameserver(Header):
    """The names of all registered topics."""


@request(RequestCode.DELETE_TOPIC_IN_NAMESRV)
class DeleteTopicInNamesrv(Header):
    """Forget a topic, or only its queues in one cluster."""

    topic: str
    cluster_name: str | None = None


@request(RequestCode.REGISTER_TOPIC_IN_NAMESRV)
class RegisterTopicInNamesrv(Header):
    """5.x: one new topic, its queues as a route body."""

    topic: str


@request(RequestCode.GET_TOPICS_BY_CLUSTER)
class GetTopicsByCluster(Header):
    """The topics of one cluster."""

    cluster: str


@request(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS)
class GetSystemTopicListFromNs(Header):
    """Cluster and broker names, which are topics too, and the address of a broker to ask for the rest."""


@request(RequestCode.GET_UNIT_TOPIC_LIST)
class GetUnitTopicList(Header):
    """Topics with the unit bit."""


@request(RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST)
class GetHasUnitSubTopicList(Header):
    """Topics with the unit-subscription bit."""


@request(RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST)
class GetHasUnitSubUnunitTopicList(Header):
    """Topics with the unit-subscription bit and without the unit bit."""


@request(RequestCode.UPDATE_NAMESRV_CONFIG)
class UpdateNamesrvConfig(Header):
    """Java properties text as a body."""

    max_body_bytes: ClassVar[int] = PROPERTIES_BYTES


@request(RequestCode.GET_NAMESRV_CONFIG)
class GetNamesrvConfig(Header):
    """All settings as `key=value` lines."""


@request(RequestCode.GET_BROKER_MEMBER_GROUP)
class GetBrokerMemberGroup(Header):
    """5.x: the addresses of one broker name."""

    cluster_name: str
    broker_name: str


@request(RequestCode.BROKER_HEARTBEAT)
class BrokerHeartbeat(Header):
    """5.x: a broker is alive; sent by brokers with enableSlaveActingMaster."""

    cluster_name: str
    broker_addr: str
    broker_name: str
    broker_id: Int64 | None = None
    epoch: Int32 | None = None
    max_offset: Int64 | None = None
    confirm_offset: Int64 | None = None
    heartbeat_timeout_mills: Int64 | None = None
    election_priority: Int32 | None = None
