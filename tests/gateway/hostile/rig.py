"""Servers under attack: a name server or a broker with real sockets, and a healthy client that goes on all the while.

The clients here share no codec with the project on purpose: what looks at a server must not be made of the same parts.
"""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from gateway.broker.app import serve_broker
from gateway.broker.handlers import ROUTES as BROKER_ROUTES
from gateway.config import BrokerOptions, NamesrvOptions
from gateway.namesrv.app import serve_namesrv
from gateway.namesrv.handlers import routes as namesrv_routes
from gateway.routing import Routes
from store.options import StoreOptions
from tests.interop.raw import Answer, frame, split

NAMESRV: Final = "namesrv"
BROKER: Final = "broker"
TOPIC: Final = "healthy"
GROUP: Final = "healthy-group"
ONE_WAY: Final = 2
RESPONSE: Final = 1
PATIENCE_SECONDS: Final = 20.0
CLIENT_TIMEOUT_SECONDS: Final = 3.0  # after which a Java producer gives up
PAUSE_SECONDS: Final = 0.002

SEND_V2: Final = 310
PULL: Final = 11
CREATE_TOPIC: Final = 17
HEARTBEAT: Final = 34
REGISTER_BROKER: Final = 103
ROUTE: Final = 105

SMALL_FILES: Final[dict[str, Any]] = {
    "mapped_file_size_commit_log": 64 << 20,
    "mapped_file_size_consume_queue": 20 * 10_000,
    "max_hash_slot_num": 1000,
    "max_index_num": 4000,
}


class Received(Answer):
    """A frame from the server: an answer, or something that it asks."""

    def __init__(self, header: Mapping[str, Any], body: bytes) -> None:
        super().__init__(header, body)
        self.opaque: int = header["opaque"]
        self.flag: int = header["flag"]


class Client:
    """One connection that can say anything."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._received = bytearray()
        self._opaque = 0

    async def send(self, data: bytes) -> None:
        """All of the bytes; a server that has closed the connection meanwhile is no error."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                return

    async def answer(self, patience: float = PATIENCE_SECONDS) -> Received:
        """The next frame from the server."""
        answer = await self.answer_or_end(patience)
        assert answer is not None, "the server closed the connection instead of answering"
        return answer

    async def answer_or_end(self, patience: float = PATIENCE_SECONDS) -> Received | None:
        """The next frame from the server, or None if it closes the connection."""
        data = self._received
        with trio.fail_after(patience):
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                try:
                    part = await self.stream.receive_some(1 << 20)
                except trio.BrokenResourceError:
                    return None
                if not part:
                    return None
                data += part
        size = 4 + int.from_bytes(data[:4], "big")
        taken = bytes(data[:size])
        del data[:size]
        header, body = split(taken)
        return Received(header, body)

    async def ask(self, code: int, fields: Mapping[str, object] | None = None, body: bytes = b"") -> Received:
        """One request and its answer, which must carry the request's opaque; what the server asks is passed over."""
        self._opaque += 1
        await self.send(request(code, fields, body, opaque=self._opaque))
        while True:
            answer = await self.answer()
            if answer.flag & RESPONSE:
                assert answer.opaque == self._opaque
                return answer

    async def is_served(self) -> bool:
        """Whether the connection still answers (an unknown code, which changes nothing)."""
        answer = await self.ask(9999)
        return answer.code == 3

    async def closed_by_server(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Whether the server ends the connection without a further word."""
        return await self.answer_or_end(patience) is None


def request(
    code: int,
    fields: Mapping[str, object] | None = None,
    body: bytes = b"",
    *,
    opaque: int = 1,
    flag: int = 0,
    version: int = 401,
) -> bytes:
    """The frame of a request with a JSON header."""
    texts = {name: str(value) for name, value in (fields or {}).items()}
    header = {"code": code, "language": "JAVA", "version": version, "opaque": opaque, "flag": flag, "extFields": texts}
    return frame(header, body)


def binary_request(
    code: int,
    fields: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    *,
    opaque: int = 1,
    flag: int = 0,
) -> bytes:
    """The frame of a request with a ROCKETMQ header."""
    ext = b"".join(struct.pack(">h", len(k)) + k + struct.pack(">i", len(v)) + v for k, v in fields)
    header = struct.pack(">hBhiii", code, 0, 401, opaque, flag, 0) + struct.pack(">i", len(ext)) + ext
    return framed(header, body, serialization=1)


def framed(header: bytes, body: bytes = b"", *, serialization: int = 0) -> bytes:
    """Any header in a correct frame."""
    return struct.pack(">iI", 4 + len(header) + len(body), serialization << 24 | len(header)) + header + body


class Server:
    """A running server and its healthy client."""

    def __init__(self, kind: str, port: int, directory: Path, routes: Sequence[Routes]) -> None:
        self.kind = kind
        self.port = port
        self.directory = directory
        self.routes = routes
        self.turns = 0
        self.slowest_seconds = 0.0
        self._turned = trio.Event()

    async def connect(self) -> Client:
        """A new connection; the caller closes it (see `client`)."""
        with trio.fail_after(PATIENCE_SECONDS):
            return Client(await trio.open_tcp_stream("127.0.0.1", self.port))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection for the length of a block."""
        client = await self.connect()
        try:
            yield client
        finally:
            await trio.aclose_forcefully(client.stream)

    def names_on_disk(self) -> set[str]:
        """All directories, and the files beside the store: what could be made from the name of a topic or group."""
        paths = {path.relative_to(self.directory).as_posix(): path for path in self.directory.rglob("*")}
        return {name for name, path in paths.items() if path.is_dir() or not name.startswith("store/")}

    async def more_turns(self, count: int = 3) -> None:
        """Returns when the healthy client has been served `count` times more."""
        target = self.turns + count
        with trio.fail_after(PATIENCE_SECONDS):
            while self.turns < target:
                await self._turned.wait()

    async def be_healthy(self, turn: "Turn", client: Client) -> None:
        while True:
            started = trio.current_time()
            await turn(client)
            self.slowest_seconds = max(self.slowest_seconds, trio.current_time() - started)
            self.turns += 1
            self._turned.set()
            self._turned = trio.Event()
            await trio.sleep(PAUSE_SECONDS)


def free_ports() -> int:
    """A port that is free, as are the one above it and the one two below."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            try:
                for other in (port - 2, port + 1):
                    with socket.socket() as neighbour:
                        neighbour.bind(("127.0.0.1", other))
            except (OSError, OverflowError):
                continue
            return port


Turn = Callable[[Client], Awaitable[None]]
Start = Callable[[Server, Client], Awaitable[Turn]]


@asynccontextmanager
async def healthy(server: Server, start: Start) -> AsyncIterator[Server]:
    """A healthy client for the length of a block, which must have been served until the end."""
    async with server.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(server.be_healthy, await start(server, client), client)
        await server.more_turns()
        yield server
        await server.more_turns()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(server: Server, serve: Callable[..., Awaitable[None]], start: Start) -> AsyncIterator[Server]:
    """The server in this process, and its healthy client, for the length of a block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with healthy(server, start):
            yield server
        nursery.cancel_scope.cancel()
    assert server.slowest_seconds < CLIENT_TIMEOUT_SECONDS


@asynccontextmanager
async def process(
    kind: str, directory: Path, *, open_files: int | None = None, **keys: object
) -> AsyncIterator[tuple[Server, int]]:
    """A server started as a user starts it, its healthy client, and its process id; it must end well when told to."""
    server = Server(kind, free_ports(), directory, [])
    keys = {"listenPort": server.port, "bindAddress": "127.0.0.1", "metricsPort": 0, "logDir": ""} | PATHS[kind] | keys
    command = [sys.executable, "-c", f"import sys; from gateway.cli import mq{kind} as main; sys.exit(main())"]
    command += [f"{key}={value}" for key, value in keys.items()]
    limit = None if open_files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (open_files,) * 2)
    with (directory / "log").open("wb") as log:
        started = await trio.lowlevel.open_process(
            command, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, preexec_fn=limit
        )
        async with started.stdout as said:  # type: ignore[union-attr]
            with trio.fail_after(PATIENCE_SECONDS):
                while b"boot success" not in await said.receive_some():
                    pass
            try:
                async with healthy(server, STARTS[kind]):
                    yield server, started.pid
                started.terminate()
                with trio.fail_after(PATIENCE_SECONDS):
                    assert await started.wait() == 0
            finally:
                started.kill()
                await started.wait()


# ---- the name server


def namesrv_options(directory: Path, **others: Any) -> NamesrvOptions:
    values: dict[str, Any] = {
        "bind_address": "127.0.0.1",
        "listen_port": free_ports(),
        "metrics_port": 0,
        "kv_config_path": str(directory / "kv.json"),
        "config_store_path": str(directory / "namesrv.properties"),
    }
    return NamesrvOptions(**(values | others))


@asynccontextmanager
async def running_namesrv(directory: Path, **others: Any) -> AsyncIterator[Server]:
    options = namesrv_options(directory, **others)
    server = Server(NAMESRV, options.listen_port, directory, [namesrv_routes])
    async with serving(server, partial(serve_namesrv, options), _poll_routes) as served:
        yield served


REGISTRATION: Final[dict[str, object]] = {
    "brokerName": "healthy-broker",
    "brokerAddr": "127.0.0.1:10911",
    "clusterName": "C",
    "haServerAddr": "127.0.0.1:10912",
    "brokerId": 0,
}


def registration_body(topic: str = TOPIC) -> bytes:
    config = {"topicName": topic, "readQueueNums": 4, "writeQueueNums": 4, "perm": 6}
    version = {"counter": 1, "timestamp": 1_700_000_000_000}
    wrapper = {"dataVersion": version, "topicConfigTable": {topic: config}}
    return json.dumps({"topicConfigSerializeWrapper": wrapper, "filterServerList": []}).encode()


async def _poll_routes(server: Server, client: Client) -> Turn:
    """A broker that registers over and over, and the route that its clients see."""
    first = await client.ask(REGISTER_BROKER, REGISTRATION, registration_body())
    assert first.code == 0
    route = (await client.ask(ROUTE, {"topic": TOPIC})).body
    assert b"127.0.0.1:10911" in route

    async def turn(client: Client) -> None:
        registered = await client.ask(REGISTER_BROKER, REGISTRATION, registration_body())
        assert registered.code == 0
        answer = await client.ask(ROUTE, {"topic": TOPIC})
        assert answer.code == 0
        assert answer.body == route

    return turn


# ---- the broker


def broker_options(**others: Any) -> BrokerOptions:
    values: dict[str, Any] = {
        "broker_name": "broker-a",
        "broker_ip1": "127.0.0.1",
        "broker_ip2": "127.0.0.1",
        "bind_address": "127.0.0.1",
        "listen_port": free_ports(),
        "metrics_port": 0,
    }
    return BrokerOptions(**(values | others))


def store_options(directory: Path, **others: Any) -> StoreOptions:
    return StoreOptions(**(SMALL_FILES | {"store_path_root_dir": str(directory / "store")} | others))


@asynccontextmanager
async def running_broker(
    directory: Path, *, store: Mapping[str, Any] | None = None, **others: Any
) -> AsyncIterator[Server]:
    options = broker_options(**others)
    server = Server(BROKER, options.listen_port, directory, BROKER_ROUTES)
    serve = partial(serve_broker, options, store_options(directory, **(store or {})))
    async with serving(server, serve, _send_messages) as served:
        yield served


TOPIC_FIELDS: Final[dict[str, object]] = {
    "topic": TOPIC,
    "defaultTopic": "TBW102",
    "readQueueNums": 4,
    "writeQueueNums": 4,
    "perm": 6,
    "topicFilterType": "SINGLE_TAG",
}


def send_fields(topic: str = TOPIC, queue_id: int = 0, **others: object) -> dict[str, object]:
    """The fields of SEND_MESSAGE_V2, in its one-letter names."""
    fields = {"a": "producers", "b": topic, "c": "TBW102", "d": 4, "e": queue_id, "f": 0, "g": 1, "h": 0, "i": ""}
    return fields | others


def pull_fields(topic: str = TOPIC, queue_id: int = 0, offset: int = 0, **others: object) -> dict[str, object]:
    """A pull that brings its subscription along and does not wait."""
    fields: dict[str, object] = {
        "consumerGroup": GROUP,
        "topic": topic,
        "queueId": queue_id,
        "queueOffset": offset,
        "maxMsgNums": 32,
        "sysFlag": 4,
        "commitOffset": 0,
        "suspendTimeoutMillis": 0,
        "subVersion": 1,
        "subscription": "*",
        "expressionType": "TAG",
    }
    return fields | others


async def _send_messages(server: Server, client: Client) -> Turn:
    """A producer to queue 3 that consumes what it sends: nothing may be lost, doubled or changed."""
    assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS)).code == 0
    number = 0

    async def turn(client: Client) -> None:
        nonlocal number
        body = b"healthy %d" % number
        sent = await client.ask(SEND_V2, send_fields(queue_id=3), body)
        assert sent.code == 0, sent
        assert sent.fields["queueOffset"] == str(number)
        pulled = await client.ask(PULL, pull_fields(queue_id=3, offset=number))
        assert pulled.code == 0, pulled
        assert body in pulled.body
        number += 1

    return turn


# ---- servers in a process of their own

STARTS: Final[dict[str, Start]] = {NAMESRV: _poll_routes, BROKER: _send_messages}
PATHS: Final[dict[str, dict[str, object]]] = {
    NAMESRV: {"kvConfigPath": "kv.json", "configStorePath": "namesrv.properties"},
    BROKER: {
        "storePathRootDir": "store",
        "brokerIP1": "127.0.0.1",
        "brokerName": "broker-a",
        "mappedFileSizeCommitLog": 64 << 20,
    },
}
ENVIRONMENT: Final = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(Path(__file__).parents[3])}


def resident_mb(pid: int) -> int:
    """What the process has in memory of its own (RssAnon)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024
