"""Consumer groups as tools see and change them."""

from collections.abc import Callable

import pytest

from protocol import bodies
from protocol.codes import PULL_SUBSCRIPTION, RequestCode, ResponseCode
from protocol.header import Header
from protocol.requests.groups import (
    DeleteSubscriptiongroup,
    GetBrokerConsumeStats,
    GetConsumeStats,
    GetSubscriptiongroupConfig,
    QueryConsumeTimeSpan,
    QuerySubscriptionByConsumer,
    QueryTopicsByConsumer,
)
from protocol.requests.offsets import CloneGroupOffset
from protocol.requests.pull import PullMessage
from store.options import BrokerRole
from tests.gateway.broker.fakes import FakePeer
from tests.gateway.broker.handlers.rig import Rig

Make = Callable[..., Rig]


def subscribe(rig: Rig, group: str, *topics: str) -> None:
    subscriptions = [bodies.SubscriptionData(topic=topic, sub_string="a") for topic in topics]
    consumer = bodies.ConsumerData(group_name=group, subscription_data_set=subscriptions)
    rig.broker.clients.heartbeat(FakePeer(), "one", 0, 401, [consumer], [])


@pytest.fixture
def consumed(rig: Rig) -> Rig:
    """Group g has consumed 2 of 5 messages of a queue of T, and nothing of another; and it has an offset in U."""
    rig.broker.topics.update(
        [bodies.TopicConfig(topic_name=topic, read_queue_nums=2, write_queue_nums=2) for topic in ("T", "U")]
    )
    for _ in range(5):
        rig.store_messages("T", 1, 1)
        rig.clock.advance(1000)
    rig.broker.offsets.commit("g", "T", 1, 2, ceiling=5)
    rig.broker.offsets.commit("g", "U", 0, 0, ceiling=0)
    return rig


# ---- settings


async def test_a_group_is_created_changed_and_deleted(rig: Rig) -> None:
    body = b'{"groupName":"g","retryMaxTimes":3,"consumeEnable":false,"attributes":{},"groupSysFlag":0}'
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)).code == 0
    others = {"attributes": {}, "groupSysFlag": 0}
    config = bodies.SubscriptionGroupConfig(group_name="g", retry_max_times=3, consume_enable=False, others=others)
    answer = await rig.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, GetSubscriptiongroupConfig(group="g"))
    assert bodies.SubscriptionGroupConfig.decode(answer.body) == config
    answer = await rig.ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
    assert bodies.GroupTableBody.decode(answer.body).subscription_group_table["g"] == config
    await rig.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, DeleteSubscriptiongroup(group_name="g"))
    answer = await rig.ask(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, GetSubscriptiongroupConfig(group="g"))
    assert answer.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


async def test_a_change_of_attributes_is_refused_and_the_present_ones_stay(rig: Rig) -> None:
    body = b'{"groupName":"g","attributes":{"+priority.factor":"50"}}'
    answer = await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "attributes" in (answer.remark or "")
    assert "g" not in rig.broker.groups
    others = {"attributes": {"priority.factor": "50"}, "groupSysFlag": 1}
    rig.broker.groups.update([bodies.SubscriptionGroupConfig(group_name="g", others=others)])
    body = b'{"groupName":"g","attributes":{},"groupSysFlag":2}'
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)).code == ResponseCode.SUCCESS
    assert rig.broker.groups.find("g").others == others | {"groupSysFlag": 2}
    await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=b'{"groupName":"g"}')
    assert rig.broker.groups.find("g").others == {"attributes": {"priority.factor": "50"}}


async def test_many_groups_are_created_at_once_or_not_at_all(rig: Rig) -> None:
    body = b'{"groupConfigList":[{"groupName":"a"},{"groupName":"b"}]}'
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, body=body)).code == 0
    assert {"a", "b"} <= set(rig.broker.groups.names())
    body = b'{"groupConfigList":[{"groupName":"c"},{"groupName":"../d"}]}'
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, body=body)).code == 1
    assert "c" not in rig.broker.groups


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"groupName":7}', b'{"groupName":"x/y"}', b'{"groupName":""}'])
async def test_nonsense_is_refused(rig: Rig, body: bytes) -> None:
    answer = await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark
    assert len(rig.broker.groups) == 7


@pytest.mark.parametrize(("flags", "left"), [({}, 2), ({"remove_offset": True}, 0), ({"clean_offset": True}, 0)])
async def test_offsets_of_a_deleted_group_go_on_request(consumed: Rig, flags: dict[str, bool], left: int) -> None:
    header = DeleteSubscriptiongroup(group_name="g", **flags)
    assert (await consumed.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, header)).code == ResponseCode.SUCCESS
    assert len(consumed.broker.offsets) == left


async def test_a_slave_lets_nobody_change_its_groups(make_rig: Make) -> None:
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE})
    for answer in (
        await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=b'{"groupName":"g"}'),
        await rig.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, body=b'{"groupConfigList":[]}'),
        await rig.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, DeleteSubscriptiongroup(group_name="g")),
    ):
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "please execute it from master broker" in (answer.remark or "")


# ---- where groups stand

Place = tuple[int, int, int]


async def places(rig: Rig, header: GetConsumeStats) -> dict[tuple[str, int], Place]:
    answer = await rig.ask(RequestCode.GET_CONSUME_STATS, header)
    assert answer.code == ResponseCode.SUCCESS
    return {
        (queue.topic, queue.queue_id): (place.broker_offset, place.consumer_offset, place.last_timestamp)
        for queue, place in bodies.ConsumeStats.decode(answer.body).offset_table.items()
    }


async def test_where_a_group_stands(consumed: Rig) -> None:
    last_ms = consumed.clock.ms - 4000
    of_t = {("T", 0): (0, 0, 0), ("T", 1): (5, 2, last_ms)}
    of_u = {("U", 0): (0, 0, 0), ("U", 1): (0, 0, 0)}
    assert await places(consumed, GetConsumeStats(consumer_group="g")) == of_t | of_u
    assert await places(consumed, GetConsumeStats(consumer_group="g", topic="T")) == of_t
    assert await places(consumed, GetConsumeStats(consumer_group="g", topic="T", topic_list="U;")) == of_u
    assert await places(consumed, GetConsumeStats(consumer_group="unknown")) == {}
    assert await places(consumed, GetConsumeStats(consumer_group="g", topic="unknown")) == {}


async def test_what_a_group_was_given_and_has_not_confirmed(consumed: Rig) -> None:
    async def pulled() -> list[int | None]:
        answer = await consumed.ask(RequestCode.GET_CONSUME_STATS, GetConsumeStats(consumer_group="g", topic="T"))
        return [place.pull_offset for place in bodies.ConsumeStats.decode(answer.body).offset_table.values()]

    assert await pulled() == [0, 2], "what was confirmed must have been given"
    header = PullMessage(
        consumer_group="g",
        topic="T",
        queue_id=1,
        queue_offset=2,
        max_msg_nums=2,
        sys_flag=PULL_SUBSCRIPTION,
        commit_offset=0,
        suspend_timeout_millis=0,
        subscription="*",
        sub_version=0,
    )
    assert (await consumed.ask(RequestCode.PULL_MESSAGE, header)).code == ResponseCode.SUCCESS
    assert await pulled() == [0, 4]


async def test_how_fast_a_group_consumes(consumed: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its topics together, or one by one for the whole broker."""
    rates = {"T@g": 2.5, "U@g": 0.5, "T@h": 7.0}
    monkeypatch.setattr(consumed.broker.traffic, "per_second", lambda name, key: rates[key])
    answer = await consumed.ask(RequestCode.GET_CONSUME_STATS, GetConsumeStats(consumer_group="g"))
    assert bodies.ConsumeStats.decode(answer.body).consume_tps == 3.0
    consumed.broker.groups.find("g")
    answer = await consumed.ask(RequestCode.GET_BROKER_CONSUME_STATS, GetBrokerConsumeStats(is_order=False))
    (entry,) = bodies.ConsumeStatsList.decode(answer.body).consume_stats_list
    assert sorted(stats.consume_tps for stats in entry["g"]) == [0.5, 2.5]


async def test_an_online_group_stands_only_where_it_subscribes(consumed: Rig) -> None:
    subscribe(consumed, "g", "U")
    assert {topic for topic, _ in await places(consumed, GetConsumeStats(consumer_group="g"))} == {"U"}


async def test_where_all_groups_stand(consumed: Rig) -> None:
    for group in ("g", "without_offsets"):
        consumed.broker.groups.find(group)
    answer = await consumed.ask(RequestCode.GET_BROKER_CONSUME_STATS, GetBrokerConsumeStats(is_order=False))
    body = bodies.ConsumeStatsList.decode(answer.body)
    assert (body.total_diff, body.broker_addr) == (3, "10.0.0.1:10911")
    assert [list(entry) for entry in body.consume_stats_list] == [["g"]]
    assert len(body.consume_stats_list[0]["g"]) == 2
    answer = await consumed.ask(RequestCode.GET_BROKER_CONSUME_STATS, GetBrokerConsumeStats(is_order=True))
    assert bodies.ConsumeStatsList.decode(answer.body).consume_stats_list == []


async def test_time_spans(consumed: Rig) -> None:
    now = consumed.clock.ms
    header: Header = QueryConsumeTimeSpan(topic="T", group="g")
    answer = await consumed.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, header)
    spans = {
        span.message_queue.queue_id: span
        for span in bodies.QueryConsumeTimeSpanBody.decode(answer.body).consume_time_span_set
    }
    one = spans[1]
    assert (one.min_time_stamp, one.max_time_stamp) == (now - 5000, now - 1000)
    assert (one.consume_time_stamp, one.delay_time) == (now - 4000, 3000)
    assert (spans[0].min_time_stamp, spans[0].max_time_stamp, spans[0].delay_time) == (-1, -1, 0)
    header = QueryConsumeTimeSpan(topic="unknown", group="g")
    assert (await consumed.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, header)).code == ResponseCode.TOPIC_NOT_EXIST


@pytest.mark.parametrize(("topic", "topics"), [("T", ["T"]), (None, ["T", "U"]), ("unknown", [])])
async def test_a_group_takes_anothers_place(consumed: Rig, topic: str | None, topics: list[str]) -> None:
    header = CloneGroupOffset(src_group="g", dest_group="h", topic=topic)
    assert (await consumed.ask(RequestCode.CLONE_GROUP_OFFSET, header)).code == ResponseCode.SUCCESS
    assert consumed.broker.offsets.topics_of("h") == topics


# ---- what groups consume


async def test_topics_of_a_group(consumed: Rig) -> None:
    answer = await consumed.ask(RequestCode.QUERY_TOPICS_BY_CONSUMER, QueryTopicsByConsumer(group="g"))
    body = bodies.TopicList.decode(answer.body)
    assert (body.topic_list, body.broker_addr) == (["T", "U"], "10.0.0.1:10911")


async def test_subscription_of_a_group(consumed: Rig) -> None:
    header = QuerySubscriptionByConsumer(group="g", topic="T")
    answer = await consumed.ask(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, header)
    assert bodies.QuerySubscriptionResponseBody.decode(answer.body).subscription_data is None
    subscribe(consumed, "g", "T")
    answer = await consumed.ask(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, header)
    body = bodies.QuerySubscriptionResponseBody.decode(answer.body)
    assert body.subscription_data is not None
    assert (body.group, body.topic, body.subscription_data.sub_string) == ("g", "T", "a")


async def test_a_group_that_is_gone_is_counted_no_more(rig: Rig) -> None:
    for group in ("gone", "kept"):
        rig.broker.metrics.messages_delivered("T", group, 1, 100)
    header = DeleteSubscriptiongroup(group_name="gone")
    assert (await rig.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, header)).code == ResponseCode.SUCCESS
    samples = [sample for family in rig.broker.metrics.collect() for sample in family.samples]
    assert {sample.labels["consumer_group"] for sample in samples if "consumer_group" in sample.labels} == {"kept"}
