"""Request-reply: a consumer's answer reaches the producer that asked."""

from collections.abc import Callable
from typing import Any

import pytest
import trio

from gateway.broker.handlers import replies
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command, response
from protocol.requests.send import PushReplyMessageToClient, SendMessageReply, SendReplyMessage, SendReplyMessageV2
from store.errors import StoreFull
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import FakeConnection, Rig
from tests.gateway.broker.producing import stored

Make = Callable[..., Rig]

REPLY_TOPIC = "DefaultCluster_REPLY_TOPIC"


def asker(rig: Rig, code: int = ResponseCode.SUCCESS) -> tuple[FakeConnection, list[Command]]:
    """A producer with the id `asker`, and what it was pushed."""
    connection = rig.connect()
    rig.broker.clients.heartbeat(connection, "asker", 0, 401, [], ["p"])
    pushed: list[Command] = []

    async def react(command: Command) -> Command:
        await trio.lowlevel.checkpoint()
        pushed.append(command)
        return response(command, code, remark="busy")

    connection.reaction = react
    return connection, pushed


async def reply(rig: Rig, kind: type = SendReplyMessageV2, **changes: Any) -> Command:
    """A consumer's reply to `asker`."""
    fields: dict[str, Any] = {
        "producer_group": "CLIENT_INNER_PRODUCER",
        "topic": REPLY_TOPIC,
        "default_topic": "TBW102",
        "default_topic_queue_nums": 4,
        "queue_id": 0,
        "sys_flag": 0,
        "born_timestamp": 5,
        "flag": 3,
        "properties": "REPLY_TO_CLIENT\x01asker\x02CORRELATION_ID\x01c1\x02MSG_TYPE\x01reply",
    }
    code = RequestCode.SEND_REPLY_MESSAGE if kind is SendReplyMessage else RequestCode.SEND_REPLY_MESSAGE_V2
    return await rig.ask(code, kind(**fields | changes), b"42")


@pytest.mark.parametrize("kind", [SendReplyMessage, SendReplyMessageV2])
async def test_the_producer_gets_the_reply(rig: Rig, kind: type) -> None:
    _, pushed = asker(rig)
    answer = await reply(rig, kind)
    assert answer.code == ResponseCode.SUCCESS
    (command,) = pushed
    assert (command.code, command.body) == (RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, b"42")
    header = command.typed_header(PushReplyMessageToClient)
    assert (header.topic, header.flag, header.born_timestamp) == (REPLY_TOPIC, 3, 5)
    assert (header.born_host, header.store_host) == (rig.tool.remote_address, "10.0.0.1:10911")
    assert header.store_timestamp == rig.clock.ms
    assert header.properties == (
        f"REPLY_TO_CLIENT\x01asker\x02CORRELATION_ID\x01c1\x02MSG_TYPE\x01reply\x02PUSH_REPLY_TIME\x01{rig.clock.ms}"
    )


async def test_the_reply_is_stored(rig: Rig) -> None:
    asker(rig)
    sent = (await reply(rig)).typed_header(SendMessageReply)
    (record,) = stored(rig, REPLY_TOPIC)
    assert (record.body, record.message_id, record.queue_offset) == (b"42", sent.msg_id, sent.queue_offset)


async def test_storing_can_be_switched_off(make_rig: Make) -> None:
    rig = make_rig(store_reply_message_enable=False)
    asker(rig)
    sent = (await reply(rig)).typed_header(SendMessageReply)
    assert (sent.msg_id, sent.queue_offset) == ("0", 0)
    assert stored(rig, REPLY_TOPIC) == []


async def test_full_disk_does_not_matter(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pushed = asker(rig)

    def full(*args: Any, **kwargs: Any) -> int:
        raise StoreFull("no space")

    monkeypatch.setattr(rig.broker.store, "append", full)
    answer = await reply(rig)
    assert (answer.code, answer.typed_header(SendMessageReply).msg_id) == (ResponseCode.SUCCESS, "0")
    assert len(pushed) == 1


@pytest.mark.parametrize(
    ("properties", "remark"),
    [
        (None, "REPLY_TO_CLIENT is null"),
        ("REPLY_TO_CLIENT\x01stranger", "channel of <stranger> not found"),
    ],
)
async def test_nobody_to_push_to(rig: Rig, properties: str | None, remark: str) -> None:
    asker(rig)
    answer = await reply(rig, properties=properties)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert remark in (answer.remark or "")
    assert len(stored(rig, REPLY_TOPIC)) == 1


async def test_the_producer_refuses(rig: Rig) -> None:
    asker(rig, ResponseCode.SYSTEM_ERROR)
    answer = await reply(rig)
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "push reply message to asker fail: busy")


async def test_the_producer_is_gone(rig: Rig) -> None:
    connection, _ = asker(rig)
    connection.reaction = None
    answer = await reply(rig)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "closed the connection" in (answer.remark or "")


async def test_the_producer_is_silent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ clients do not answer."""
    monkeypatch.setattr(replies, "PUSH_SECONDS", 0.01)
    connection, _ = asker(rig)

    async def say_nothing(command: Command) -> Command:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    connection.reaction = say_nothing
    answer = await reply(rig)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "no answer within" in (answer.remark or "")


async def test_slave_pushes_and_does_not_store(make_rig: Make) -> None:
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE}, broker_id=1)
    _, pushed = asker(rig)
    assert (await reply(rig)).code == ResponseCode.SUCCESS
    assert len(pushed) == 1
    assert rig.broker.store.end_offset == 0


async def test_illegal_topic(rig: Rig) -> None:
    _, pushed = asker(rig)
    assert (await reply(rig, topic="a/b")).code == ResponseCode.SYSTEM_ERROR
    assert pushed == []
