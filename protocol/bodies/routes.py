"""What name servers answer: routes, clusters, key-value tables (spec/remoting.md 4.1, 4.3).

Routes and the cluster table have numbers as keys. `encode(standard=True)` quotes them; that is for clients of
VERSION_STANDARD_JSON and newer and for those that ask for it. All others get compact text with unquoted numbers:
Go clients split it at `,` and `:` and take a quoted id for 0.
"""

from msgspec import field

from protocol.bodies.base import Body
from protocol.header import Int32, Int64


class QueueData(Body, kw_only=True):
    """The queues of a topic on one broker name. 4.8 calls the flag `topicSynFlag`; its clients do without it."""

    broker_name: str
    perm: Int32
    read_queue_nums: Int32
    topic_sys_flag: Int32 = 0
    write_queue_nums: Int32


class BrokerData(Body):
    """One broker name: its cluster and the addresses of master (id 0) and slaves; the last two fields are 5.x."""

    broker_addrs: dict[Int64, str]
    broker_name: str
    cluster: str | None = None
    enable_acting_master: bool | None = None
    zone_name: str | None = None


class TopicRouteData(Body):
    """Where a topic is. `order_topic_conf` as `brokerA:4;brokerB:4` overrides the queues for ordered sending."""

    broker_datas: list[BrokerData] = field(default_factory=list)
    filter_server_table: dict[str, list[str]] = field(default_factory=dict)
    order_topic_conf: str | None = None
    queue_datas: list[QueueData] = field(default_factory=list)


class ClusterInfo(Body):
    """All brokers by name and all broker names by cluster."""

    broker_addr_table: dict[str, BrokerData] = field(default_factory=dict)
    cluster_addr_table: dict[str, list[str]] = field(default_factory=dict)


class BrokerMemberGroup(Body):
    """5.x: the addresses of one broker name."""

    broker_member_group: BrokerData


class KVTable(Body):
    """Texts by name: a namespace of settings, or a broker's figures."""

    table: dict[str, str] = field(default_factory=dict)
