"""The same on the broker's other ports: the fast port, the port for slaves, and /metrics."""

import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.gateway.hostile.rig import (
    PULL,
    Client,
    Server,
    binary_request,
    free_ports,
    pull_fields,
    request,
    running_broker,
)
from tests.gateway.hostile.test_frames import BROKEN

MANY_LINKS = 100  # more than slaves may be connected


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    client = Client(await trio.open_tcp_stream("127.0.0.1", port))
    try:
        yield client
    finally:
        await trio.aclose_forcefully(client.stream)


async def read_to_the_end(client: Client) -> None:
    with trio.fail_after(10):
        try:
            while await client.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            return


async def test_broken_frames_on_the_fast_port(broker: Server) -> None:
    for name, data in BROKEN.items():
        async with connected(broker.port - 2) as client:
            await client.send(request(9999) + data + bytes(8))
            assert (await client.answer()).code == 3, name
            assert await client.closed_by_server(), name


async def test_the_fast_port_answers_what_it_does_not_serve(broker: Server) -> None:
    async with connected(broker.port - 2) as client:
        for data in (request(PULL, pull_fields()), binary_request(PULL), request(PULL), request(9999)):
            await client.send(data)
            assert (await client.answer()).code == 3


async def test_random_bytes_on_the_port_for_slaves(broker: Server, seeded_random: random.Random) -> None:
    for _ in range(50):
        async with connected(broker.port + 1) as client:
            await client.send(seeded_random.randbytes(seeded_random.randrange(1, 100)))
            await client.stream.send_eof()
            await read_to_the_end(client)


@pytest.mark.parametrize("offset", [-(2**63), -2, -1, 0, 1, 2**40, 2**63 - 1])
async def test_impossible_reports_of_slaves(broker: Server, offset: int) -> None:
    async with connected(broker.port + 1) as client:
        await client.send(struct.pack(">q", offset) * 3)
        await client.stream.send_eof()
        await read_to_the_end(client)


async def test_too_many_silent_slaves(broker: Server) -> None:
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            async with connected(broker.port + 1) as client:
                await client.send(b"\x00")
                await read_to_the_end(client)

        for _ in range(MANY_LINKS):
            nursery.start_soon(hold)
        await broker.more_turns(10)
        nursery.cancel_scope.cancel()


async def test_random_bytes_on_the_metrics_port(tmp_path: Path, seeded_random: random.Random) -> None:
    port = free_ports()
    async with running_broker(tmp_path, metrics_port=port):
        for _ in range(50):
            async with connected(port) as client:
                await client.send(seeded_random.randbytes(seeded_random.randrange(1, 2000)))
                await client.stream.send_eof()
                await read_to_the_end(client)
        async with connected(port) as client:
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200")
