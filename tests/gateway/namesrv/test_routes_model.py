"""RouteTable against a model that has no indexes and keeps no answers: sets of facts, searched from end to end."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.namesrv.registration import BROKER_TIMEOUT_MS
from gateway.namesrv.routes import RouteTable
from protocol.bodies import QueueData
from tests.gateway.namesrv.samples import Clock, FakeConnection, registration, topic, version

NAMES = st.sampled_from(["a", "b"])
IDS = st.sampled_from([0, 1, 2])
ADDRESSES = st.sampled_from(["h:1", "h:2", "h:3", "h:4"])
CLUSTERS = st.sampled_from(["C", "D"])
COUNTERS = st.sampled_from([1, 2])
TOPICS = ["T", "U", "V"]
TABLES = st.dictionaries(st.sampled_from(TOPICS), st.sampled_from([2, 4, 6, 7]), max_size=3)
CONNECTIONS = st.integers(0, 2)


@dataclass
class Process:
    """A living broker process as the model sees it."""

    name: str
    broker_id: int
    cluster: str
    counter: int
    whole: bool
    connection: int
    seen_ms: int
    timeout_ms: int


@dataclass
class Model:
    """address → process; (topic, name) → (perm, queues)."""

    live: dict[str, Process] = field(default_factory=dict)
    queues: dict[tuple[str, str], int] = field(default_factory=dict)
    clusters: dict[str, str] = field(default_factory=dict)

    def of_name(self, name: str) -> dict[int, str]:
        return {process.broker_id: address for address, process in self.live.items() if process.name == name}

    def drop(self, address: str) -> None:
        process = self.live.pop(address)
        if not self.of_name(process.name):
            self.queues = {key: perm for key, perm in self.queues.items() if key[1] != process.name}
            del self.clusters[process.name]


class RouteTableMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.table = RouteTable(self.clock)
        self.model = Model()
        self.connections = [FakeConnection() for _ in range(3)]

    @rule(
        name=NAMES,
        broker_id=IDS,
        address=ADDRESSES,
        cluster=CLUSTERS,
        counter=COUNTERS,
        perms=TABLES,
        connection=CONNECTIONS,
        timeout_ms=st.sampled_from([BROKER_TIMEOUT_MS, 30_000]),
    )
    def register(
        self,
        name: str,
        broker_id: int,
        address: str,
        cluster: str,
        counter: int,
        perms: dict[str, int],
        connection: int,
        timeout_ms: int,
    ) -> None:
        configs = [topic(each, perm=perm) for each, perm in perms.items()]
        new = registration(
            name, broker_id, *configs, address=address, cluster=cluster, counter=counter, timeout_ms=timeout_ms
        )
        result = self.table.register(new, self.connections[connection])

        model = self.model
        before = model.live.get(address)
        if before is not None and before.name != name:
            model.drop(address)
            before = None
        holder = model.of_name(name).get(broker_id)
        known = holder is not None and before is not None and before.counter == counter
        if before is not None and (len(perms) > 1 and not before.whole):
            known = False
        whole = len(perms) != 1 or (before is not None and before.whole and holder is not None)
        model.live[address] = Process(
            name, broker_id, cluster, counter, whole, connection, self.clock.now_ms, timeout_ms
        )
        if holder is not None and holder != address:
            del model.live[holder]
        if broker_id == 0 or 0 not in model.of_name(name):
            model.clusters[name] = cluster
        if broker_id == 0 and not known:
            model.queues |= {(each, name): perm for each, perm in perms.items()}

        master = model.of_name(name).get(0)
        assert result.master_address == (master if broker_id else None)
        assert result.replaced_address == (holder if holder != address else None)

    @rule(address=ADDRESSES, name=NAMES)
    def unregister(self, address: str, name: str) -> None:
        known = address in self.model.live and self.model.live[address].name == name
        assert (self.table.unregister(address, name) is not None) == known
        if known:
            self.model.drop(address)

    @rule(connection=CONNECTIONS)
    def connection_closed(self, connection: int) -> None:
        gone = {address for address, process in self.model.live.items() if process.connection == connection}
        assert {broker.address for broker in self.table.connection_closed(self.connections[connection])} == gone
        for address in gone:
            self.model.drop(address)

    @rule(ms=st.sampled_from([10_000, 30_001, BROKER_TIMEOUT_MS]))
    def time_passes(self, ms: int) -> None:
        self.clock.now_ms += ms
        now = self.clock.now_ms
        gone = {address for address, p in self.model.live.items() if now - p.seen_ms > p.timeout_ms}
        assert {broker.address for broker in self.table.expire()} == gone
        for address in gone:
            self.model.drop(address)

    @rule(address=ADDRESSES, counter=COUNTERS)
    def query_version(self, address: str, counter: int) -> None:
        process = self.model.live.get(address)
        changed, known = self.table.query_version(address, version(counter))
        assert changed == (process is None or process.counter != counter)
        assert known == (version(process.counter) if process else None)
        if process is not None:
            process.seen_ms = self.clock.now_ms

    @rule(name=NAMES, wipe=st.booleans())
    def change_permission(self, name: str, wipe: bool) -> None:
        change = self.table.wipe_write_permission if wipe else self.table.add_write_permission
        mine = [key for key in self.model.queues if key[1] == name]
        assert change(name) == len(mine)
        for key in mine:
            self.model.queues[key] = self.model.queues[key] & ~2 if wipe else 6

    @rule(topic=st.sampled_from(TOPICS), cluster=st.none() | CLUSTERS)
    def delete_topic(self, topic: str, cluster: str | None) -> None:
        gone = [key for key in self.model.queues if key[0] == topic]
        gone = [key for key in gone if cluster is None or self.model.clusters[key[1]] == cluster]
        assert self.table.delete_topic(topic, cluster) == len(gone)
        for key in gone:
            del self.model.queues[key]

    @rule(topic=st.sampled_from(TOPICS), names=st.lists(NAMES, max_size=2, unique=True))
    def add_topic(self, topic: str, names: list[str]) -> None:
        queues = [QueueData(broker_name=name, perm=6, read_queue_nums=4, write_queue_nums=4) for name in names]
        known = bool(names) and all(self.model.of_name(name) for name in names)
        assert self.table.add_topic(topic, queues) == known
        if known:
            self.model.queues |= {(topic, name): 6 for name in names}

    @invariant()
    def routes_are_what_the_model_says(self) -> None:
        assert sorted(self.table.topics()) == sorted({topic for topic, _ in self.model.queues})
        for each in TOPICS:
            route = self.table.route(each)
            expected = {name: perm for (topic, name), perm in self.model.queues.items() if topic == each}
            if not expected:
                assert route is None
                assert self.table.route_answer(each, True) is None
                continue
            assert route is not None
            assert {queue.broker_name: queue.perm for queue in route.queue_datas} == expected
            assert {b.broker_name: b.broker_addrs for b in route.broker_datas} == {
                name: self.model.of_name(name) for name in expected
            }
            for standard in (True, False):
                assert self.table.route_answer(each, standard) == route.encode(standard)

    @invariant()
    def lists_are_what_the_model_says(self) -> None:
        names = {process.name for process in self.model.live.values()}
        brokers = self.table.brokers()
        assert {name: data.broker_addrs for name, data in brokers.items()} == {
            name: self.model.of_name(name) for name in names
        }
        assert {name: data.cluster for name, data in brokers.items()} == self.model.clusters
        for cluster in ("C", "D"):
            mine = {name for name, of in self.model.clusters.items() if of == cluster}
            assert set(self.table.clusters().get(cluster, [])) == mine
            assert set(self.table.topics_of_cluster(cluster)) == {t for t, n in self.model.queues if n in mine}
        assert self.table._queue_count == len(self.model.queues)
        assert self.table.counts() == (len(self.model.live), len({topic for topic, _ in self.model.queues}))


TestRouteTable = RouteTableMachine.TestCase
TestRouteTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
