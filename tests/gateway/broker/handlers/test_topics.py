"""Topics as tools see and change them."""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from gateway.broker.handlers import admin
from protocol import bodies
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.topics import (
    DeleteTopicInBroker,
    GetTopicConfig,
    GetTopicStatsInfo,
    QueryTopicConsumeByWho,
    UpdateAndCreateTopic,
)
from store.options import BrokerRole
from tests.gateway.broker.fakes import FakePeer
from tests.gateway.broker.handlers.rig import Rig

Make = Callable[..., Rig]


async def update(rig: Rig, topic: str = "orders", **changes: Any) -> Command:
    header = UpdateAndCreateTopic(
        topic=topic,
        default_topic="TBW102",
        read_queue_nums=4,
        write_queue_nums=4,
        perm=6,
        topic_filter_type="SINGLE_TAG",
    )
    header = msgspec.structs.replace(header, **changes)
    return await rig.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, header)


async def test_a_topic_is_created_and_told_to_the_name_servers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    async def announce() -> None:
        told.append(rig.broker.topics.get("orders"))

    monkeypatch.setattr(rig.broker.registration, "announce", announce)
    answer = await update(rig, read_queue_nums=3, write_queue_nums=2, perm=4, topic_sys_flag=1, order=True)
    assert answer.code == ResponseCode.SUCCESS
    config = rig.broker.topics.get("orders")
    assert config == bodies.TopicConfig(
        topic_name="orders", read_queue_nums=3, write_queue_nums=2, perm=4, topic_sys_flag=1
    )
    assert told == [config]


async def test_a_created_topic_is_on_disk_when_it_is_answered(rig: Rig) -> None:
    for topic in ("a", "b", "c"):
        await update(rig, topic)
    file = Path(rig.broker.store_options.store_path_root_dir) / "config" / "topics.json"
    assert {"a", "b", "c"} <= bodies.TopicTableBody.decode(file.read_bytes()).topic_config_table.keys()


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"topic": ""}, "The specified topic is blank."),
        (
            {"topic": "a/b"},
            "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$",
        ),
        ({"topic": "t" * 128}, "The specified topic is longer than topic max length."),
        ({"topic": "TBW102"}, "The topic[TBW102] is conflict with system topic."),
        ({"read_queue_nums": -1}, None),
        ({"write_queue_nums": 2**31 - 1}, None),
        ({"perm": 99}, None),
        ({"topic_filter_type": "SOME_TAG"}, None),
        ({"attributes": "+queue.type=BatchCQ"}, None),
        ({"attributes": "message.type=FIFO"}, None),
    ],
)
async def test_nonsense_is_refused(rig: Rig, change: dict[str, Any], remark: str | None) -> None:
    before = rig.broker.topics.snapshot()
    answer = await update(rig, **change)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark == (remark or answer.remark)
    assert answer.remark
    assert rig.broker.topics.snapshot() == before


async def test_the_message_type_of_a_topic_is_kept(rig: Rig) -> None:
    await update(rig, attributes="+message.type=FIFO")
    answer = await rig.ask(RequestCode.GET_TOPIC_CONFIG, GetTopicConfig(topic="orders"))
    assert bodies.TopicConfig.decode(answer.body).attributes == {"message.type": "FIFO"}
    await update(rig, attributes="")
    assert rig.broker.topics.get("orders").attributes == {"message.type": "FIFO"}  # type: ignore[union-attr]
    await update(rig, attributes="-message.type")
    assert rig.broker.topics.get("orders").attributes is None  # type: ignore[union-attr]


async def test_many_topics_are_created_at_once_or_not_at_all(rig: Rig) -> None:
    body = bodies.TopicConfigList(
        topic_config_list=[
            bodies.TopicConfig(topic_name="a", attributes={"+message.type": "DELAY"}),
            bodies.TopicConfig(topic_name="b"),
        ]
    )
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, body=body.encode())).code == 0
    assert rig.broker.topics.get("a").attributes == {"message.type": "DELAY"}  # type: ignore[union-attr]
    body.topic_config_list.append(bodies.TopicConfig(topic_name="../c"))
    body.topic_config_list[0].topic_name = "d"
    assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, body=body.encode())).code == 1
    assert "d" not in rig.broker.topics
    for broken in (b"", b"[]", b'{"topicConfigList":7}'):
        assert (await rig.ask(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, body=broken)).code == 1


async def test_a_deleted_topic_leaves_nothing(rig: Rig) -> None:
    await update(rig)
    rig.store_messages("orders", 0, 5)
    rig.broker.offsets.commit("g", "orders", 0, 3, ceiling=5)
    answer = await rig.ask(RequestCode.DELETE_TOPIC_IN_BROKER, DeleteTopicInBroker(topic="orders"))
    assert answer.code == ResponseCode.SUCCESS
    assert "orders" not in rig.broker.topics
    assert not rig.broker.store.has_queue("orders", 0)
    assert rig.broker.offsets.topics_of("g") == []
    answer = await rig.ask(RequestCode.DELETE_TOPIC_IN_BROKER, DeleteTopicInBroker(topic="orders"))
    assert answer.code == ResponseCode.SUCCESS


@pytest.mark.parametrize("topic", ["", "..", "a/b", "BenchmarkTest", "DefaultCluster", "broker-a"])
async def test_what_may_not_be_deleted(rig: Rig, topic: str) -> None:
    answer = await rig.ask(RequestCode.DELETE_TOPIC_IN_BROKER, DeleteTopicInBroker(topic=topic))
    assert answer.code == ResponseCode.SYSTEM_ERROR


async def test_queues_without_topic_are_removed_on_request(rig: Rig) -> None:
    await update(rig)
    for topic in ("orders", "gone", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"):
        rig.store_messages(topic, 0, 1)
    assert (await rig.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == ResponseCode.SUCCESS
    left = {topic for topic, _ in rig.broker.store.queues()}
    assert left == {"orders", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"}


async def test_many_queues_are_removed_while_others_are_served(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that is made again meanwhile keeps what it has got since."""
    monkeypatch.setattr(admin, "QUEUES_IN_SLICE", 2)
    for number in range(5):
        rig.store_messages(f"gone{number}", 0, 1)
    delete, turns_of_others = rig.broker.store.delete_unused_queues, []
    turns = 0

    def note(topics: Container[str], limit: int | None = None) -> int:
        turns_of_others.append(turns)
        deleted = delete(topics, limit)
        rig.broker.incoming.create_topic("gone4", 1)
        return deleted

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    monkeypatch.setattr(rig.broker.store, "delete_unused_queues", note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert (await rig.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == ResponseCode.SUCCESS
        nursery.cancel_scope.cancel()
    assert len(turns_of_others) == 3
    assert turns_of_others[-1] > turns_of_others[0]
    assert list(rig.broker.store.queues()) == [("gone4", 0)]


@pytest.mark.parametrize("code", [RequestCode.CLEAN_UNUSED_TOPIC, RequestCode.DELETE_TOPIC_IN_BROKER])
async def test_a_topic_that_is_gone_is_counted_no_more(rig: Rig, code: RequestCode) -> None:
    await update(rig, "kept")
    for topic in ("gone", "kept"):
        rig.broker.metrics.messages_stored(rig.store_messages(topic, 0, 1))
        rig.broker.metrics.messages_delivered(topic, "g", 1, 100)
    header = DeleteTopicInBroker(topic="gone") if code == RequestCode.DELETE_TOPIC_IN_BROKER else None
    assert (await rig.ask(code, header)).code == ResponseCode.SUCCESS
    samples = [sample for family in rig.broker.metrics.collect() for sample in family.samples]
    assert {sample.labels["topic"] for sample in samples if "topic" in sample.labels} == {"kept"}


async def test_a_slave_asks_its_master_which_topics_are_used(make_rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own table is ten seconds old: the topic of what it just got may not be in it."""
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE})
    sync = rig.broker.replication.sync
    assert sync is not None
    for topic in ("new", "gone"):
        rig.store_messages(topic, 0, 1)
    assert (await rig.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == ResponseCode.SYSTEM_ERROR
    assert len(list(rig.broker.store.queues())) == 2

    async def sync_topics() -> bool:
        table = {"new": bodies.TopicConfig(topic_name="new")}
        version = bodies.DataVersion(counter=9, timestamp=1)
        rig.broker.topics.replace(bodies.TopicTableBody(data_version=version, topic_config_table=table))
        await trio.lowlevel.checkpoint()
        rig.store_messages("newer", 0, 1)
        return True

    monkeypatch.setattr(sync, "sync_topics", sync_topics)
    assert (await rig.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == ResponseCode.SUCCESS
    assert sorted(rig.broker.store.queues()) == [("new", 0), ("newer", 0)]


async def test_a_slave_lets_nobody_change_its_topics(make_rig: Make) -> None:
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE})
    answers = [
        await update(rig),
        await rig.ask(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, body=b'{"topicConfigList":[]}'),
        await rig.ask(RequestCode.DELETE_TOPIC_IN_BROKER, DeleteTopicInBroker(topic="orders")),
    ]
    for answer in answers:
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "please execute it from master broker" in (answer.remark or "")


async def test_the_whole_table(rig: Rig) -> None:
    await update(rig)
    answer = await rig.ask(RequestCode.GET_ALL_TOPIC_CONFIG)
    assert bodies.TopicTableBody.decode(answer.body) == rig.broker.topics.snapshot()
    assert b"\n" not in answer.body


async def test_one_topic(rig: Rig) -> None:
    await update(rig)
    answer = await rig.ask(RequestCode.GET_TOPIC_CONFIG, GetTopicConfig(topic="orders"))
    assert bodies.TopicConfig.decode(answer.body) == rig.broker.topics.get("orders")
    answer = await rig.ask(RequestCode.GET_TOPIC_CONFIG, GetTopicConfig(topic="unknown"))
    assert answer.code == ResponseCode.TOPIC_NOT_EXIST


async def test_reach_of_all_queues_of_a_topic(rig: Rig) -> None:
    await update(rig, read_queue_nums=2, write_queue_nums=1)
    rig.store_messages("orders", 0, 3)
    stored_ms = rig.clock.ms
    answer = await rig.ask(RequestCode.GET_TOPIC_STATS_INFO, GetTopicStatsInfo(topic="orders"))
    table = bodies.TopicStatsTable.decode(answer.body).offset_table
    assert {
        queue.queue_id: (place.min_offset, place.max_offset, place.last_update_timestamp)
        for queue, place in table.items()
    } == {0: (0, 3, stored_ms), 1: (0, 0, 0)}
    assert {(queue.topic, queue.broker_name) for queue in table} == {("orders", "broker-a")}
    answer = await rig.ask(RequestCode.GET_TOPIC_STATS_INFO, GetTopicStatsInfo(topic="unknown"))
    assert (answer.code, answer.remark) == (ResponseCode.TOPIC_NOT_EXIST, "topic[unknown] not exist")


async def test_who_consumes_a_topic(rig: Rig) -> None:
    subscription = bodies.SubscriptionData(topic="orders")
    for group in ("online", "both"):
        consumer = bodies.ConsumerData(group_name=group, subscription_data_set=[subscription])
        rig.broker.clients.heartbeat(FakePeer(), "one", 0, 401, [consumer], [])
    for group in ("offline", "both"):
        rig.broker.offsets.commit(group, "orders", 0, 0, ceiling=0)
    answer = await rig.ask(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, QueryTopicConsumeByWho(topic="orders"))
    assert sorted(bodies.GroupList.decode(answer.body).group_list) == ["both", "offline", "online"]


async def test_system_topics(rig: Rig) -> None:
    await update(rig)
    answer = await rig.ask(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER)
    topics = bodies.TopicList.decode(answer.body).topic_list
    assert {"TBW102", "DefaultCluster", "broker-a", "SCHEDULE_TOPIC_XXXX"} <= set(topics)
    assert "orders" not in topics
