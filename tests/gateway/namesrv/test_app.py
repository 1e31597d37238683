"""The name server as a process part: real sockets, start, stop, and peers that misbehave beside healthy ones."""

import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import NamesrvOptions
from gateway.namesrv.app import LATE_SECONDS, expire_forever, serve_namesrv
from protocol.codes import RequestCode as Code
from protocol.codes import ResponseCode
from protocol.command import Command, encode
from protocol.frame import FrameDecoder
from tests.gateway.namesrv.samples import Server
from tests.gateway.namesrv.test_handlers import body, fields


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., NamesrvOptions]:
    def make(**others: Any) -> NamesrvOptions:
        return NamesrvOptions(
            bind_address="127.0.0.1",
            listen_port=others.pop("listen_port", 0),
            metrics_port=others.pop("metrics_port", 0),
            kv_config_path=str(tmp_path / "kv.json"),
            config_store_path=str(tmp_path / "namesrv.properties"),
            **others,
        )

    return make


class Peer:
    """A client with a socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._answers: list[Command] = []

    async def ask(self, code: int, asked: Mapping[str, object] | None = None, data: bytes = b"") -> Command:
        texts = {key: str(value) for key, value in (asked or {}).items()}
        await self.stream.send_all(encode(Command(code, 1, fields=texts, body=data)))
        with trio.fail_after(10):
            while not self._answers:
                received = await self.stream.receive_some()
                assert received, "the server closed the connection"
                self._answers += self._decoder.receive(received)
        return self._answers.pop(0)

    async def register(self, *topics: str, **asked: object) -> None:
        answer = await self.ask(Code.REGISTER_BROKER, {**fields(), **asked}, body(*topics).encode())
        assert answer.code == ResponseCode.SUCCESS

    async def topics(self) -> list[str]:
        answer = await self.ask(Code.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        names: list[str] = json.loads(answer.body)["topicList"]
        return names

    async def closed_by_server(self) -> bool:
        with trio.move_on_after(10):
            try:
                return await self.stream.receive_some() == b""
            except trio.BrokenResourceError:
                return True
        return False


class Running:
    """A name server with a port, and its peers."""

    def __init__(self, port: int, scope: trio.CancelScope, stack: AsyncExitStack) -> None:
        self.port = port
        self.scope = scope
        self._stack = stack

    async def peer(self) -> Peer:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        return Peer(await self._stack.enter_async_context(stream))


@asynccontextmanager
async def running(options: NamesrvOptions) -> AsyncIterator[Running]:
    """The server lives as long as the block, its peers a little longer."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        address = await nursery.start(serve_namesrv, options)
        yield Running(int(address.rpartition(":")[2]), nursery.cancel_scope, stack)
        nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], Any]) -> None:
    with trio.fail_after(10):
        while not await condition():  # noqa: ASYNC110 - it can only be seen by asking
            await trio.sleep(0.005)


async def test_brokers_come_and_go_with_their_connections(options: Callable[..., NamesrvOptions]) -> None:
    """A killed broker is not told to clients any more as soon as its socket is closed."""
    async with running(options()) as server:
        client, broker = await server.peer(), await server.peer()
        await broker.register("T", "U")
        assert await client.topics() == ["T", "U"]
        await broker.stream.aclose()

        async def gone() -> bool:
            return await client.topics() == []

        await eventually(gone)


async def test_a_silent_broker_is_closed(options: Callable[..., NamesrvOptions]) -> None:
    """One that hangs with an open connection is forgotten after its time, and told so by the closed socket."""
    async with running(options(scan_not_active_broker_interval=10)) as server:
        broker = await server.peer()
        await broker.register("T", "U", heartbeatTimeoutMillis=30)
        assert await broker.closed_by_server()
        assert await (await server.peer()).topics() == []


async def test_a_look_that_comes_late_is_left_out(tmp_path: Path, mock_clock: MockClock) -> None:
    """After the process itself stood still its brokers get a chance to be heard before they are judged."""
    server = Server(tmp_path)
    server.ask(Code.REGISTER_BROKER, fields(), body("T", "U").encode())
    server.clock.now_ms += 1_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expire_forever, server.namesrv)
        for seconds, topics in ((5 + LATE_SECONDS + 1, ["T", "U"]), (5, [])):
            await wait_all_tasks_blocked()
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
            assert server.namesrv.routes.topics() == topics
        nursery.cancel_scope.cancel()


async def test_kv_configuration_survives_a_restart(options: Callable[..., NamesrvOptions]) -> None:
    """What was answered is on disk."""
    item = {"namespace": "n", "key": "k"}
    async with running(options()) as server:
        answer = await (await server.peer()).ask(Code.PUT_KV_CONFIG, {**item, "value": "v"})
        assert answer.code == ResponseCode.SUCCESS
    async with running(options()) as server:
        assert (await (await server.peer()).ask(Code.GET_KV_CONFIG, item)).fields == {"value": "v"}


async def test_a_taken_port_is_named(options: Callable[..., NamesrvOptions], tmp_path: Path) -> None:
    """The command prints this as its one line."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is taken"):
            await serve_namesrv(options(listen_port=port))
    assert os.listdir(tmp_path) == []


async def test_metrics(options: Callable[..., NamesrvOptions]) -> None:
    """Brokers, topics, connections and answered requests are shown."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with running(options(metrics_port=port)) as server:
        broker = await server.peer()
        await broker.register("T", "U")
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with trio.fail_after(10):
                text = b"".join([part async for part in stream]).decode()
    shown = {line.partition("{")[0]: line.rpartition(" ")[2] for line in text.splitlines() if "namesrv_" in line}
    assert (shown["rocketmq_namesrv_brokers"], shown["rocketmq_namesrv_topics"]) == ("1.0", "2.0")
    assert shown["rocketmq_namesrv_connections"] == "1.0"
    assert 'request_code="register_broker",response_code="success"' in text


BAD = {
    "random": bytes(range(256)) * 8,
    "length zero": bytes(8),
    "negative length": b"\xff" * 8,
    "too long": b"\x7f\xff\xff\xff\0\0\0\x10",
    "header beyond frame": b"\0\0\0\x08\0\0\xff\xff" + b"{}" * 2,
    "unknown serialization": b"\0\0\0\x08\x07\0\0\x04" + b"{}{}",
    "broken JSON": b"\0\0\0\x0a\0\0\0\x06" + b'{"code',
    "nested JSON": b"\0\0\x40\x04\0\0\x40\0" + b"[" * 0x4000,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_a_broken_stream_ends_only_itself(options: Callable[..., NamesrvOptions], data: bytes) -> None:
    """The connection is closed; a healthy client on another one notices nothing."""
    async with running(options()) as server:
        healthy, broken = await server.peer(), await server.peer()
        await healthy.register("T", "U")
        await broken.stream.send_all(data)
        assert await broken.closed_by_server()
        assert await healthy.topics() == ["T", "U"]


async def test_a_client_that_never_reads(options: Callable[..., NamesrvOptions]) -> None:
    """It stops being served when its socket is full, and nobody else waits for it."""
    ask = encode(Command(Code.GET_ALL_TOPIC_LIST_FROM_NAMESERVER, 1))
    async with running(options()) as server:
        healthy, greedy = await server.peer(), await server.peer()
        await healthy.register(*(f"topic-with-a-long-name-{number}" for number in range(2000)))
        with trio.move_on_after(0.2):
            while True:
                await greedy.stream.send_all(ask * 100)
        for _ in range(20):
            assert len(await healthy.topics()) == 2000


async def test_ten_thousand_requests_in_one_write(options: Callable[..., NamesrvOptions]) -> None:
    """All are answered, in order, while another client goes on."""
    async with running(options()) as server:
        healthy, eager = await server.peer(), await server.peer()
        await healthy.register("T", "U")
        asked = b"".join(
            encode(Command(Code.GET_ROUTEINFO_BY_TOPIC, number, fields={"topic": "T"})) for number in range(10_000)
        )
        answers: list[int] = []
        decoder = FrameDecoder()

        async def receive() -> None:
            while len(answers) < 10_000:
                answers.extend(answer.opaque for answer in decoder.receive(await eager.stream.receive_some()))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(eager.stream.send_all, asked)
                for _ in range(10):
                    assert await healthy.topics() == ["T", "U"]
        assert answers == list(range(10_000))


async def test_stopping_ends_in_time_with_open_connections(options: Callable[..., NamesrvOptions]) -> None:
    """A stop does not wait for clients that keep their connections open."""
    with trio.fail_after(10):
        async with running(options()) as server:
            _, broker = await server.peer(), await server.peer()
            await broker.register("T", "U")
            server.scope.cancel()
