"""Sending to a broker under test, and seeing what it made of that."""

from typing import Any

from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import StoredMessage, decode_record
from protocol.requests.send import SendMessageReply, SendMessageV2
from tests.gateway.broker.handlers.rig import Rig


def send(
    rig: Rig, topic: str = "T", *, queue_id: int = 0, body: bytes = b"x", sys_flag: int = 0, **properties: str
) -> Command:
    """The request of a producer; its answer is at the rig's tool."""
    text = "\x02".join(f"{name}\x01{value}" for name, value in properties.items())
    header = SendMessageV2(
        producer_group="p",
        topic=topic,
        default_topic="TBW102",
        default_topic_queue_nums=4,
        queue_id=queue_id,
        sys_flag=sys_flag,
        born_timestamp=rig.clock.ms - 5,
        flag=9,
        properties=text,
    )
    command = Command(RequestCode.SEND_MESSAGE_V2, 7, header=header, body=body)
    handler = rig.router.batch_handler(command.code)
    assert handler is not None
    rig.router.run_batch(handler, rig.tool, [command])  # type: ignore[arg-type]
    return command


async def sent(rig: Rig, **arguments: Any) -> SendMessageReply:
    """Sends, and returns the reply."""
    send(rig, **arguments)
    answer = await rig.tool.answers.receive()
    assert answer.code == ResponseCode.SUCCESS
    return answer.typed_header(SendMessageReply)


def stored(rig: Rig, topic: str = "T", queue_id: int = 0) -> list[StoredMessage]:
    """All messages of a queue."""
    store = rig.broker.store
    found: list[bytes | memoryview] = []
    while len(found) < store.max_offset(topic, queue_id):
        found += store.get(topic, queue_id, len(found), 1000, allow_cold=True).data
    return [decode_record(data) for data in found]


def bodies(rig: Rig, topic: str = "T", queue_id: int = 0) -> list[bytes]:
    """The bodies of all messages of a queue."""
    return [record.body for record in stored(rig, topic, queue_id)]
