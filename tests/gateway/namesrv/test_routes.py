"""RouteTable: who is told to clients, from registration to disappearance."""

import pytest

from gateway.namesrv import routes
from gateway.namesrv.registration import BROKER_TIMEOUT_MS, Registration, RouteTableFull
from gateway.namesrv.routes import RouteTable
from protocol.bodies import QueueData
from tests.gateway.namesrv.samples import Clock, FakeConnection, registration, topic, version

PEER = FakeConnection()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> RouteTable:
    return RouteTable(clock)


def addresses(table: RouteTable, topic: str) -> dict[str, dict[int, str]]:
    route = table.route(topic)
    return {} if route is None else {broker.broker_name: broker.broker_addrs for broker in route.broker_datas}


def perms(table: RouteTable, topic: str) -> dict[str, int]:
    route = table.route(topic)
    return {} if route is None else {queue.broker_name: queue.perm for queue in route.queue_datas}


# ---- registration


def test_topics_of_several_brokers_make_one_route(table: RouteTable) -> None:
    """A route has the queues of each broker name and all addresses of each name."""
    table.register(registration("a", 0, "T", "U"), PEER)
    table.register(registration("a", 2, "T", "U"), PEER)
    table.register(registration("b", 0, topic("T", queues=9), "V"), PEER)
    route = table.route("T")
    assert route is not None
    assert {q.broker_name: (q.read_queue_nums, q.write_queue_nums) for q in route.queue_datas} == {
        "a": (4, 4),
        "b": (9, 9),
    }
    assert addresses(table, "T") == {"a": {0: "a-0:10911", 2: "a-2:10911"}, "b": {0: "b-0:10911"}}
    assert addresses(table, "U").keys() == {"a"}
    assert table.route("W") is None


def test_a_slave_brings_no_topics_and_learns_its_master(table: RouteTable) -> None:
    """Only id 0 tells topics; a slave's answer has the master's addresses once there is one."""
    alone = table.register(registration("a", 1, "T", "U"), PEER)
    assert table.topics() == []
    assert (alone.master_address, alone.master_ha_address) == (None, None)
    master = table.register(registration("a", 0, "T", "U"), PEER)
    assert (master.master_address, master.master_ha_address) == (None, None)
    slave = table.register(registration("a", 1, "T", "U"), PEER)
    assert (slave.master_address, slave.master_ha_address) == ("a-0:10911", "a-0:10911/ha")


def test_an_unchanged_version_is_not_looked_at(table: RouteTable) -> None:
    """The usual registration every 30 s leaves a wiped permission and a deleted topic as they are."""
    table.register(registration("a", 0, "T", "U"), PEER)
    table.wipe_write_permission("a")
    table.delete_topic("U")
    again = table.register(registration("a", 0, "T", "U"), PEER)
    assert (again.is_new, again.topics_changed) == (False, 0)
    assert (perms(table, "T"), table.topics()) == ({"a": 4}, ["T"])
    changed = table.register(registration("a", 0, "T", "U", counter=2), PEER)
    assert changed.topics_changed == 2
    assert (perms(table, "T"), perms(table, "U")) == ({"a": 6}, {"a": 6})


def test_topics_missing_in_a_later_table_stay(table: RouteTable) -> None:
    """A table that has lost a topic does not take it from the route (official; brokers delete by code 216)."""
    table.register(registration("a", 0, "T", "U"), PEER)
    table.register(registration("a", 0, "T", "V", counter=2), PEER)
    assert table.topics() == ["T", "U", "V"]


def test_a_slave_that_becomes_master_leaves_its_old_id(table: RouteTable) -> None:
    """One address never stands under two ids of a name, and its topics count from now on."""
    table.register(registration("a", 1, "T", "U", address="x:1"), PEER)
    table.register(registration("a", 0, "T", "U", address="x:1"), PEER)
    assert table.member_addresses("a") == {0: "x:1"}
    assert addresses(table, "T") == {"a": {0: "x:1"}}


def test_an_address_that_changes_its_name_is_moved(table: RouteTable) -> None:
    """A renamed broker takes nothing of its old name along, even if its old connection has not ended yet."""
    table.register(registration("a", 0, "T", "U", address="x:1"), PEER)
    table.register(registration("b", 0, "T", "V", address="x:1"), PEER)
    assert table.brokers().keys() == {"b"}
    assert sorted(table.topics()) == ["T", "V"]
    assert addresses(table, "T").keys() == {"b"}


def test_a_new_address_replaces_the_old_holder_of_its_id(table: RouteTable) -> None:
    """The latest process with an id wins, and what the earlier one does afterwards harms nobody."""
    old, new = FakeConnection(), FakeConnection()
    table.register(registration("a", 0, "T", "U", address="x:1"), old)
    result = table.register(registration("a", 0, "T", "U", address="y:1"), new)
    assert result.replaced_address == "x:1"
    table.connection_closed(old)
    table.unregister("x:1", "a")
    assert addresses(table, "T") == {"a": {0: "y:1"}}


def test_an_older_process_does_not_take_an_id_back(table: RouteTable) -> None:
    """5.x: of two with the same id the one with the higher state version stays."""
    table.register(registration("a", 0, "T", "U", address="y:1", state=2), PEER)
    result = table.register(registration("a", 0, "T", "V", address="x:1", state=1), PEER)
    assert result.ignored
    assert table.member_addresses("a") == {0: "y:1"}
    assert "V" not in table.topics()


def test_a_single_topic_first_does_not_hide_the_whole_table(table: RouteTable) -> None:
    """After a restart of the name server a broker's report of one new topic may come before its table."""
    table.register(registration("a", 0, "New", counter=7), PEER)
    assert table.topics() == ["New"]
    table.register(registration("a", 0, "New", "T", "U", counter=7), PEER)
    assert sorted(table.topics()) == ["New", "T", "U"]
    table.wipe_write_permission("a")
    table.register(registration("a", 0, "New", "T", "U", counter=7), PEER)
    assert perms(table, "T") == {"a": 4}


def test_a_new_master_has_to_tell_its_whole_table(table: RouteTable) -> None:
    """What it said as a slave was not taken, so a single topic under its new id is not all there is to know."""
    table.register(registration("a", 1, "T", "U", address="x:1"), PEER)
    table.register(registration("a", 0, "T", address="x:1"), PEER)
    assert table.topics() == ["T"]
    table.register(registration("a", 0, "T", "U", address="x:1"), PEER)
    assert table.topics() == ["T", "U"]


def test_a_broker_with_one_topic_only(table: RouteTable) -> None:
    """The same report again is not news, although a whole table has never come."""
    table.register(registration("a", 0, "T"), PEER)
    table.wipe_write_permission("a")
    table.register(registration("a", 0, "T"), PEER)
    assert perms(table, "T") == {"a": 4}


def test_the_master_says_which_cluster_a_name_belongs_to(table: RouteTable) -> None:
    """A slave with another cluster name in its file does not split the broker."""
    table.register(registration("a", 1, "T", "U", cluster="D"), PEER)
    assert table.clusters() == {"D": ["a"]}
    table.register(registration("a", 0, "T", "U", cluster="C"), PEER)
    slave = table.register(registration("a", 1, "T", "U", cluster="D"), PEER)
    assert (table.clusters(), slave.cluster) == ({"C": ["a"]}, "C")


def test_filter_servers_are_part_of_the_route(table: RouteTable) -> None:
    """They stand by broker address; an empty list ends them, no list keeps them."""
    table.register(registration("a", 0, "T", "U", filter_servers=["f:1"]), PEER)
    assert b'"filterServerTable":{"a-0:10911":["f:1"]}' in (table.route_answer("T", True) or b"")
    table.register(registration("a", 0, "T", "U", filter_servers=None), PEER)
    assert b'"filterServerTable":{"a-0:10911":["f:1"]}' in (table.route_answer("T", True) or b"")
    table.register(registration("a", 0, "T", "U", filter_servers=[]), PEER)
    assert b'"filterServerTable":{}' in (table.route_answer("T", True) or b"")


# ---- acting masters (5.x)


def test_the_smallest_slave_tells_topics_without_write_permission(table: RouteTable) -> None:
    """Brokers with enableSlaveActingMaster: while there is no master, the smallest slave keeps topics readable."""
    table.register(registration("a", 2, "T", "U", enable_acting_master=True), PEER)
    assert perms(table, "T") == {"a": 4}
    table.register(registration("a", 1, "T", "V", enable_acting_master=True), PEER)
    assert perms(table, "V") == {"a": 4}
    table.register(registration("a", 2, "T", "W", enable_acting_master=True, counter=2), PEER)
    assert "W" not in table.topics()


def test_topics_are_read_only_when_the_master_of_acting_slaves_goes(table: RouteTable) -> None:
    """Producers are sent away at once; with 4.x brokers the permission stays as it was."""
    acting, plain = FakeConnection(), FakeConnection()
    table.register(registration("a", 0, "T", "U", enable_acting_master=True), acting)
    table.register(registration("a", 1, "T", "U", enable_acting_master=True), PEER)
    table.register(registration("b", 0, "T", "U"), plain)
    table.register(registration("b", 1, "T", "U"), PEER)
    table.connection_closed(acting)
    table.connection_closed(plain)
    assert perms(table, "T") == {"a": 4, "b": 6}


# ---- going


def test_the_last_address_of_a_name_takes_its_topics_along(table: RouteTable) -> None:
    """While a slave lives the topics stay, so that consumers can read on."""
    table.register(registration("a", 0, "T", "U"), PEER)
    table.register(registration("a", 1, "T", "U"), PEER)
    table.register(registration("b", 0, "T", "V"), PEER)
    assert table.unregister("a-0:10911", "a") is not None
    assert addresses(table, "T")["a"] == {1: "a-1:10911"}
    assert table.unregister("a-1:10911", "a") is not None
    assert table.clusters() == {"C": ["b"]}
    assert sorted(table.topics()) == ["T", "V"]
    assert perms(table, "T") == {"b": 6}


def test_unregistering_what_is_not_there(table: RouteTable) -> None:
    """An unknown address, or one that stands under another name, is left alone."""
    table.register(registration("a", 0, "T", "U"), PEER)
    assert table.unregister("nobody:1", "a") is None
    assert table.unregister("a-0:10911", "b") is None
    assert addresses(table, "T") == {"a": {0: "a-0:10911"}}


def test_a_closed_connection_takes_all_of_its_brokers(table: RouteTable) -> None:
    """Only brokers whose latest registration came over it: one that has reconnected stays."""
    first, second = FakeConnection(), FakeConnection()
    table.register(registration("a", 0, "T", "U"), first)
    table.register(registration("b", 0, "T", "U"), first)
    table.register(registration("c", 0, "T", "U"), first)
    table.register(registration("c", 0, "T", "U"), second)
    gone = table.connection_closed(first)
    assert sorted(broker.broker_name for broker in gone) == ["a", "b"]
    assert addresses(table, "T").keys() == {"c"}
    assert table.connection_closed(first) == []


def test_silent_brokers_expire_each_after_its_own_time(table: RouteTable, clock: Clock) -> None:
    """120 s, or what the broker said; registering, asking for the version and heartbeats are signs of life."""
    for name in ("registers", "asks", "beats", "silent"):
        table.register(registration(name, 0, "T", "U"), PEER)
    table.register(registration("hasty", 0, "T", "U", timeout_ms=10_000), PEER)
    clock.now_ms += 10_000
    assert table.expire() == []
    clock.now_ms += 1
    assert [broker.broker_name for broker in table.expire()] == ["hasty"]
    clock.now_ms += BROKER_TIMEOUT_MS - 10_001
    table.register(registration("registers", 0, "T", "U"), PEER)
    assert table.query_version("asks-0:10911", version(9)) == (True, version())
    assert table.heartbeat("beats-0:10911")
    assert table.expire() == []
    clock.now_ms += 1
    assert [broker.broker_name for broker in table.expire()] == ["silent"]
    assert addresses(table, "T").keys() == {"registers", "asks", "beats"}


def test_versions_are_compared(table: RouteTable) -> None:
    """QUERY_DATA_VERSION: a broker registers anew if it is unknown or its table has changed."""
    assert table.query_version("a-0:10911", version()) == (True, None)
    assert not table.heartbeat("a-0:10911")
    table.register(registration("a", 0, "T", "U"), PEER)
    assert table.query_version("a-0:10911", version()) == (False, version())
    assert table.query_version("a-0:10911", version(2)) == (True, version())


# ---- limits


def test_the_number_of_brokers_is_bounded(table: RouteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound nobody new comes in; who is known goes on, and who leaves makes room."""
    monkeypatch.setattr(routes, "MAX_BROKERS", 2)
    table.register(registration("a", 0, "T", "U"), PEER)
    table.register(registration("a", 1, "T", "U"), PEER)
    with pytest.raises(RouteTableFull, match="2 brokers"):
        table.register(registration("a", 2, "T", "U"), PEER)
    table.register(registration("a", 1, "T", "U"), PEER)
    table.unregister("a-1:10911", "a")
    table.register(registration("a", 2, "T", "U"), PEER)


def test_the_number_of_topics_is_bounded(table: RouteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics count once for each broker name; deleted ones and those of gone brokers make room."""
    monkeypatch.setattr(routes, "MAX_QUEUES", 4)
    table.register(registration("a", 0, "T", "U"), PEER)
    table.register(registration("b", 0, "T", "U"), PEER)
    table.register(registration("b", 0, "T", "U", counter=2), PEER)
    with pytest.raises(RouteTableFull, match="4"):
        table.register(registration("a", 0, "T", "U", "V", counter=2), PEER)
    queue = QueueData(broker_name="a", perm=6, read_queue_nums=1, write_queue_nums=1)
    with pytest.raises(RouteTableFull, match="4"):
        table.add_topic("V", [queue])
    assert sorted(table.topics()) == ["T", "U"]
    table.delete_topic("T")
    assert table.add_topic("V", [queue])
    table.unregister("b-0:10911", "b")
    table.register(registration("a", 0, "T", "U", "V", "W", counter=3), PEER)


@pytest.mark.parametrize(
    "other",
    [
        registration("n" * 1025, 0, "T", "U"),
        registration("a", 0, "T", "t" * 1025),
        registration("a", 0, "T", cluster="c" * 1025),
        registration("a", 0, "T", address="h" * 1025),
        registration("a", 0, "T", zone_name="z" * 1025),
        registration("a", 0, "T", filter_servers=["f" * 1025]),
        registration("a", 0, "T", filter_servers=["f"] * 101),
    ],
)
def test_names_are_bounded(table: RouteTable, other: Registration) -> None:
    """Nobody brings a name of megabytes in."""
    with pytest.raises(RouteTableFull):
        table.register(other, PEER)
    assert (table.counts(), table.brokers()) == ((0, 0), {})


# ---- topics


def test_write_permission_goes_and_comes(table: RouteTable) -> None:
    """wipe takes the write bit and leaves the others; add gives reading and writing; both count topics."""
    table.register(registration("a", 0, topic("T", perm=7), "U"), PEER)
    table.register(registration("b", 0, "T"), PEER)
    assert table.wipe_write_permission("a") == 2
    assert perms(table, "T") == {"a": 5, "b": 6}
    assert table.add_write_permission("a") == 2
    assert perms(table, "T") == {"a": 6, "b": 6}
    assert table.wipe_write_permission("nobody") == 0


def test_topics_are_deleted_everywhere_or_in_one_cluster(table: RouteTable) -> None:
    """Without a cluster the topic is gone; with one, only its brokers lose it."""
    table.register(registration("a", 0, "T", "U", cluster="C"), PEER)
    table.register(registration("b", 0, "T", "U", cluster="D"), PEER)
    assert table.delete_topic("T", "C") == 1
    assert perms(table, "T") == {"b": 6}
    assert table.delete_topic("T", "E") == 0
    assert table.delete_topic("T", "D") == 1
    assert table.delete_topic("U") == 2
    assert table.topics() == []
    assert table.delete_topic("U") == 0


def test_one_topic_is_added_to_known_brokers_only(table: RouteTable) -> None:
    """REGISTER_TOPIC_IN_NAMESRV with one unknown broker changes nothing."""
    table.register(registration("a", 0, "T", "U"), PEER)

    def queues(*names: str) -> list[QueueData]:
        return [QueueData(broker_name=name, perm=6, read_queue_nums=3, write_queue_nums=3) for name in names]

    assert not table.add_topic("New", queues("a", "b"))
    assert not table.add_topic("New", [])
    assert table.route("New") is None
    assert table.add_topic("New", queues("a"))
    assert addresses(table, "New") == {"a": {0: "a-0:10911"}}


def test_lists(table: RouteTable) -> None:
    """Topics by cluster name each topic once; unit lists look at the flags."""
    table.register(registration("a", 0, "T", topic("Unit", flags=1), topic("Sub", flags=2)), PEER)
    table.register(registration("b", 0, "T", topic("Both", flags=3)), PEER)
    table.register(registration("c", 0, "Far", "T", cluster="D"), PEER)
    assert sorted(table.topics_of_cluster("C")) == ["Both", "Sub", "T", "Unit"]
    assert sorted(table.topics_of_cluster("D")) == ["Far", "T"]
    assert table.topics_of_cluster("E") == []
    assert table.topics_with_flags(1) == ["Unit", "Both"]
    assert table.topics_with_flags(2) == ["Sub", "Both"]
    assert table.topics_with_flags(2, without=1) == ["Sub"]
    assert table.clusters() == {"C": ["a", "b"], "D": ["c"]}
    assert table.counts() == (3, 5)


def test_any_address_prefers_a_master(table: RouteTable) -> None:
    """Whoever reads the system topics asks that broker for more."""
    assert table.any_address() is None
    table.register(registration("a", 1, "T", "U"), PEER)
    assert table.any_address() == "a-1:10911"
    table.register(registration("a", 0, "T", "U"), PEER)
    assert table.any_address() == "a-0:10911"


# ---- answers


def test_answers_are_kept_until_something_changes(table: RouteTable) -> None:
    """Polling costs a look-up: the same bytes come back until a broker or the topic changes."""
    table.register(registration("a", 0, "T", "U"), PEER)
    kept = table.route_answer("T", True)
    table.register(registration("a", 0, "T", "U"), PEER)
    assert table.route_answer("T", True) is kept
    table.register(registration("a", 0, "T", topic("U", queues=5), counter=2), PEER)
    assert table.route_answer("T", True) is kept
    table.register(registration("a", 1, "T", "U"), PEER)
    assert table.route_answer("T", True) is not kept


def test_quoted_and_unquoted_ids(table: RouteTable) -> None:
    """Go splits the unquoted text at commas and colons; new Java clients get standard JSON."""
    table.register(registration("a", 1, "T", "U", address="h:2"), PEER)
    table.register(registration("a", 0, "T", "U", address="h:1"), PEER)
    assert b'{"brokerAddrs":{0:"h:1",1:"h:2"},' in (table.route_answer("T", False) or b"")
    assert b'{"brokerAddrs":{"0":"h:1","1":"h:2"},' in (table.route_answer("T", True) or b"")


def test_routes_of_a_zone(table: RouteTable) -> None:
    """5.x: brokers of other zones are left out while they have a master; names are compared without case."""
    table.register(registration("near", 0, "T", "U", zone_name="East"), PEER)
    table.register(registration("far", 0, "T", "U", zone_name="West"), PEER)
    table.register(registration("orphan", 0, "T", "U", zone_name="West"), FakeConnection())
    table.register(registration("orphan", 1, "T", "U", zone_name="West"), PEER)
    table.unregister("orphan-0:10911", "orphan")
    route = table.route("T", "east")
    assert route is not None
    assert [broker.broker_name for broker in route.broker_datas] == ["near", "orphan"]
    assert [queue.broker_name for queue in route.queue_datas] == ["near", "orphan"]
