"""Who is connected, who has to hear of changes, and what two members of a group may disagree about."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker import clients
from gateway.broker.clients import ClientTable
from gateway.broker.members import Conflict, GroupChange
from gateway.routing import Refused
from protocol.bodies import ConsumerData, SubscriptionData
from tests.gateway.broker.fakes import Clock, FakePeer


def consumer(group: str, version: int = 1, **topics: str) -> ConsumerData:
    return ConsumerData(
        group_name=group,
        subscription_data_set=[
            SubscriptionData(topic=topic, sub_string=expression, sub_version=version)
            for topic, expression in topics.items()
        ],
    )


class Consumer:
    """A peer with a client id, beating into a table."""

    def __init__(self, table: ClientTable, client_id: str) -> None:
        self.table = table
        self.client_id = client_id
        self.peer = FakePeer()

    def beat(
        self, *consumers: ConsumerData, producers: tuple[str, ...] = ()
    ) -> tuple[list[GroupChange], list[Conflict]]:
        return self.table.heartbeat(self.peer, self.client_id, 0, 401, consumers, producers)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> ClientTable:
    return ClientTable(clock)


def test_a_new_member_is_told_with_all_others(table: ClientTable) -> None:
    one, two = Consumer(table, "one"), Consumer(table, "two")
    assert one.beat(consumer("g", T="*")) == ([GroupChange("g", (one.peer,))], [])
    assert two.beat(consumer("g", T="*")) == ([GroupChange("g", (one.peer, two.peer))], [])
    assert table.consumer_group("g") is not None
    assert table.consumer_group("g").client_ids() == ["one", "two"]  # type: ignore[union-attr]


def test_a_heartbeat_that_changes_nothing_tells_nobody(table: ClientTable) -> None:
    one = Consumer(table, "one")
    one.beat(consumer("g", T="*"))
    assert one.beat(consumer("g", T="*")) == ([], [])


def test_a_new_or_dropped_topic_is_told(table: ClientTable) -> None:
    one = Consumer(table, "one")
    one.beat(consumer("g", T="*"))
    assert one.beat(consumer("g", T="*", U="*"))[0] == [GroupChange("g", (one.peer,))]
    assert one.beat(consumer("g", U="*"))[0] == [GroupChange("g", (one.peer,))]
    assert table.subscription("g", "T") is None
    assert table.groups_subscribing("U") == ["g"]


def test_a_newer_expression_replaces_the_old_one_and_is_not_told(table: ClientTable) -> None:
    one = Consumer(table, "one")
    one.beat(consumer("g", version=5, T="a"))
    assert one.beat(consumer("g", version=6, T="b")) == ([], [])
    assert table.subscription("g", "T").sub_string == "b"  # type: ignore[union-attr]
    one.beat(consumer("g", version=4, T="c"))
    one.beat(consumer("g", version=6, T="d"))
    assert table.subscription("g", "T").sub_string == "b"  # type: ignore[union-attr]


def test_two_channels_with_one_client_id_are_two_members(table: ClientTable) -> None:
    one, twin = Consumer(table, "same"), Consumer(table, "same")
    one.beat(consumer("g", T="*"))
    twin.beat(consumer("g", T="*"))
    assert table.consumer_group("g").client_ids() == ["same", "same"]  # type: ignore[union-attr]
    assert table.find_consumer("g", "same").connection is twin.peer  # type: ignore[union-attr]
    table.disconnect(twin.peer)
    assert table.find_consumer("g", "same").connection is one.peer  # type: ignore[union-attr]
    assert table.find_client("same") is one.peer


def test_unregistering_tells_the_rest(table: ClientTable) -> None:
    one, two = Consumer(table, "one"), Consumer(table, "two")
    one.beat(consumer("g", T="*"), producers=("p",))
    two.beat(consumer("g", T="*"))
    assert table.unregister(one.peer, None, "g") == [GroupChange("g", (two.peer,))]
    assert table.unregister(one.peer, None, "g") == []
    assert table.producers("p") is not None
    assert table.unregister(one.peer, "p", "") == []
    assert table.producers("p") is None
    assert table.find_client("one") is None
    table.unregister(two.peer, "", "g")
    assert table.consumer_group("g") is None


def test_unregistering_somebody_unknown_changes_nothing(table: ClientTable) -> None:
    one, stranger = Consumer(table, "one"), Consumer(table, "stranger")
    one.beat(consumer("g", T="*"), producers=("p",))
    assert table.unregister(stranger.peer, "p", "g") == []
    assert table.counts() == (1, 1)


def test_a_closed_connection_leaves_all_its_groups(table: ClientTable) -> None:
    one, two = Consumer(table, "one"), Consumer(table, "two")
    one.beat(consumer("g", T="*"), consumer("h", T="*"), producers=("p", "q"))
    two.beat(consumer("g", T="*"))
    changes = table.disconnect(one.peer)
    assert sorted(changes, key=lambda change: change.group) == [
        GroupChange("g", (two.peer,)),
        GroupChange("h", ()),
    ]
    assert table.disconnect(one.peer) == []
    assert table.counts() == (1, 0)
    assert table.find_client("one") is None


def test_members_without_heartbeat_expire(table: ClientTable, clock: Clock) -> None:
    one, two = Consumer(table, "one"), Consumer(table, "two")
    one.beat(consumer("g", T="*"), producers=("p",))
    two.beat(consumer("g", T="*"))
    clock.advance(120_000)
    two.beat(consumer("g", T="*"))
    assert table.expire().changes == ()
    clock.advance(1)
    gone = table.expire()
    assert gone.changes == (GroupChange("g", (two.peer,)),)
    assert gone.silent == (one.peer,)
    assert table.producers("p") is None


def test_a_connection_with_a_living_group_is_not_silent(table: ClientTable, clock: Clock) -> None:
    one = Consumer(table, "one")
    one.beat(consumer("g", T="*"), consumer("h", T="*"))
    clock.advance(120_001)
    one.beat(consumer("h", T="*"))
    gone = table.expire()
    assert [change.group for change in gone.changes] == ["g"]
    assert gone.silent == ()


def test_differing_subscriptions_are_reported_once(table: ClientTable) -> None:
    one, two = Consumer(table, "one"), Consumer(table, "two")
    assert one.beat(consumer("g", T="a"))[1] == []
    conflicts = two.beat(consumer("g", T="b"))[1]
    assert conflicts == [Conflict("g", "two", "T: b", "one", "T: a")]
    assert one.beat(consumer("g", T="a"))[1] == []
    assert two.beat(consumer("g", T="c"))[1] == []
    assert two.beat(consumer("g", T="a"))[1] == []
    assert len(two.beat(consumer("g", T="b"))[1]) == 1


def test_a_heartbeat_without_groups_leaves_no_trace(table: ClientTable) -> None:
    one = Consumer(table, "one")
    assert one.beat() == ([], [])
    assert table.find_client("one") is None


def test_producers_are_picked_in_turn(table: ClientTable) -> None:
    peers = [Consumer(table, name) for name in ("one", "two", "three")]
    for peer in peers:
        peer.beat(producers=("p",))
    picked = [table.pick_producer("p") for _ in range(3)]
    assert set(picked) == {peer.peer for peer in peers}
    assert table.pick_producer("unknown") is None


def test_a_client_id_that_changes_leaves_no_trace(table: ClientTable) -> None:
    peer = Consumer(table, "id-0")
    for number in range(50):
        peer.client_id = f"id-{number}"
        peer.beat(producers=("p",))
    assert table.find_client("id-0") is None
    assert table.find_client("id-49") is peer.peer


def test_what_a_connection_says_is_bounded(table: ClientTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_CONNECTION_WEIGHT", 600)
    one, two = Consumer(table, "one"), Consumer(table, "two")
    one.beat(consumer("g", T="*"), producers=("p", "q"))
    one.beat(consumer("g", T="*"), producers=("p", "q"))
    with pytest.raises(Refused, match="limit is 600"):
        one.beat(producers=("r", "s"))
    with pytest.raises(Refused, match="limit is 600"):
        one.beat(consumer("g", T="x" * 500))
    assert table.counts() == (1, 2)
    assert table.subscription("g", "T").sub_string == "*"  # type: ignore[union-attr]
    two.beat(consumer("g", T="*"), producers=("p", "q"))


def test_what_all_connections_say_is_bounded(table: ClientTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MAX_WEIGHT", 900)
    peers = [Consumer(table, name) for name in ("one", "two", "three")]
    for peer in peers[:2]:
        peer.beat(consumer("g", T="*"), producers=("p",))
    with pytest.raises(Refused, match="limit is 900"):
        peers[2].beat(consumer("g", T="*"), producers=("p", "q", "r"))
    assert peers[0].beat(consumer("g", T="*"), producers=("p",)) == ([], [])
    table.disconnect(peers[0].peer)
    peers[2].beat(consumer("g", T="*"), producers=("p", "q", "r"))


def test_a_group_that_is_named_twice_counts_once(table: ClientTable) -> None:
    one = Consumer(table, "one")
    one.beat(consumer("g", T="*"), consumer("g", U="*"), producers=("p", "p"))
    assert table.counts() == (1, 1)
    assert table.groups_subscribing("T") == []
    table.disconnect(one.peer)
    assert table._weight == 0


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_random_lives_leave_an_empty_table(seed: int) -> None:
    clock = Clock()
    table = ClientTable(clock)
    chance = random.Random(seed)
    peers = [Consumer(table, f"id-{number % 3}") for number in range(6)]
    for _ in range(500):
        peer = chance.choice(peers)
        group = chance.choice("ghi")
        match chance.randrange(4):
            case 0:
                peer.beat(consumer(group, T=chance.choice("ab")), producers=(chance.choice("pq"),))
            case 1:
                table.unregister(peer.peer, chance.choice(["p", "q", "", None]), chance.choice([group, "", None]))
            case 2:
                table.disconnect(peer.peer)
            case _:
                clock.advance(chance.randrange(60_000))
                table.expire()
        for consumers in table.consumer_groups():
            assert consumers.members
    clock.advance(200_000)
    table.expire()
    assert table.counts() == (0, 0)
    assert not table._memberships
    assert not table._clients
    assert table._weight == 0
