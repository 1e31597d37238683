"""A whole broker without its services: real tables, real store, real routing; only the sockets are missing."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from gateway.broker.handlers import ROUTES
from gateway.broker.state import Broker
from gateway.config import BrokerOptions
from gateway.connection import ConnectionClosed
from gateway.routing import Router
from protocol.codes import FLAG_ONEWAY, LanguageCode, RequestCode
from protocol.command import Command
from protocol.frame import FrameDecoder
from protocol.header import Header
from protocol.message import NewMessage, pack_host, tags_code
from store.options import StoreOptions
from tests.gateway.broker.fakes import Clock

HOST = pack_host("10.0.0.1", 10911)


class FakeConnection:
    """A client's end: keeps what the broker sends, answers the broker's questions with `reaction`."""

    def __init__(self, nursery: trio.Nursery, address: str) -> None:
        self.remote_address = address
        self.peer_host = HOST
        self.closed = False
        self.waiting = 0
        self.notices: list[Command] = []
        self.reaction: Callable[[Command], Awaitable[Command]] | None = None
        self._nursery = nursery
        self._decoder = FrameDecoder()
        self._on_close: list[Callable[[Any], None]] = []
        self._send, self.answers = trio.open_memory_channel[Command](1000)

    def post(self, *buffers: bytes) -> None:
        for buffer in buffers:
            for command in self._decoder.receive(buffer):
                self._send.send_nowait(command)

    post_now = post

    def notify(self, command: Command) -> None:
        self.notices.append(command)

    async def request(self, command: Command, timeout: float) -> Command:
        if self.reaction is None:
            raise ConnectionClosed(f"{self.remote_address} closed the connection before it answered")
        with trio.fail_after(timeout):
            return await self.reaction(command)

    def start_waiting(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(function, *args)

    def begin_waiting(self) -> None:
        self.waiting += 1

    def end_waiting(self) -> None:
        self.waiting -= 1

    def on_close(self, callback: Callable[[Any], None]) -> None:
        self._on_close.append(callback)

    def close(self) -> None:
        self.closed = True
        for callback in self._on_close:
            callback(self)


class Rig:
    """A broker under test; `ask` is a request and its answer."""

    def __init__(self, broker: Broker, nursery: trio.Nursery, clock: Clock) -> None:
        self.clock = clock
        self.broker = broker
        self.router = Router(broker, ROUTES)
        self._nursery = nursery
        self._ports = iter(range(40_000, 50_000))
        self.tool = self.connect()

    def connect(self) -> FakeConnection:
        return FakeConnection(self._nursery, f"10.0.0.9:{next(self._ports)}")

    async def ask(
        self,
        code: RequestCode,
        header: Header | None = None,
        body: bytes = b"",
        *,
        connection: FakeConnection | None = None,
        fields: dict[str, str] | None = None,
        language: int = LanguageCode.JAVA,
        version: int = 401,
    ) -> Command:
        """Sends a request as a client would, over its bytes, and returns the answer."""
        connection = connection or self.tool
        command = Command(code, 7, fields=fields, header=header, body=body, language=language, version=version)
        command = Command(code, 7, fields=command.fields, body=body, language=language, version=version)
        self.router.run(connection, command)  # type: ignore[arg-type]
        with trio.fail_after(5):
            answer = await connection.answers.receive()
        assert answer.opaque == 7
        return answer

    def tell(self, code: RequestCode, header: Header | None = None, body: bytes = b"") -> None:
        """Sends a one-way request."""
        command = Command(code, 8, flag=FLAG_ONEWAY, header=header, body=body)
        self.router.run(self.tool, Command(code, 8, flag=FLAG_ONEWAY, fields=command.fields, body=body))  # type: ignore[arg-type]

    def store_messages(
        self, topic: str, queue_id: int, count: int, *, tags: str | None = None, keys: tuple[str, ...] = ()
    ) -> list[NewMessage]:
        """Puts messages into the log; the clock says when."""
        messages = [
            NewMessage(
                topic=topic,
                queue_id=queue_id,
                flag=0,
                sys_flag=0,
                born_timestamp=self.clock.ms,
                born_host=HOST,
                store_host=HOST,
                body=b"body %d" % number,
                properties=b"TAGS\x01" + tags.encode() if tags else b"",
                tags_code=tags_code(tags),
                keys=keys,
            )
            for number in range(count)
        ]
        self.broker.storage.append(messages)
        return messages


SMALL_FILES = {
    "mapped_file_size_commit_log": 1 << 20,
    "mapped_file_size_consume_queue": 20 * 1000,
    "max_hash_slot_num": 100,
    "max_index_num": 400,
}


def small_options(root: Path, **values: Any) -> StoreOptions:
    """Options of a store whose files are small."""
    paths = {"store_path_root_dir": str(root), "store_path_commit_log": str(root / "commitlog")}
    return StoreOptions(**(SMALL_FILES | paths | values))


def options(**values: Any) -> BrokerOptions:
    return BrokerOptions(**({"broker_name": "broker-a", "broker_ip1": "10.0.0.1", "broker_ip2": "10.0.0.1"} | values))


def samples(rig: Rig, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The series of a metric as Prometheus would get them now, by the values of some of their labels."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in rig.broker.metrics.collect()
        for sample in family.samples
        if sample.name == name
    }
