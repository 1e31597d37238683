"""Offsets of groups and reaches of queues, as clients ask for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.broker.offsets import NOT_FOUND
from gateway.broker.state import Broker
from protocol import bodies
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.offsets import (
    GetEarliestMsgStoretime,
    GetMaxOffset,
    GetMinOffset,
    QueryConsumerOffset,
    SearchOffsetByTimestamp,
    UpdateConsumerOffset,
)
from store.engine import ColdRead, GetResult
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import Rig

Make = Callable[..., Rig]


async def commit(rig: Rig, offset: int, *, group: str = "g", topic: str = "T", queue_id: int = 0) -> Command:
    header = UpdateConsumerOffset(consumer_group=group, topic=topic, queue_id=queue_id, commit_offset=offset)
    return await rig.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)


async def query(rig: Rig, *, topic: str = "T", queue_id: int = 0, **more: Any) -> Command:
    header = QueryConsumerOffset(consumer_group="g", topic=topic, queue_id=queue_id, **more)
    return await rig.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)


def offset(answer: Command) -> int:
    assert answer.code == ResponseCode.SUCCESS
    return int(answer.fields["offset"])


@pytest.fixture
def queue(rig: Rig) -> Rig:
    """A broker whose topic T has four queues, the first with ten messages, one every second."""
    rig.broker.topics.update([bodies.TopicConfig(topic_name="T", read_queue_nums=4, write_queue_nums=4)])
    for _ in range(10):
        rig.store_messages("T", 0, 1)
        rig.clock.advance(1000)
    return rig


# ---- offsets of groups


async def test_a_committed_offset_is_found(queue: Rig) -> None:
    assert (await commit(queue, 4)).code == ResponseCode.SUCCESS
    assert offset(await query(queue)) == 4


@pytest.mark.parametrize("wanted", [11, 2**40, 2**63 - 1])
async def test_a_group_never_goes_beyond_the_end(queue: Rig, wanted: int) -> None:
    await commit(queue, wanted)
    assert offset(await query(queue)) == 10


async def test_a_slave_believes_what_it_is_told(make_rig: Make) -> None:
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE})
    rig.broker.topics.create_if_absent("T", 4)
    await commit(rig, 500)
    assert offset(await query(rig)) == 500


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"offset": -1}, ResponseCode.SYSTEM_ERROR),
        ({"offset": -(2**63)}, ResponseCode.SYSTEM_ERROR),
        ({"queue_id": -1}, ResponseCode.SYSTEM_ERROR),
        ({"queue_id": 4}, ResponseCode.SYSTEM_ERROR),
        ({"queue_id": 2**31 - 1}, ResponseCode.SYSTEM_ERROR),
        ({"topic": "unknown"}, ResponseCode.TOPIC_NOT_EXIST),
        ({"group": "x/../../y"}, ResponseCode.SYSTEM_ERROR),
    ],
)
async def test_nonsense_is_refused_and_leaves_nothing(queue: Rig, change: dict[str, Any], code: int) -> None:
    answer = await commit(queue, **({"offset": 1} | change))
    assert answer.code == code
    assert answer.remark
    assert len(queue.broker.offsets) == 0


async def test_a_commit_makes_the_group_where_that_is_allowed(make_rig: Make) -> None:
    rig = make_rig(auto_create_subscription_group=False)
    rig.broker.topics.create_if_absent("T", 4)
    assert (await commit(rig, 0)).code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
    rig = make_rig()
    assert (await commit(rig, 0)).code == ResponseCode.SUCCESS
    assert "g" in rig.broker.groups


async def test_a_one_way_commit_is_not_answered(queue: Rig) -> None:
    header = UpdateConsumerOffset(consumer_group="g", topic="T", queue_id=0, commit_offset=3)
    queue.tell(RequestCode.UPDATE_CONSUMER_OFFSET, header)
    header.commit_offset = -1
    queue.tell(RequestCode.UPDATE_CONSUMER_OFFSET, header)
    assert offset(await query(queue)) == 3
    assert queue.tool.answers.statistics().current_buffer_used == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"consumerGroup": "g", "topic": "T", "queueId": "0"}, "commitOffset"),
        ({"consumerGroup": "g", "topic": "T", "queueId": "zero", "commitOffset": "1"}, "queueId"),
        ({"consumerGroup": "g", "topic": "T", "queueId": "0", "commitOffset": str(2**63)}, "commitOffset"),
    ],
)
async def test_a_wrong_field_is_named(queue: Rig, fields: dict[str, str], named: str) -> None:
    answer = await queue.ask(RequestCode.UPDATE_CONSUMER_OFFSET, fields=fields)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert named in (answer.remark or "")


# ---- a group's first offset


async def test_a_new_group_starts_at_0_while_the_whole_queue_is_recent(queue: Rig) -> None:
    assert offset(await query(queue)) == 0
    assert offset(await query(queue, queue_id=3)) == 0
    assert offset(await query(queue, topic="unknown")) == 0
    assert len(queue.broker.offsets) == 0


async def test_a_client_may_want_to_know_for_itself(queue: Rig) -> None:
    answer = await query(queue, set_zero_if_not_found=False)
    assert answer.code == ResponseCode.QUERY_NOT_FOUND
    assert offset(await query(queue, set_zero_if_not_found=True)) == 0


async def test_a_new_group_is_told_nothing_once_the_queue_is_no_longer_recent(make_rig: Make) -> None:
    rig = make_rig(store={"access_message_in_memory_max_ratio": 0})
    rig.store_messages("T", 0, 10)
    answer = await query(rig)
    assert answer.code == ResponseCode.QUERY_NOT_FOUND
    assert answer.remark == "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first"


async def test_a_new_group_is_told_nothing_once_the_queue_begins_later(
    queue: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue.broker.store, "min_offset", lambda topic, queue_id: 5)
    assert (await query(queue)).code == ResponseCode.QUERY_NOT_FOUND


@pytest.mark.parametrize(("ratio", "code"), [(40, ResponseCode.SUCCESS), (0, ResponseCode.QUERY_NOT_FOUND)])
async def test_a_cold_queue_is_looked_at_in_a_thread(
    make_rig: Make, monkeypatch: pytest.MonkeyPatch, ratio: int, code: int
) -> None:
    rig = make_rig(store={"access_message_in_memory_max_ratio": ratio})
    rig.store_messages("T", 0, 10)
    get = rig.broker.store.get

    def cold(*args: Any, allow_cold: bool, **more: Any) -> GetResult:
        if not allow_cold:
            raise ColdRead
        return get(*args, allow_cold=True, **more)

    monkeypatch.setattr(rig.broker.store, "get", cold)
    assert (await query(rig)).code == code


# ---- reaches of queues


async def test_reach_of_a_queue(queue: Rig) -> None:
    assert offset(await queue.ask(RequestCode.GET_MAX_OFFSET, GetMaxOffset(topic="T", queue_id=0))) == 10
    assert offset(await queue.ask(RequestCode.GET_MIN_OFFSET, GetMinOffset(topic="T", queue_id=0))) == 0
    for queue_id in (3, -1, 2**31 - 1):
        header = GetMaxOffset(topic="T", queue_id=queue_id)
        assert offset(await queue.ask(RequestCode.GET_MAX_OFFSET, header)) == 0


async def test_earliest_store_time(queue: Rig) -> None:
    header = GetEarliestMsgStoretime(topic="T", queue_id=0)
    answer = await queue.ask(RequestCode.GET_EARLIEST_MSG_STORETIME, header)
    assert int(answer.fields["timestamp"]) == queue.clock.ms - 10_000
    header.queue_id = 1
    answer = await queue.ask(RequestCode.GET_EARLIEST_MSG_STORETIME, header)
    assert int(answer.fields["timestamp"]) == -1


@pytest.mark.parametrize(
    ("seconds", "boundary", "expected"),
    [(3.0, None, 3), (3.4, None, 3), (-100, None, 0), (100, None, 9), (3.4, "LOWER", 4), (3.4, "upper", 3)],
)
async def test_search_by_time(queue: Rig, seconds: float, boundary: str | None, expected: int) -> None:
    timestamp = queue.clock.ms - 10_000 + int(seconds * 1000)
    header = SearchOffsetByTimestamp(topic="T", queue_id=0, timestamp=timestamp, boundary_type=boundary)
    assert offset(await queue.ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header)) == expected
    header.topic = "unknown"
    assert offset(await queue.ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header)) == 0


# ---- whole tables, for slaves


async def test_all_offsets(queue: Rig) -> None:
    await commit(queue, 4)
    await commit(queue, 0, queue_id=1)
    answer = await queue.ask(RequestCode.GET_ALL_CONSUMER_OFFSET)
    version = queue.broker.offsets.data_version.encode()
    assert answer.body == b'{"dataVersion":%b,"offsetTable":{"T@g":{0:4,1:0}}}' % version


async def test_all_delay_offsets(rig: Rig) -> None:
    answer = await rig.ask(RequestCode.GET_ALL_DELAY_OFFSET)
    assert (answer.code, answer.body) == (ResponseCode.SUCCESS, b'{"offsetTable":{}}')
    config = Path(rig.broker.store_options.store_path_root_dir) / "config"
    config.mkdir()
    (config / "delayOffset.json").write_bytes(b'{\n\t"offsetTable":{1:5,3:0\n\t}\n}')
    answer = await rig.ask(RequestCode.GET_ALL_DELAY_OFFSET)
    assert answer.body == b'{"offsetTable":{1:5,3:0}}'


async def test_offsets_survive_a_restart(make_rig: Make) -> None:
    rig = make_rig()
    rig.broker.topics.create_if_absent("T", 4)
    rig.store_messages("T", 0, 10)
    await commit(rig, 7)
    save(rig.broker)
    assert make_rig().broker.offsets.query("g", "T", 0) == 7
    assert make_rig().broker.offsets.query("h", "T", 0) == NOT_FOUND


def save(broker: Broker) -> None:
    job = broker.offsets.file.begin_save()
    assert job is not None
    job.run()
    broker.offsets.file.save_ended(None)
