"""Groups that are sent elsewhere, and what their members say of where they stand."""

from typing import Any

import pytest
import trio

from gateway.broker.handlers import resets
from protocol import bodies
from protocol.codes import LanguageCode, RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.offsets import (
    InvokeBrokerToGetConsumerStatus,
    InvokeBrokerToResetOffset,
    ResetConsumerClientOffset,
)
from tests.gateway.broker.handlers.rig import FakeConnection, Rig

END = 1 << 40


@pytest.fixture
def queues(rig: Rig) -> Rig:
    """Topic T with two queues of ten messages, one each second; the group g stands at 4 and 9."""
    rig.broker.topics.update([bodies.TopicConfig(topic_name="T", read_queue_nums=2, write_queue_nums=2)])
    for _ in range(10):
        rig.store_messages("T", 0, 1)
        rig.store_messages("T", 1, 1)
        rig.clock.advance(1000)
    for queue_id, offset in enumerate((4, 9)):
        rig.broker.offsets.commit("g", "T", queue_id, offset, ceiling=10)
    return rig


def join(rig: Rig, client_id: str = "one") -> FakeConnection:
    connection = rig.connect()
    data = bodies.ConsumerData(group_name="g")
    rig.broker.clients.heartbeat(connection, client_id, 0, 401, [data], [])
    return connection


async def reset(rig: Rig, timestamp: int, *, force: bool = True, language: int = 0, **more: Any) -> Command:
    fields: dict[str, Any] = {"topic": "T", "group": "g", **more}
    header = InvokeBrokerToResetOffset(timestamp=timestamp, is_force=force, **fields)
    return await rig.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header, language=language)


def table(body: bytes) -> dict[int, int]:
    return {queue.queue_id: offset for queue, offset in bodies.ResetOffsetBody.decode(body).offset_table.items()}


def told(connection: FakeConnection) -> Command:
    (notice,) = [command for command in connection.notices if command.code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET]
    return notice


@pytest.mark.parametrize(
    ("seconds", "force", "expected"),
    [
        (6, True, {0: 6, 1: 6}),
        (6, False, {0: 4, 1: 6}),  # back only
        (-1, True, {0: 10, 1: 10}),
        (-1, False, {0: 4, 1: 9}),
    ],
)
async def test_every_member_is_told_where_to_go(
    queues: Rig, seconds: int, force: bool, expected: dict[int, int]
) -> None:
    members = [join(queues), join(queues, "two")]
    timestamp = -1 if seconds < 0 else queues.clock.ms - (10 - seconds) * 1000
    answer = await reset(queues, timestamp, force=force)
    assert answer.code == ResponseCode.SUCCESS
    assert table(answer.body) == expected
    for member in members:
        notice = told(member)
        assert table(notice.body) == expected
        header = notice.typed_header(ResetConsumerClientOffset)
        assert (header.topic, header.group, header.timestamp, header.is_force) == ("T", "g", timestamp, force)
    assert queues.broker.offsets.queues("g", "T") == {0: 4, 1: 9}  # the members commit it


async def test_one_queue_and_a_given_offset(queues: Rig) -> None:
    member = join(queues)
    assert table((await reset(queues, -1, queue_id=1, offset=3)).body) == {1: 3}
    assert table(told(member).body) == {1: 3}


async def test_a_cpp_tool_has_a_list_sent(queues: Rig) -> None:
    member = join(queues)
    await reset(queues, -1, language=LanguageCode.CPP)
    sent = bodies.ResetOffsetBodyForC.decode(told(member).body).offset_table
    assert [(queue.broker_name, queue.topic, queue.queue_id, queue.offset) for queue in sent] == [
        (queues.broker.options.broker_name, "T", 0, 10),
        (queues.broker.options.broker_name, "T", 1, 10),
    ]


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"topic": "None"}, ResponseCode.SYSTEM_ERROR, "no topic in this broker. topic=None"),
        ({"group": "other"}, ResponseCode.SYSTEM_ERROR, "THe consumer group <other> not exist"),
        ({}, ResponseCode.CONSUMER_NOT_ONLINE, "Consumer not online, so can not reset offset, Group: g Topic: T"),
    ],
)
async def test_what_cannot_be_reset(queues: Rig, more: dict[str, Any], code: ResponseCode, words: str) -> None:
    answer = await reset(queues, -1, **more)
    assert answer.code == code
    assert words in (answer.remark or "")


async def status(rig: Rig, client_id: str | None = None) -> Command:
    header = InvokeBrokerToGetConsumerStatus(topic="T", group="g", client_addr=client_id)
    return await rig.ask(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, header)


async def test_members_say_where_they_stand(queues: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await status(queues)).code == ResponseCode.SYSTEM_ERROR
    queue = bodies.MessageQueue(broker_name="b", queue_id=0, topic="T")

    async def tell(question: Command) -> Command:
        return Command(0, body=bodies.GetConsumerStatusBody(message_queue_table={queue: 7}).encode())

    async def garbage(question: Command) -> Command:
        return Command(0, body=b"[")

    async def never(question: Command) -> Command:
        return await trio.sleep_forever()

    for client_id, reaction in {"one": tell, "two": garbage, "three": never, "four": None}.items():
        join(queues, client_id).reaction = reaction
    monkeypatch.setattr(resets, "STATUS_SECONDS", 0.01)
    for asked in (None, "one"):
        answer = await status(queues, asked)
        assert bodies.GetConsumerStatusBody.decode(answer.body).consumer_table == {"one": {queue: 7}}
    answer = await status(queues, "three")
    assert bodies.GetConsumerStatusBody.decode(answer.body).consumer_table == {}
