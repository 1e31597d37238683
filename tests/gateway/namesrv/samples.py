"""What the tests of the name server share: registrations, a connection without a socket, a way to ask."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from gateway.config import NamesrvOptions
from gateway.namesrv import handlers
from gateway.namesrv.kvconfig import KvConfig
from gateway.namesrv.registration import Registration
from gateway.namesrv.routes import RouteTable
from gateway.namesrv.state import Namesrv
from gateway.propertiesfile import save_properties
from gateway.routing import Router
from protocol.bodies import DataVersion, TopicConfig
from protocol.codes import FLAG_ONEWAY, VERSION
from protocol.command import Command, encode
from protocol.frame import FrameDecoder


class Clock:
    """Milliseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def version(counter: int = 1, state: int = 0) -> DataVersion:
    return DataVersion(counter=counter, timestamp=1_700_000_000_000, state_version=state)


def topic(name: str, *, perm: int = 6, queues: int = 4, flags: int = 0) -> TopicConfig:
    return TopicConfig(
        topic_name=name, perm=perm, read_queue_nums=queues, write_queue_nums=queues, topic_sys_flag=flags
    )


def registration(
    name: str = "broker-a",
    broker_id: int = 0,
    *topics: str | TopicConfig,
    address: str = "",
    counter: int = 1,
    state: int = 0,
    cluster: str = "C",
    **others: Any,
) -> Registration:
    """A registration of `name` with topics, at an address that is told by name and id unless it is given."""
    configs = [topic(each) if isinstance(each, str) else each for each in topics]
    address = address or f"{name}-{broker_id}:10911"
    return Registration(
        cluster=cluster,
        broker_name=name,
        broker_id=broker_id,
        address=address,
        ha_address=f"{address}/ha",
        version=version(counter, state),
        topics={config.topic_name: config for config in configs},
        **others,
    )


class FakeConnection:
    """A peer whose answers are kept; `nursery` is needed only where an answer has to wait."""

    def __init__(self, nursery: trio.Nursery | None = None) -> None:
        self.remote_address = "10.0.0.9:55555"
        self.closed = False
        self.answers: list[Command] = []
        self._nursery = nursery
        self._decoder = FrameDecoder()

    def post(self, *buffers: bytes) -> None:
        for buffer in buffers:
            self.answers += self._decoder.receive(buffer)

    def start_waiting(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    def close(self) -> None:
        self.closed = True


class Server:
    """A name server without a socket: requests go through the real router, as frames that were decoded."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = Clock()
        paths = {"kv_config_path": str(folder / "kv.json"), "config_store_path": str(folder / "namesrv.properties")}
        self.options = NamesrvOptions(**{**paths, **options})
        self.namesrv = Namesrv(
            self.options,
            RouteTable(self.clock),
            KvConfig.load(Path(self.options.kv_config_path)),
            save_properties,
        )
        self.router = Router(self.namesrv, [handlers.routes])
        self.connection = FakeConnection()

    def send(
        self,
        code: int,
        fields: Mapping[str, object] | None = None,
        body: bytes = b"",
        *,
        connection: FakeConnection | None = None,
        version: int = VERSION,
        flag: int = 0,
    ) -> None:
        """Carries out one request; what it is answered stands in the connection's `answers`."""
        texts = {key: str(value) for key, value in (fields or {}).items()}
        request = Command(code, 7, flag=flag, fields=texts, body=body, version=version)
        self.run(encode(request), connection)

    def run(self, frame: bytes, connection: FakeConnection | None = None) -> None:
        """Carries out the request in one frame."""
        (command,) = FrameDecoder().receive(frame)
        self.router.run(connection or self.connection, command)  # type: ignore[arg-type]

    def ask(self, code: int, fields: Mapping[str, object] | None = None, body: bytes = b"", **others: Any) -> Command:
        """The answer to one request that is answered at once."""
        self.send(code, fields, body, **others)
        connection: FakeConnection = others.get("connection") or self.connection
        answer = connection.answers.pop()
        assert not connection.answers
        assert answer.opaque == 7
        assert answer.is_response
        return answer

    def tell(self, code: int, fields: Mapping[str, object], body: bytes = b"") -> None:
        """Carries out a one-way request."""
        self.send(code, fields, body, flag=FLAG_ONEWAY)
        assert not self.connection.answers
