"""Very many requests at once, and very many connections that say little or nothing."""

import resource
from contextlib import AsyncExitStack

import pytest
import trio

from tests.gateway.hostile.rig import (
    BROKER,
    CREATE_TOPIC,
    NAMESRV,
    ONE_WAY,
    PULL,
    ROUTE,
    SEND_V2,
    TOPIC_FIELDS,
    Client,
    Received,
    Server,
    pull_fields,
    request,
    send_fields,
)
from tests.gateway.hostile.samples import SAMPLE_TOPIC

MANY = 10_000
SEARCH, QUERY_OFFSET, PUT_KV = 29, 14, 100
HALF = b'\x00\x00\x00\x50\x00\x00\x00\x40{"code":34,"opaq'


async def flood(client: Client, data: bytes, count: int = MANY, unanswered: int = 0) -> list[Received]:
    """`count` requests in one write, and all their answers but those that are not to come yet."""
    answers: list[Received] = []

    async def read() -> None:
        answers.extend([await client.answer(30) for _ in range(count - unanswered)])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await client.stream.send_all(data * count)
    return answers


async def test_ten_thousand_unknown_codes(server: Server) -> None:
    async with server.client() as client:
        answers = await flood(client, request(9999))
        assert {answer.code for answer in answers} == {3}


async def test_ten_thousand_one_way_requests(server: Server) -> None:
    async with server.client() as client:
        await client.send(request(9999, flag=ONE_WAY) * MANY)
        assert await client.is_served()


async def test_ten_thousand_answers_to_nothing(server: Server) -> None:
    async with server.client() as client:
        await client.send(request(0, flag=1) * MANY)
        assert await client.is_served()


async def test_ten_thousand_routes(namesrv: Server) -> None:
    async with namesrv.client() as client:
        answers = await flood(client, request(ROUTE, {"topic": "unknown"}))
        assert {answer.code for answer in answers} == {17}


async def test_ten_thousand_changes_of_the_configuration(namesrv: Server) -> None:
    async with namesrv.client() as client:
        answers = await flood(client, request(PUT_KV, {"namespace": "n", "key": "k", "value": "v"}))
        assert {answer.code for answer in answers} == {0}


async def test_ten_thousand_sends(broker: Server) -> None:
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        answers = await flood(client, request(SEND_V2, send_fields(SAMPLE_TOPIC), b"body"))
        assert {answer.code for answer in answers} == {0}
        assert [int(answer.fields["queueOffset"]) for answer in answers] == list(range(MANY))


async def test_ten_thousand_sends_that_are_refused(broker: Server) -> None:
    async with broker.client() as client:
        answers = await flood(client, request(SEND_V2, send_fields("no/topic"), b"body"))
        assert {answer.code for answer in answers} == {1}


async def test_ten_thousand_pulls(broker: Server) -> None:
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        assert (await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC), b"body")).code == 0
        answers = await flood(client, request(PULL, pull_fields(SAMPLE_TOPIC)))
        assert {answer.code for answer in answers} == {0}
        assert all(b"body" in answer.body for answer in answers)


async def test_ten_thousand_pulls_that_wait(broker: Server) -> None:
    """The first of them are parked until a message comes, the others are told at once that there is none."""
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        waiting = request(PULL, pull_fields(SAMPLE_TOPIC, sysFlag=6, suspendTimeoutMillis=60_000))
        parked = 256
        answers = await flood(client, waiting, unanswered=parked)
        assert {answer.code for answer in answers} == {19}
        async with broker.client() as producer:
            assert (await producer.ask(SEND_V2, send_fields(SAMPLE_TOPIC), b"body")).code == 0
        assert {(await client.answer()).code for _ in range(parked)} == {0}


async def test_thousands_of_requests_that_run_beside_the_others(broker: Server) -> None:
    async with broker.client() as client:
        search = request(SEARCH, {"topic": SAMPLE_TOPIC, "queueId": 0, "timestamp": 1})
        answers = await flood(client, search, MANY // 5)
        assert {answer.code for answer in answers} == {0}


def connection_count() -> int:
    """Two thousand, or as many as this process and the server in it may have files for."""
    return min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


async def test_thousands_of_idle_connections(server: Server) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(connection_count()):
            last = await stack.enter_async_context(server.client())
        await server.more_turns(20)
        assert await last.is_served()
    await server.more_turns(20)


async def test_hundreds_of_senders_of_single_bytes(server: Server) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(min(300, connection_count()))]
        for byte in HALF:
            for client in clients:
                await client.send(bytes([byte]))
        await server.more_turns(20)


@pytest.mark.parametrize("kind", [NAMESRV, BROKER])
async def test_silent_and_half_open_connections_are_closed(kind: str, idle_server: Server) -> None:
    assert idle_server.kind == kind
    async with idle_server.client() as silent, idle_server.client() as half, idle_server.client() as lively:
        await half.send(HALF)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking, lively)
            assert await silent.closed_by_server()
            assert await half.closed_by_server()
            nursery.cancel_scope.cancel()
        assert await lively.is_served()


async def keep_asking(client: Client) -> None:
    while True:
        assert await client.is_served()
        await trio.sleep(0.05)


async def test_connections_that_come_and_go(server: Server) -> None:
    for _ in range(500):
        client = await server.connect()
        await client.send(request(9999))
        await trio.aclose_forcefully(client.stream)
    async with server.client() as client:
        assert await client.is_served()
