"""Broker: what the handlers work with. A record of collaborators, not a god: no behaviour of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.broker.clients import ClientTable
from gateway.broker.delay import DelayTable
from gateway.broker.groups import GroupTable
from gateway.broker.incoming import IncomingMessages
from gateway.broker.locks import LockTable
from gateway.broker.offsetmoved import OffsetMoved
from gateway.broker.offsets import OffsetTable
from gateway.broker.pulls import ParkedPulls
from gateway.broker.registration import Registration
from gateway.broker.replication import Replication
from gateway.broker.stats import BrokerStats
from gateway.broker.topics import TopicTable
from gateway.broker.traffichistory import TrafficHistory
from gateway.broker.transactions import HalfMessages
from gateway.config import BrokerOptions
from gateway.metrics import Metrics
from gateway.server import ConnectionTable
from gateway.storage import Storage
from protocol.sendreply import SendReplyEncoder
from store.engine import MessageStore
from store.options import StoreOptions


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Everything that a request may need."""

    options: BrokerOptions
    store_options: StoreOptions
    store: MessageStore
    storage: Storage
    topics: TopicTable
    groups: GroupTable
    offsets: OffsetTable
    delays: DelayTable
    half_messages: HalfMessages
    clients: ClientTable
    locks: LockTable
    pulls: ParkedPulls
    incoming: IncomingMessages
    registration: Registration
    replication: Replication
    send_replies: SendReplyEncoder
    metrics: Metrics
    stats: BrokerStats
    traffic: TrafficHistory
    connections: ConnectionTable
    now_ms: Callable[[], int]
    offset_moved: OffsetMoved = field(default_factory=OffsetMoved)
