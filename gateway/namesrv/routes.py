"""RouteTable: what brokers have registered, and the routes that clients are told from it. Pure: no socket, no log.

Three tables: topic → broker name → queues; broker name → id → address; address → the living process behind it.
Invariants:

- An address stands under one broker name and one id, and has a `LiveBroker` exactly as long as it stands there.
- A broker name without an address does not exist, and no topic has queues on it; a topic without queues does not exist.
- A broker name belongs to one cluster: the one that its master names, or without a master its slaves.

Methods change the tables and return what the caller has to do or may want to log; they never wait. Thousands of clients
poll the same routes, so a route is kept as the bytes of its answer until something that it is made of changes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.namesrv.registration import (
    MASTER_ID,
    MAX_BROKERS,
    MAX_NAME,
    MAX_QUEUES,
    Registered,
    Registration,
    RouteTableFull,
)
from protocol.bodies import BrokerData, DataVersion, QueueData, TopicRouteData
from protocol.codes import PERM_READ, PERM_WRITE


class Connection(Protocol):
    """As much of a connection as a table needs to hand it back to whoever shall close it."""

    def close(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class LiveBroker:
    """The process at one address; `complete` tells whether its whole topic table has come once."""

    address: str
    broker_name: str
    broker_id: int
    ha_address: str
    connection: Connection
    version: DataVersion
    complete: bool
    seen_ms: int
    timeout_ms: int
    filter_servers: list[str]


@dataclass(slots=True)
class Group:
    """Master and slaves under one broker name."""

    cluster: str
    addresses: dict[int, str] = field(default_factory=dict)
    acting_master: bool = False
    zone_name: str | None = None


class RouteTable:
    """All brokers and topics; `now_ms` is a clock that only goes forward, not the time of day."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._topics: dict[str, dict[str, QueueData]] = {}
        self._groups: dict[str, Group] = {}
        self._live: dict[str, LiveBroker] = {}
        self._queue_count = 0
        self._answers: dict[tuple[str, bool], bytes] = {}

    # ---- brokers come, stay and go

    def register(self, new: Registration, connection: Connection) -> Registered:
        """Takes over what a broker said over `connection`, the object that `connection_closed` is called with later.

        Topics that are missing in a later table stay, as they do officially. An older process (5.x: a lower state
        version) whose id another address has taken is ignored. Raises RouteTableFull.
        """
        self._check_room(new)
        if self._is_outdated(new):
            self._forget(new.address)
            return Registered(ignored=True)
        known = self._live.get(new.address)
        if known is not None and known.broker_name != new.broker_name:
            self._forget(new.address)
            known = None
        group = self._groups.setdefault(new.broker_name, Group(new.cluster))
        holder = group.addresses.get(new.broker_id)
        self._place(group, new, known)
        changed = 0
        if self._speaks_for_topics(group, new) and _is_news(new, known, holder is None):
            changed = self._take_topics(new)
        self._live[new.address] = LiveBroker(
            address=new.address,
            broker_name=new.broker_name,
            broker_id=new.broker_id,
            ha_address=new.ha_address,
            connection=connection,
            version=new.version,
            complete=len(new.topics) != 1 or (known is not None and known.complete and holder is not None),
            seen_ms=self._now_ms(),
            timeout_ms=new.timeout_ms,
            filter_servers=self._filter_servers(new, known),
        )
        master = self._live.get(group.addresses.get(MASTER_ID, "")) if new.broker_id != MASTER_ID else None
        return Registered(
            is_new=known is None,
            replaced_address=holder if holder != new.address else None,
            cluster=group.cluster,
            topics_changed=changed,
            master_address=master.address if master else None,
            master_ha_address=master.ha_address if master else None,
        )

    def _check_room(self, new: Registration) -> None:
        new.check_size()
        if len(self._live) >= MAX_BROKERS and new.address not in self._live:
            raise RouteTableFull(f"{MAX_BROKERS} brokers are registered already")
        if self._queue_count + len(new.topics) <= MAX_QUEUES:
            return
        added = sum(new.broker_name not in self._topics.get(topic, ()) for topic in new.topics)
        if self._queue_count + added > MAX_QUEUES:
            raise RouteTableFull(f"the topics of all brokers would be more than {MAX_QUEUES}")

    def _is_outdated(self, new: Registration) -> bool:
        group = self._groups.get(new.broker_name)
        holder = self._live.get(group.addresses.get(new.broker_id, "")) if group else None
        return (
            holder is not None
            and holder.address != new.address
            and holder.version.state_version > new.version.state_version
        )

    def _place(self, group: Group, new: Registration, known: LiveBroker | None) -> None:
        """Puts the address under its id and nowhere else: a slave that became master leaves its old id."""
        before = (group.cluster, dict(group.addresses), group.acting_master, group.zone_name)
        if known is not None and known.broker_id != new.broker_id:
            del group.addresses[known.broker_id]
        holder = group.addresses.get(new.broker_id)
        if holder is not None and holder != new.address:
            del self._live[holder]
        group.addresses[new.broker_id] = new.address
        group.acting_master = bool(new.enable_acting_master)
        group.zone_name = new.zone_name
        if new.broker_id == MASTER_ID or MASTER_ID not in group.addresses:
            group.cluster = new.cluster
        if before != (group.cluster, group.addresses, group.acting_master, group.zone_name):
            self._answers.clear()

    def _speaks_for_topics(self, group: Group, new: Registration) -> bool:
        """Only a master tells topics, or the smallest slave of brokers that know acting masters (5.x)."""
        if new.broker_id == MASTER_ID:
            return True
        return new.enable_acting_master is not None and new.broker_id == min(group.addresses)

    def _take_topics(self, new: Registration) -> int:
        mask = ~PERM_WRITE if new.broker_id != MASTER_ID and new.enable_acting_master else ~0
        changed = 0
        for topic, config in new.topics.items():
            queue = QueueData(
                broker_name=new.broker_name,
                perm=config.perm & mask,
                read_queue_nums=config.read_queue_nums,
                topic_sys_flag=config.topic_sys_flag,
                write_queue_nums=config.write_queue_nums,
            )
            changed += self._set_queue(topic, queue)
        return changed

    def _set_queue(self, topic: str, queue: QueueData) -> bool:
        queues = self._topics.setdefault(topic, {})
        before = queues.get(queue.broker_name)
        if before == queue:
            return False
        if before is None:
            self._queue_count += 1
        queues[queue.broker_name] = queue
        self._forget_answers(topic)
        return True

    def _filter_servers(self, new: Registration, known: LiveBroker | None) -> list[str]:
        before = known.filter_servers if known is not None else []
        if new.filter_servers is None or new.filter_servers == before:
            return before
        self._answers.clear()
        return new.filter_servers

    def unregister(self, address: str, broker_name: str) -> LiveBroker | None:
        """Forgets the broker at `address`; None if it is not known, or under another name only."""
        known = self._live.get(address)
        return self._forget(address) if known is not None and known.broker_name == broker_name else None

    def connection_closed(self, connection: object) -> list[LiveBroker]:
        """Forgets the brokers whose latest registration came over `connection`."""
        gone = [broker for broker in self._live.values() if broker.connection is connection]
        for broker in gone:
            self._forget(broker.address)
        return gone

    def expire(self) -> list[LiveBroker]:
        """Forgets the brokers that were silent for too long; their connections are to be closed."""
        now = self._now_ms()
        gone = [broker for broker in self._live.values() if now - broker.seen_ms > broker.timeout_ms]
        for broker in gone:
            self._forget(broker.address)
        return gone

    def _forget(self, address: str) -> LiveBroker | None:
        broker = self._live.pop(address, None)
        if broker is None:
            return None
        name = broker.broker_name
        group = self._groups[name]
        del group.addresses[broker.broker_id]
        if not group.addresses:
            del self._groups[name]
            for topic in list(self._topics):
                self._drop_queue(topic, name)
        elif group.acting_master and MASTER_ID not in group.addresses:
            self.wipe_write_permission(name)
        self._answers.clear()
        return broker

    def heartbeat(self, address: str) -> bool:
        """A sign of life (BROKER_HEARTBEAT of 5.x); False if the address is not registered."""
        broker = self._live.get(address)
        if broker is None:
            return False
        broker.seen_ms = self._now_ms()
        return True

    def query_version(self, address: str, version: DataVersion) -> tuple[bool, DataVersion | None]:
        """Whether the broker has to register anew, and the version it has registered. Counts as a sign of life."""
        broker = self._live.get(address)
        if broker is None:
            return True, None
        broker.seen_ms = self._now_ms()
        return broker.version != version, broker.version

    # ---- topics

    def add_topic(self, topic: str, queues: Iterable[QueueData]) -> bool:
        """One topic on brokers that are registered (REGISTER_TOPIC_IN_NAMESRV); False and no change if one is not.

        Raises RouteTableFull.
        """
        queues = list(queues)
        if not queues or any(queue.broker_name not in self._groups for queue in queues):
            return False
        if len(topic) > MAX_NAME or self._queue_count + len(queues) > MAX_QUEUES:
            raise RouteTableFull(f"no room for the topic: at most {MAX_QUEUES}, of {MAX_NAME} characters each")
        for queue in queues:
            self._set_queue(topic, queue)
        return True

    def delete_topic(self, topic: str, cluster: str | None = None) -> int:
        """Forgets the topic on all brokers, or on those of `cluster`; on how many it was. Brokers still have it."""
        count = 0
        for name in list(self._topics.get(topic, ())):
            if not cluster or self._groups[name].cluster == cluster:
                self._drop_queue(topic, name)
                count += 1
        return count

    def _drop_queue(self, topic: str, broker_name: str) -> None:
        queues = self._topics[topic]
        if queues.pop(broker_name, None) is not None:
            self._queue_count -= 1
            self._forget_answers(topic)
        if not queues:
            del self._topics[topic]

    def wipe_write_permission(self, broker_name: str) -> int:
        """Sends producers away until the broker's next changed registration; the number of its topics."""
        return self._change_permission(broker_name, lambda perm: perm & ~PERM_WRITE)

    def add_write_permission(self, broker_name: str) -> int:
        """Reading and writing on all topics of the broker; the number of its topics."""
        return self._change_permission(broker_name, lambda perm: PERM_READ | PERM_WRITE)

    def _change_permission(self, broker_name: str, change: Callable[[int], int]) -> int:
        count = 0
        for topic, queues in self._topics.items():
            queue = queues.get(broker_name)
            if queue is not None:
                count += 1
                queue.perm = change(queue.perm)
                self._forget_answers(topic)
        return count

    # ---- answers

    def route_answer(self, topic: str, standard_json: bool) -> bytes | None:
        """The encoded route, kept for the next asker; None if no living broker has the topic."""
        answer = self._answers.get((topic, standard_json))
        if answer is None:
            route = self.route(topic)
            if route is None:
                return None
            answer = self._answers[topic, standard_json] = route.encode(standard_json)
        return answer

    def route(self, topic: str, zone: str | None = None) -> TopicRouteData | None:
        """The brokers and queues of a topic; with `zone`, brokers of other zones only while they have no master."""
        queues = self._topics.get(topic)
        if queues is None:
            return None
        names = [name for name in queues if zone is None or self._serves_zone(self._groups[name], zone)]
        filter_servers = {
            address: self._live[address].filter_servers
            for name in names
            for address in self._groups[name].addresses.values()
            if self._live[address].filter_servers
        }
        return TopicRouteData(
            broker_datas=[self._broker_data(name) for name in names],
            filter_server_table=filter_servers,
            queue_datas=[queues[name] for name in names],
        )

    @staticmethod
    def _serves_zone(group: Group, zone: str) -> bool:
        return MASTER_ID not in group.addresses or (group.zone_name or "").lower() == zone.lower()

    def _broker_data(self, name: str) -> BrokerData:
        group = self._groups[name]
        return BrokerData(broker_addrs=dict(sorted(group.addresses.items())), broker_name=name, cluster=group.cluster)

    def _forget_answers(self, topic: str) -> None:
        self._answers.pop((topic, False), None)
        self._answers.pop((topic, True), None)

    # ---- lists

    def brokers(self) -> dict[str, BrokerData]:
        """Broker name → cluster and addresses."""
        return {name: self._broker_data(name) for name in self._groups}

    def clusters(self) -> dict[str, list[str]]:
        """Cluster → broker names."""
        clusters: dict[str, list[str]] = {}
        for name, group in self._groups.items():
            clusters.setdefault(group.cluster, []).append(name)
        return clusters

    def member_addresses(self, broker_name: str) -> dict[int, str]:
        """Id → address of one broker name; empty if there is none."""
        group = self._groups.get(broker_name)
        return dict(sorted(group.addresses.items())) if group else {}

    def any_address(self) -> str | None:
        """The address of some broker, a master if the first name has one."""
        return next((group.addresses[min(group.addresses)] for group in self._groups.values()), None)

    def topics(self) -> list[str]:
        """All topics."""
        return list(self._topics)

    def topics_of_cluster(self, cluster: str) -> list[str]:
        """The topics with queues on a broker of the cluster."""
        names = {name for name, group in self._groups.items() if group.cluster == cluster}
        return [topic for topic, queues in self._topics.items() if not names.isdisjoint(queues)]

    def topics_with_flags(self, flags: int, without: int = 0) -> list[str]:
        """The topics whose topicSysFlag (of one of their brokers) has a bit of `flags` and none of `without`."""
        firsts = ((topic, next(iter(queues.values()))) for topic, queues in self._topics.items())
        return [t for t, queue in firsts if queue.topic_sys_flag & flags and not queue.topic_sys_flag & without]

    def counts(self) -> tuple[int, int]:
        """The numbers of living brokers and of topics, for metrics."""
        return len(self._live), len(self._topics)


def _is_news(new: Registration, known: LiveBroker | None, is_first: bool) -> bool:
    """Whether the topics of a registration have to be looked at. The usual one, each 30 s, brings nothing new.

    Brokers also send a single changed topic, with the version of their whole table. If such a one comes first (the
    name server was restarted a moment ago), the whole table must be taken later although its version is known by then.
    Official 4.9.4 misses it; 5.3.3 refuses the single topic.
    """
    if is_first or known is None or known.version != new.version:
        return True
    return not known.complete and len(new.topics) > 1
