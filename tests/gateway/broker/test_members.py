"""A consumer group: what its members' heartbeats make of it, and when they contradict each other."""

from gateway.broker.members import ConsumerGroup, Member, signature, weight
from protocol.bodies import ConsumerData, ConsumeType, MessageModel, SubscriptionData
from tests.gateway.broker.fakes import FakePeer


def heartbeat(version: int = 1, **topics: str) -> ConsumerData:
    return ConsumerData(
        group_name="g",
        subscription_data_set=[
            SubscriptionData(topic=topic, sub_string=expression, sub_version=version)
            for topic, expression in topics.items()
        ],
    )


def join(group: ConsumerGroup, client_id: str, data: ConsumerData) -> Member:
    member = Member(FakePeer(), client_id, 0, 401, 0, signature(data))
    group.members[member.connection] = member
    return member


def test_the_latest_heartbeat_says_how_the_group_consumes() -> None:
    group = ConsumerGroup(heartbeat(T="*"))
    data = ConsumerData(
        group_name="g", consume_type=ConsumeType.CONSUME_ACTIVELY, message_model=MessageModel.BROADCASTING
    )
    group.update(data)
    assert (group.consume_type, group.message_model) == ("CONSUME_ACTIVELY", "BROADCASTING")


def test_only_new_and_dropped_topics_are_changes() -> None:
    group = ConsumerGroup(heartbeat())
    assert group.update(heartbeat(T="a", U="*"))
    assert not group.update(heartbeat(version=2, T="b", U="*"))
    assert group.subscriptions["T"].sub_string == "b"
    assert not group.update(heartbeat(version=1, T="c", U="*"))
    assert group.subscriptions["T"].sub_string == "b"
    assert group.update(heartbeat(T="b"))
    assert group.subscriptions.keys() == {"T"}


def test_the_order_of_topics_is_no_difference() -> None:
    assert signature(heartbeat(T="a", U="b")) == signature(heartbeat(U="b", T="a"))
    assert signature(heartbeat(T="a", version=1)) == signature(heartbeat(T="a", version=2))
    assert signature(heartbeat(T="a")) != signature(heartbeat(T="b"))


def test_a_conflict_names_both_sides() -> None:
    group = ConsumerGroup(heartbeat())
    one = join(group, "one", heartbeat(T="*", U="x"))
    assert group.conflict(one) is None
    conflict = group.conflict(join(group, "two", heartbeat(T="*")))
    assert conflict is not None
    assert (conflict.member, conflict.subscription) == ("two", "T: *")
    assert (conflict.other_member, conflict.other_subscription) == ("one", "T: *, U: x")


def test_a_conflict_is_told_once_until_all_agree() -> None:
    group = ConsumerGroup(heartbeat())
    join(group, "one", heartbeat(T="a"))
    two = join(group, "two", heartbeat(T="b"))
    assert group.conflict(two) is not None
    assert group.conflict(two) is None
    two.subscription = signature(heartbeat(T="a"))
    assert group.conflict(two) is None
    two.subscription = signature(heartbeat(T="c"))
    assert group.conflict(two) is not None


def test_the_description_of_a_conflict_is_bounded() -> None:
    group = ConsumerGroup(heartbeat())
    join(group, "one", heartbeat(T="*"))
    conflict = group.conflict(join(group, "two", heartbeat(T="x" * 5000)))
    assert conflict is not None
    assert len(conflict.subscription) == 1001


def test_weight_grows_with_all_that_is_kept() -> None:
    nothing = weight(heartbeat())
    assert weight(heartbeat(T="")) - nothing == 101
    assert weight(heartbeat(T="x" * 500)) - weight(heartbeat(T="")) == 500
    tagged = ConsumerData(
        group_name="g", subscription_data_set=[SubscriptionData(topic="T", tags_set=["ab"], code_set=[1, 2])]
    )
    assert weight(tagged) - weight(heartbeat(T="*")) == 18
