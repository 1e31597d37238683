"""What hostile connections can make a server keep in memory, and of its open files, in a process of its own."""

import struct
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.gateway.hostile.rig import (
    BROKER,
    CREATE_TOPIC,
    NAMESRV,
    PULL,
    REGISTER_BROKER,
    REGISTRATION,
    ROUTE,
    SEND_V2,
    TOPIC_FIELDS,
    Client,
    Server,
    process,
    pull_fields,
    registration_body,
    request,
    resident_mb,
    send_fields,
)

SETTLED_SECONDS = 1.0
FRAME = 16 << 20


async def send_until_blocked(client: Client, data: bytes) -> None:
    """Sends until the server takes no more, or ends the connection."""
    try:
        while True:
            with trio.fail_after(SETTLED_SECONDS):
                await client.stream.send_all(data)
    except (trio.TooSlowError, trio.BrokenResourceError):
        return


async def all_send(server: Server, data: bytes, connections: int, pid: int) -> int:
    """The most memory (MB) that the server had while so many connections sent this and read nothing."""
    most = 0
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(connections)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(send_until_blocked, client, data)
            while len(nursery.child_tasks):
                most = max(most, resident_mb(pid))
                await trio.sleep(0.05)
        await server.more_turns()
    return most


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NAMESRV, BROKER])
async def test_incomplete_frames_of_many(kind: str, tmp_path: Path) -> None:
    """A hundred frames of 16 MiB that never end."""
    async with process(kind, tmp_path) as (server, pid):
        head = struct.pack(">iI", FRAME - 4, 100)
        assert await all_send(server, head + bytes(FRAME - 1000), 100, pid) < 300


@pytest.mark.slow
async def test_readers_that_never_read_what_they_pull(tmp_path: Path) -> None:
    async with process(BROKER, tmp_path) as (server, pid):
        async with server.client() as client:
            assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": "large"})).code == 0
            for _ in range(4):
                assert (await client.ask(SEND_V2, send_fields("large"), bytes(100_000))).code == 0
        pulls = request(PULL, pull_fields("large")) * 1000
        assert await all_send(server, pulls, 60, pid) < 200


@pytest.mark.slow
async def test_readers_that_never_read_their_routes(tmp_path: Path) -> None:
    async with process(NAMESRV, tmp_path) as (server, pid), server.client() as client:
        for number in range(1000):
            fields = REGISTRATION | {"brokerName": f"b{number}", "brokerAddr": f"127.0.0.1:{20_000 + number}"}
            assert (await client.ask(REGISTER_BROKER, fields, registration_body("large"))).code == 0
        assert len((await client.ask(ROUTE, {"topic": "large"})).body) > 100_000
        assert await all_send(server, request(ROUTE, {"topic": "large"}) * 1000, 60, pid) < 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NAMESRV, BROKER])
async def test_more_connections_than_open_files(kind: str, tmp_path: Path) -> None:
    """Those beyond the limit are closed at once; the store goes on opening files, and the healthy client sending."""
    async with process(kind, tmp_path, open_files=256) as (server, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(400)]
        assert await clients[0].is_served()
        assert await clients[-1].closed_by_server()
        if kind == BROKER:
            for number in range(20):
                sent = await clients[0].ask(SEND_V2, send_fields(f"topic{number}", d=8), b"body")
                assert sent.code == 0
        for client in clients[1:]:
            await trio.aclose_forcefully(client.stream)
        await server.more_turns()
        async with server.client() as late:
            assert await late.is_served()
