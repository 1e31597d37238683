"""CONSUMER_SEND_MSG_BACK: where a message goes that a consumer could not deal with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from gateway.broker.delivery import Delivery
from gateway.broker.names import SCHEDULE_TOPIC
from protocol.bodies import SubscriptionGroupConfig, TopicConfig
from protocol.codes import PERM_READ, RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import StoredMessage, decode_record
from protocol.requests.send import ConsumerSendMsgBack
from store.errors import ColdRead, StoreFull
from store.options import BrokerRole, FlushDiskType
from tests.gateway.broker.golden import VERSIONS, golden_records
from tests.gateway.broker.handlers.rig import Rig
from tests.gateway.broker.producing import stored

Make = Callable[..., Rig]

LEVELS_MS = {1: 1000, 3: 10_000, 4: 30_000}


async def send_back(rig: Rig, offset: int = 0, group: str = "g", level: int = 0, **arguments: Any) -> Command:
    version = arguments.pop("version", 401)
    header = ConsumerSendMsgBack(offset=offset, group=group, delay_level=level, **arguments)
    return await rig.ask(RequestCode.CONSUMER_SEND_MSG_BACK, header, version=version)


async def refusal(rig: Rig, *args: Any, **arguments: Any) -> tuple[int, str]:
    answer = await send_back(rig, *args, **arguments)
    return answer.code, answer.remark or ""


async def again(rig: Rig, level: int) -> StoredMessage:
    """What the group sees after the delay."""
    service = Delivery(rig.broker)
    rig.clock.advance(LEVELS_MS[level] - 1)
    await service.round()
    before = stored(rig, "%RETRY%g")
    rig.clock.advance(1)
    await service.round()
    (record,) = stored(rig, "%RETRY%g")[len(before) :]
    return record


async def test_first_retry_comes_after_ten_seconds(rig: Rig) -> None:
    rig.store_messages("T", 2, 2, tags="a")
    (_, original) = stored(rig, "T", 2)
    answer = await send_back(rig, original.physical_offset)
    assert (answer.code, answer.fields) == (ResponseCode.SUCCESS, {})
    retry = await again(rig, level=3)
    assert (retry.body, retry.reconsume_times) == (b"body 1", 1)
    for field in ("flag", "sys_flag", "born_timestamp", "born_host", "store_host"):
        assert getattr(retry, field) == getattr(original, field), field
    assert retry.properties == {
        "TAGS": "a",
        "RETRY_TOPIC": "T",
        "ORIGIN_MESSAGE_ID": original.message_id,
        "DELAY": "3",
        "REAL_TOPIC": "%RETRY%g",
        "REAL_QID": "0",
    }
    config = rig.broker.topics.get("%RETRY%g")
    assert config is not None
    assert (config.write_queue_nums, config.read_queue_nums, config.perm, config.topic_sys_flag) == (1, 1, 6, 0)


async def test_each_retry_waits_longer_and_knows_where_it_comes_from(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    (original,) = stored(rig, "T")
    await send_back(rig, original.physical_offset)
    first = await again(rig, level=3)
    await send_back(rig, first.physical_offset)
    second = await again(rig, level=4)
    assert second.reconsume_times == 2
    assert second.properties["RETRY_TOPIC"] == "T"
    assert second.properties["ORIGIN_MESSAGE_ID"] == original.message_id


async def test_what_is_sent_back_counts_for_the_topic_it_was_sent_to(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    await send_back(rig, stored(rig, "T")[0].physical_offset)
    retry = await again(rig, level=3)
    await send_back(rig, retry.physical_offset, level=-1)
    await send_back(rig, 1 << 40)
    assert rig.broker.metrics.sent_back == {("T", "g"): [2]}
    rig.broker.metrics.forget_group("g")
    assert rig.broker.metrics.sent_back == {}


async def test_consumer_chooses_the_delay(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    await send_back(rig, level=1)
    assert (await again(rig, level=1)).properties["DELAY"] == "1"
    await send_back(rig, level=99)
    assert len(stored(rig, SCHEDULE_TOPIC, 17)) == 1


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [({}, 16), ({"max_reconsume_times": 3}, 3), ({"max_reconsume_times": 3, "version": 120}, 16)],
)
async def test_dead_letters_after_the_last_retry(rig: Rig, arguments: dict[str, Any], limit: int) -> None:
    for times in (limit - 1, limit):
        (message,) = rig.store_messages("T", 0, 1)
        message.reconsume_times = times
        rig.broker.storage.append([message])
        assert (await send_back(rig, message.physical_offset, **arguments)).code == ResponseCode.SUCCESS
    (record,) = stored(rig, "%DLQ%g")
    assert (record.reconsume_times, record.queue_id, record.properties["DELAY"]) == (limit + 1, 0, "0")
    assert record.properties["RETRY_TOPIC"] == "T"
    config = rig.broker.topics.get("%DLQ%g")
    assert config is not None
    assert (config.write_queue_nums, config.perm) == (1, 6)
    assert len(stored(rig, SCHEDULE_TOPIC, min(limit + 1, 17))) == 1


async def test_dead_letters_at_once_if_the_consumer_says_so(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    await send_back(rig, level=-1)
    assert len(stored(rig, "%DLQ%g")) == 1


async def test_limit_of_the_group(rig: Rig) -> None:
    rig.broker.groups.update([SubscriptionGroupConfig(group_name="g", retry_max_times=0)])
    rig.store_messages("T", 0, 1)
    await send_back(rig)
    assert len(stored(rig, "%DLQ%g")) == 1


async def test_retry_queues_of_the_group(rig: Rig) -> None:
    rig.broker.groups.update([SubscriptionGroupConfig(group_name="g", retry_queue_nums=4)])
    rig.store_messages("T", 0, 1)
    for _ in range(40):
        await send_back(rig, level=1)
    rig.clock.advance(1000)
    await Delivery(rig.broker).round()
    assert sum(len(stored(rig, "%RETRY%g", queue_id)) for queue_id in range(4)) == 40
    assert rig.broker.topics.get("%RETRY%g").write_queue_nums == 4  # type: ignore[union-attr]


async def test_group_without_retries(rig: Rig) -> None:
    """Answered as done, as official does; nothing is stored."""
    rig.broker.groups.update([SubscriptionGroupConfig(group_name="g", retry_queue_nums=0)])
    rig.store_messages("T", 0, 1)
    end = rig.broker.store.end_offset
    assert (await send_back(rig)).code == ResponseCode.SUCCESS
    assert rig.broker.store.end_offset == end


async def test_unit_mode_marks_the_topic(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    await send_back(rig, unit_mode=True)
    assert rig.broker.topics.get("%RETRY%g").topic_sys_flag == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("group", ["x/../../y", "..", "", " ", "a\0b", "x" * 256, "ü"])
async def test_a_name_that_may_not_be_leaves_no_trace(rig: Rig, group: str) -> None:
    """Official makes a folder outside its store."""
    rig.store_messages("T", 0, 1)
    end = rig.broker.store.end_offset
    code, remark = await refusal(rig, group=group)
    assert (code, "group" in remark) == (ResponseCode.SYSTEM_ERROR, True)
    assert rig.broker.store.end_offset == end
    assert not [topic for topic in rig.broker.topics.names() if topic.startswith("%")]
    assert [topic for topic, _ in rig.broker.store.queues()] == ["T"]


async def test_a_group_too_long_for_a_retry_topic(rig: Rig) -> None:
    rig.store_messages("T", 0, 1)
    assert (await refusal(rig, group="x" * 121))[0] == ResponseCode.SYSTEM_ERROR


async def test_unknown_group_where_none_is_created(make_rig: Make) -> None:
    rig = make_rig(auto_create_subscription_group=False)
    rig.store_messages("T", 0, 1)
    assert (await refusal(rig))[0] == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


@pytest.mark.parametrize("offset", [1, -1, 5, 1 << 40, (1 << 63) - 1])
async def test_only_whole_messages_are_sent_back(rig: Rig, offset: int) -> None:
    rig.store_messages("T", 0, 1)
    assert await refusal(rig, offset) == (ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {offset}")


async def test_closed_broker_and_closed_topic(make_rig: Make) -> None:
    rig = make_rig(broker_permission=PERM_READ)
    rig.store_messages("T", 0, 1)
    assert (await refusal(rig))[0] == ResponseCode.NO_PERMISSION
    rig = make_rig()
    rig.broker.topics.update([TopicConfig(topic_name="%RETRY%g", perm=PERM_READ)])
    code, remark = await refusal(rig)
    assert (code, "%RETRY%g" in remark) == (ResponseCode.NO_PERMISSION, True)


async def test_slave(make_rig: Make) -> None:
    make_rig().store_messages("T", 0, 1)
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE}, broker_id=1)
    assert await refusal(rig) == (ResponseCode.SYSTEM_ERROR, "SERVICE_NOT_AVAILABLE")
    assert "%RETRY%g" not in rig.broker.topics


async def test_full_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.store_messages("T", 0, 1)

    def full(*args: Any, **kwargs: Any) -> int:
        raise StoreFull("no space")

    monkeypatch.setattr(rig.broker.store, "append", full)
    assert await refusal(rig) == (ResponseCode.SYSTEM_ERROR, "SERVICE_NOT_AVAILABLE: no space")


async def test_properties_that_grow_too_long(rig: Rig) -> None:
    rig.store_messages("T", 0, 1, tags="x" * 32750)
    assert await refusal(rig) == (ResponseCode.SYSTEM_ERROR, "PROPERTIES_SIZE_EXCEEDED")


async def test_message_that_is_not_in_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.store_messages("T", 0, 1)
    message_at = rig.broker.store.message_at

    def cold(offset: int, *, allow_cold: bool = True) -> StoredMessage | None:
        if not allow_cold:
            raise ColdRead
        return message_at(offset)

    monkeypatch.setattr(rig.broker.store, "message_at", cold)
    assert (await send_back(rig)).code == ResponseCode.SUCCESS


async def test_answer_waits_for_the_flush(make_rig: Make, nursery: trio.Nursery) -> None:
    """The consumer moves on when it is answered, so the retry has to be as safe as the message was."""
    rig = make_rig(store={"flush_disk_type": FlushDiskType.SYNC_FLUSH})
    rig.store_messages("T", 0, 1)
    await rig.broker.storage.flush()
    answers: list[Command] = []

    async def ask() -> None:
        answers.append(await send_back(rig))

    nursery.start_soon(ask)
    end = rig.broker.store.end_offset
    while rig.broker.store.end_offset == end:
        await trio.lowlevel.checkpoint()
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert answers == []
    await rig.broker.storage.flush()
    with trio.fail_after(5):
        while not answers:
            await trio.lowlevel.checkpoint()
    assert answers[0].code == ResponseCode.SUCCESS


async def test_flush_that_takes_too_long(make_rig: Make) -> None:
    rig = make_rig(store={"flush_disk_type": FlushDiskType.SYNC_FLUSH, "sync_flush_timeout": 1})
    rig.store_messages("T", 0, 1)
    await rig.broker.storage.flush()
    assert await refusal(rig) == (ResponseCode.SYSTEM_ERROR, "FLUSH_DISK_TIMEOUT")


def pick(original: StoredMessage, offset: int, *, allow_cold: bool = True) -> StoredMessage:
    """A store that holds one message."""
    assert offset == original.physical_offset
    return original


@pytest.mark.parametrize("version", VERSIONS)
async def test_official_retries(rig: Rig, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """From the messages that an official broker was asked to repeat, ours makes what that broker made."""
    records = golden_records(version)
    by_id = {record.message_id: record for record in records}
    retries = [record for record in records if record.topic == SCHEDULE_TOPIC and record.reconsume_times]
    assert len(retries) == 13
    for number, official in enumerate(retries):
        original = by_id[official.properties["ORIGIN_MESSAGE_ID"]]
        monkeypatch.setattr(rig.broker.store, "message_at", partial(pick, original))
        answer = await send_back(rig, original.physical_offset, "golden-group", 1, max_reconsume_times=16)
        assert answer.code == ResponseCode.SUCCESS
        (ours,) = [
            decode_record(data) for data in rig.broker.store.get(SCHEDULE_TOPIC, 0, number, 1, allow_cold=True).data
        ]
        # WAIT=false tells the official broker's own code not to wait; ours does not need it
        assert ours.properties | {"WAIT": "false"} == official.properties
        for field in ("flag", "sys_flag", "body", "born_timestamp", "born_host", "store_host", "reconsume_times"):
            assert getattr(ours, field) == getattr(official, field), field
