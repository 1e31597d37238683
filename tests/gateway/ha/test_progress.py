"""What slaves acknowledge: the rules of haSlaveFallbehindMax and inSyncReplicas; no acknowledgement is false."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.ha.progress import Replica, ReplicaProgress, ReportRefused

REACH = 1000


@dataclass
class Options:
    in_sync_replicas: int = 2
    ha_slave_fallbehind_max: int = REACH


def make(copies: int = 2) -> ReplicaProgress:
    return ReplicaProgress(Options(copies))


def attach(
    progress: ReplicaProgress, offset: int, *, host: str = "10.0.0.1", broker_id: int | None = None
) -> Replica:
    replica = Replica(f"{host}#{broker_id}", host, offset, broker_id)
    progress.attach(replica)
    return replica


def test_without_a_slave_nothing_is_in_reach() -> None:
    assert not make().in_reach(0)


def test_a_slave_is_in_reach_below_the_limit_and_not_at_it() -> None:
    progress = make()
    attach(progress, 500)
    assert progress.in_reach(500 + REACH - 1)
    assert not progress.in_reach(500 + REACH)


def test_one_report_acknowledges_everything_below_it() -> None:
    progress = make()
    slave = attach(progress, 100)
    slave.sent = 900
    progress.reported(slave, 700)
    assert progress.acknowledged.offset == 700


def test_a_slave_cannot_have_what_it_was_not_sent() -> None:
    progress = make()
    slave = attach(progress, 100)
    slave.sent = 200
    with pytest.raises(ReportRefused, match=r"offset 201.*up to 200"):
        progress.reported(slave, 201)
    assert progress.acknowledged.offset == 100


def test_a_report_does_not_go_back() -> None:
    progress = make()
    slave = attach(progress, 100)
    with pytest.raises(ReportRefused, match="offset 99 after it had reported 100"):
        progress.reported(slave, 99)


def test_the_fastest_slave_acknowledges_when_two_copies_are_wanted() -> None:
    progress = make(copies=2)
    attach(progress, 10)
    fast = attach(progress, 10, host="10.0.0.2")
    fast.sent = 50
    progress.reported(fast, 50)
    assert progress.acknowledged.offset == 50


def test_the_slower_of_two_acknowledges_when_three_copies_are_wanted() -> None:
    progress = make(copies=3)
    one = attach(progress, 10)
    assert not progress.in_reach(10)
    assert progress.acknowledged.offset == 0
    two = attach(progress, 30, host="10.0.0.2")
    assert progress.acknowledged.offset == 10
    one.sent = 80
    progress.reported(one, 80)
    assert progress.acknowledged.offset == 30
    progress.detach(two)
    assert not progress.in_reach(80)
    assert progress.in_reach(30)  # it was in three places once
    assert progress.acknowledged.offset == 30


def test_a_slave_that_left_no_longer_makes_the_master_look_served() -> None:
    progress = make()
    slave = attach(progress, 5000)
    progress.detach(slave)
    attach(progress, 10, host="10.0.0.2")
    assert not progress.in_reach(5001)


def test_a_new_link_of_one_slave_takes_the_place_of_the_old() -> None:
    progress = make(copies=3)
    old = attach(progress, 10, broker_id=1)
    new = Replica("again", "10.0.0.1", 20, 1)
    assert progress.attach(new) is old
    assert progress.replicas == [new]
    assert progress.acknowledged.offset == 0
    progress.detach(old)
    assert progress.replicas == [new]


def test_a_half_dead_official_connection_does_not_count_beside_the_new_one() -> None:
    progress = make(copies=3)
    old = attach(progress, 10)
    attach(progress, 20)
    assert progress.acknowledged.offset == 0
    progress.reported(old, 10)  # it was not dead: there are two slaves on that host
    assert progress.acknowledged.offset == 10


def test_a_report_of_a_replaced_link_does_not_count() -> None:
    progress = make()
    old = attach(progress, 10, broker_id=1)
    old.sent = 90
    attach(progress, 10, broker_id=1)
    progress.reported(old, 90)
    assert progress.acknowledged.offset == 10


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_one_slave_is_the_least(copies: int) -> None:
    progress = make(copies)
    assert not progress.in_reach(10)
    attach(progress, 10)
    assert progress.acknowledged.offset == 10


def test_options_may_change_meanwhile() -> None:
    options = Options(2)
    progress = ReplicaProgress(options)
    one, two = attach(progress, 10), attach(progress, 10, host="10.0.0.2")
    one.sent = two.sent = 900
    options.in_sync_replicas = 3
    progress.reported(one, 900)
    assert progress.acknowledged.offset == 10
    progress.reported(two, 500)
    assert progress.acknowledged.offset == 500
    options.in_sync_replicas = 2
    progress.reported(two, 500)
    assert progress.acknowledged.offset == 900
    assert progress.in_reach(901)
    options.ha_slave_fallbehind_max = 1
    assert not progress.in_reach(901)


def test_fewer_copies_count_at_once() -> None:
    options = Options(3)
    progress = ReplicaProgress(options)
    attach(progress, 10)
    seen = []
    for copies in (3, 2, 3):
        options.in_sync_replicas = copies
        seen.append((progress.in_reach(11), progress.are_enough))
    assert seen == [(False, False), (True, True), (False, False)]


class Cluster(RuleBasedStateMachine):
    """Slaves that come, go, get bytes and report, some of them lying; the model knows who really has what."""

    links = Bundle("links")

    def __init__(self) -> None:
        super().__init__()
        self.copies = 2
        self.progress = make()
        self.reached: dict[int, dict[str, int]] = {}

    @rule(copies=st.integers(2, 4))
    def choose_copies(self, copies: int) -> None:
        if not self.progress.replicas and not self.progress.acknowledged.offset:
            self.copies = copies
            self.progress = make(copies)

    @rule(target=links, identity=st.integers(1, 4), offset=st.integers(0, 50))
    def join(self, identity: int, offset: int) -> Replica:
        return attach(self.progress, offset, broker_id=identity)

    @rule(link=links, more=st.integers(0, 30))
    def send(self, link: Replica, more: int) -> None:
        link.sent = link.sent + more

    @rule(link=links, offset=st.integers(0, 120))
    def report(self, link: Replica, offset: int) -> None:
        believable = link.acked <= offset <= link.sent
        before = self.progress.acknowledged.offset
        try:
            self.progress.reported(link, offset)
        except ReportRefused:
            assert not believable
            assert self.progress.acknowledged.offset == before
        else:
            assert believable

    @rule(link=consumes(links))
    def leave(self, link: Replica) -> None:
        self.progress.detach(link)

    @invariant()
    def acknowledged_is_what_enough_slaves_had(self) -> None:
        present = self.progress.replicas
        assert len({replica.broker_id for replica in present}) == len(present)
        assert all(replica.acked <= replica.sent for replica in present)
        acked = sorted((replica.acked for replica in present), reverse=True)
        needed = self.copies - 1
        now = acked[needed - 1] if len(acked) >= needed else -1
        assert self.progress.acknowledged.offset >= now
        self.highest = max(getattr(self, "highest", 0), now)
        assert self.progress.acknowledged.offset == self.highest
        for offset in (self.highest + 1, now + REACH - 1, now + REACH):
            near = now >= 0 and offset < now + REACH
            assert self.progress.in_reach(offset) == (near or 0 < offset <= self.highest)


TestCluster = Cluster.TestCase


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(2, 5))
def test_acknowledged_is_the_offset_that_enough_slaves_have(offsets: list[int], copies: int) -> None:
    progress = make(copies)
    for number, offset in enumerate(offsets):
        attach(progress, offset, host=f"10.0.0.{number}")
    holders = sum(offset >= progress.acknowledged.offset for offset in offsets)
    if len(offsets) >= copies - 1:
        assert holders >= copies - 1
        assert sum(offset > progress.acknowledged.offset for offset in offsets) < copies - 1
    else:
        assert progress.acknowledged.offset == 0
