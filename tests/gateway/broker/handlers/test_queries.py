"""Messages by key and by offset message id."""

import pytest

from gateway.broker.handlers import queries
from protocol.bodies import ConsumerData, QueryConsumeQueueResponseBody, SubscriptionData
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import decode_record, java_hash
from protocol.requests.queries import QueryConsumeQueue, QueryMessage, ViewMessageById
from tests.gateway.broker.fakes import FakePeer
from tests.gateway.broker.handlers.rig import Rig

FOREVER = 2**63 - 1


async def query(
    rig: Rig, key: str, max_num: int = 32, begin_ms: int = 0, end_ms: int = FOREVER, *, unique: bool = False
) -> Command:
    header = QueryMessage(
        topic="T",
        key=key,
        max_num=max_num,
        begin_timestamp=begin_ms,
        end_timestamp=end_ms,
        unique_key_query=unique,
    )
    return await rig.ask(RequestCode.QUERY_MESSAGE, header)


def bodies(answer: Command) -> list[bytes]:
    found, position = [], 0
    while position < len(answer.body):
        record = decode_record(answer.body, position)
        found.append(record.body)
        position += record.total_size
    return found


async def test_messages_by_key(rig: Rig) -> None:
    messages = rig.store_messages("T", 0, 3, keys=("k",))
    answer = await query(rig, "k")
    assert answer.code == ResponseCode.SUCCESS
    assert sorted(bodies(answer)) == [b"body 0", b"body 1", b"body 2"]
    assert int(answer.fields["indexLastUpdatePhyoffset"]) == messages[-1].physical_offset
    assert int(answer.fields["indexLastUpdateTimestamp"]) == rig.clock.ms


@pytest.mark.parametrize(("max_num", "found"), [(1, 1), (2, 2), (2**31 - 1, 3)])
async def test_no_more_messages_than_wanted(rig: Rig, max_num: int, found: int) -> None:
    rig.store_messages("T", 0, 3, keys=("k",))
    assert len(bodies(await query(rig, "k", max_num))) == found


async def test_a_query_by_unique_key_has_a_number_of_its_own(rig: Rig) -> None:
    rig.store_messages("T", 0, 3, keys=("k",))
    rig.broker.store_options.default_query_max_num = 2
    assert len(bodies(await query(rig, "k", 1, unique=True))) == 2


async def test_an_answer_has_room_for_some_messages_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = rig.store_messages("T", 0, 5, keys=("k",))
    monkeypatch.setattr(queries, "MAX_ANSWER_BYTES", 2 * first.size + 1)
    assert len(bodies(await query(rig, "k"))) == 2
    monkeypatch.setattr(queries, "MAX_ANSWER_BYTES", 1)
    assert len(bodies(await query(rig, "k"))) == 1


@pytest.mark.parametrize(
    ("key", "max_num", "begin_ms", "end_ms"),
    [
        ("other", 32, 0, FOREVER),
        ("", 32, 0, FOREVER),
        ("k", 0, 0, FOREVER),
        ("k", -(2**31), 0, FOREVER),
        ("k", 32, FOREVER, FOREVER),
        ("k", 32, 0, 1000),
        ("k", 32, FOREVER, -FOREVER),
    ],
)
async def test_nothing_found(rig: Rig, key: str, max_num: int, begin_ms: int, end_ms: int) -> None:
    rig.store_messages("T", 0, 1, keys=("k",))
    answer = await query(rig, key, max_num, begin_ms, end_ms)
    assert answer.code == ResponseCode.QUERY_NOT_FOUND
    assert answer.remark == "can not find message, maybe time range not correct"
    assert "indexLastUpdatePhyoffset" in answer.fields


async def test_a_message_by_its_offset(rig: Rig) -> None:
    messages = rig.store_messages("T", 0, 3)
    answer = await rig.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageById(offset=messages[1].physical_offset))
    assert answer.code == ResponseCode.SUCCESS
    record = decode_record(answer.body)
    assert (record.topic, record.queue_offset, record.body) == ("T", 1, b"body 1")


@pytest.mark.parametrize("offset", [1, 77, -1, 10**6, 2**63 - 1, -(2**63)])
async def test_an_offset_at_which_no_message_begins(rig: Rig, offset: int) -> None:
    rig.store_messages("T", 0, 3)
    answer = await rig.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageById(offset=offset))
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark == f"can not find message by the offset, {offset}"


async def entries(rig: Rig, index: int = 0, count: int = 10, group: str | None = None) -> Command:
    header = QueryConsumeQueue(topic="T", queue_id=1, index=index, count=count, consumer_group=group)
    return await rig.ask(RequestCode.QUERY_CONSUME_QUEUE, header)


def offsets(answer: Command) -> list[int]:
    return [entry.physic_offset for entry in QueryConsumeQueueResponseBody.decode(answer.body).queue_data]


@pytest.mark.parametrize(
    ("index", "count", "found"),
    [(0, 10, [0, 1, 2]), (1, 1, [1]), (2, 2**31 - 1, [2]), (0, 0, []), (0, -1, []), (3, 10, []), (-1, 10, [])],
)
async def test_entries_of_a_queue(rig: Rig, index: int, count: int, found: list[int]) -> None:
    messages = rig.store_messages("T", 1, 3, tags="a")
    answer = await entries(rig, index, count)
    assert answer.code == ResponseCode.SUCCESS
    assert offsets(answer) == [messages[number].physical_offset for number in found]
    body = QueryConsumeQueueResponseBody.decode(answer.body)
    assert (body.min_queue_index, body.max_queue_index) == (0, 3)
    for entry in body.queue_data:
        assert (entry.physic_size, entry.tags_code, entry.eval) == (messages[0].size, java_hash("a"), False)


async def test_entries_beside_a_groups_filter(rig: Rig) -> None:
    for tags in ("a", "b"):
        rig.store_messages("T", 1, 1, tags=tags)
    subscription = SubscriptionData(topic="T", sub_string="b")
    consumer = ConsumerData(group_name="g", subscription_data_set=[subscription])
    rig.broker.clients.heartbeat(FakePeer(), "one", 0, 401, [consumer], [])
    body = QueryConsumeQueueResponseBody.decode((await entries(rig, group="g")).body)
    assert [entry.eval for entry in body.queue_data] == [False, True]
    assert body.subscription_data == subscription
    body = QueryConsumeQueueResponseBody.decode((await entries(rig, group="h")).body)
    assert (body.filter_data, body.subscription_data) == ("h@T is not online!", None)


async def test_entries_of_a_queue_that_does_not_exist(rig: Rig) -> None:
    answer = await entries(rig)
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "1@T is not exist!")
    answer = await rig.ask(RequestCode.QUERY_CONSUME_QUEUE, fields={})
    assert answer.code == ResponseCode.SYSTEM_ERROR
