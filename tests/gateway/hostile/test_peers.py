"""Whom the broker asks: clients that questions are passed on to, and name servers. Their answers are hostile, too."""

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.gateway.hostile.rig import (
    BROKER,
    HEARTBEAT,
    SEND_V2,
    TOPIC,
    Client,
    Server,
    binary_request,
    framed,
    request,
    running_broker,
    send_fields,
)
from tests.gateway.hostile.test_frames import BROKEN
from tests.interop.raw import frame

RUNNING_INFO, CONSUME_DIRECTLY = 307, 309
QUESTION = {"consumerGroup": "g", "clientId": "c"}


@asynccontextmanager
async def consumer(broker: Server) -> AsyncIterator[Client]:
    """A connected consumer that has to be asked."""
    async with broker.client() as client:
        data = {"groupName": "g", "subscriptionDataSet": [{"topic": TOPIC, "subString": "*", "subVersion": 1}]}
        body = json.dumps({"clientID": "c", "consumerDataSet": [data]}).encode()
        assert (await client.ask(HEARTBEAT, {}, body)).code == 0
        yield client


def answer_to(opaque: int, code: int = 0, remark: str | None = None, body: bytes = b"") -> bytes:
    return frame(
        {"code": code, "flag": 1, "opaque": opaque, "language": "JAVA", "version": 401, "remark": remark}, body
    )


async def asked(client: Client, code: int = RUNNING_INFO) -> int:
    """The opaque of the broker's question."""
    while True:
        question = await client.answer()
        if question.code == code:
            return question.opaque


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "ROCKETMQ"])
async def test_odd_answers_of_a_client_reach_the_asker_or_an_error_does(broker: Server, binary: bool) -> None:
    question = request(RUNNING_INFO, QUESTION)
    if binary:
        question = binary_request(RUNNING_INFO, [(key.encode(), text.encode()) for key, text in QUESTION.items()])
    answers: tuple[tuple[int, str | None, bytes], ...] = (
        (2**31 - 1, None, b""),
        (-(2**31), "r", b""),
        (70_000, "r" * 500_000, b""),
        (0, "\u0001" * 100_000, b"x" * (15 << 20)),
        (0, None, b"x" * ((16 << 20) - 120)),
    )
    async with consumer(broker) as client, broker.client() as tool:
        for code, remark, body in answers:
            await tool.send(question)
            await client.send(answer_to(await asked(client), code, remark, body))
            answer = await tool.answer()
            assert answer.flag == 1
            assert answer.code == code or (answer.code, answer.body) == (1, b"")


async def test_answers_that_come_twice_or_to_another_question(broker: Server) -> None:
    async with consumer(broker) as client, broker.client() as tool:
        await tool.send(request(RUNNING_INFO, QUESTION))
        opaque = await asked(client)
        for wrong in (opaque + 1, opaque - 1, -opaque):
            await client.send(answer_to(wrong, body=b"wrong"))
        await client.send(answer_to(opaque, body=b"right") * 3)
        assert (await tool.answer()).body == b"right"
        assert await client.is_served()


async def test_an_answer_from_somebody_else_is_not_taken(broker: Server) -> None:
    async with consumer(broker) as client, broker.client() as tool, broker.client() as stranger:
        await tool.send(request(RUNNING_INFO, QUESTION))
        opaque = await asked(client)
        await stranger.send(answer_to(opaque, body=b"forged"))
        assert await stranger.is_served()
        await client.send(answer_to(opaque, body=b"right"))
        assert (await tool.answer()).body == b"right"


@pytest.mark.parametrize("code", [RUNNING_INFO, CONSUME_DIRECTLY])
async def test_a_client_that_closes_instead_of_answering(broker: Server, code: int) -> None:
    async with broker.client() as tool:
        sent = await tool.ask(SEND_V2, send_fields(), b"body")
        async with consumer(broker) as client:
            await tool.send(request(code, QUESTION | {"msgId": sent.fields["msgId"]}))
            await asked(client, code)
        answer = await tool.answer()
        assert answer.code == 1
        assert "closed the connection" in (answer.remark or "")


async def test_a_client_that_asks_about_itself(broker: Server) -> None:
    async with consumer(broker) as client:
        await client.send(request(RUNNING_INFO, QUESTION, opaque=99))
        await client.send(answer_to(await asked(client), body=b"myself"))
        answer = await client.answer()
        assert (answer.opaque, answer.body) == (99, b"myself")


# ---- name servers


def registered(opaque: int) -> list[bytes]:
    """What a name server might say to a registration."""
    fields = {"code": 0, "flag": 1, "opaque": opaque, "language": "JAVA", "version": 401}
    return [
        *BROKEN.values(),
        frame({**fields, "code": 2**31 - 1, "remark": "no" * 100_000}),
        frame({**fields, "extFields": {"haServerAddr": "\u0000" * 1000, "masterAddr": "x" * 100_000}}),
        frame(fields, b"not JSON"),
        frame(fields, b"[" * 100_000),
        frame(fields, json.dumps({"table": {"a/b": "x", "": "y", "../z": None}}).encode()),
        frame(fields, b'{"table":' + b'{"a":' * 100_000),
        frame({**fields, "opaque": opaque + 1}),
        frame({**fields, "flag": 0, "code": 105}) * 100,
        framed(b"\xff" * 100),
        struct.pack(">i", -5),
        b"",
    ]


async def test_name_servers_that_answer_anything(tmp_path: Path) -> None:
    """One listener for each answer; the broker registers with all of them, and serves its clients meanwhile."""
    count = len(registered(0))
    met = 0
    all_met = trio.Event()

    async with trio.open_nursery() as nursery:

        async def listen(number: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def answer(stream: trio.SocketStream) -> None:
                nonlocal met
                question = await Client(stream).answer_or_end()
                if question is None:
                    return
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(registered(question.opaque)[number] + bytes(8))
                met += 1
                if met >= count:
                    all_met.set()
                await trio.sleep_forever()

            task_status.started(listener.socket.getsockname()[1])
            await trio.serve_listeners(answer, [listener])

        ports = [await nursery.start(listen, number) for number in range(count)]
        addresses = ";".join(f"127.0.0.1:{port}" for port in ports)
        async with running_broker(tmp_path, namesrv_addr=addresses) as broker:
            assert broker.kind == BROKER
            with trio.fail_after(20):
                await all_met.wait()
            await broker.more_turns(10)
            async with broker.client() as client:
                assert await client.is_served()
        nursery.cancel_scope.cancel()
