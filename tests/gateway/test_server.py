"""Listeners and sweeps with real sockets, and the orderly end."""

from typing import Any, cast

import pytest
import trio

from gateway.routing import Call, Router, Routes
from gateway.server import ConnectionTable, open_listeners, port_of, serve_remoting
from protocol.codes import RequestCode
from protocol.command import Command, encode
from protocol.frame import FrameDecoder
from protocol.requests.offsets import GetMaxOffset, OffsetReply


def router(released: trio.Event | None = None) -> Router[Any]:
    routes = Routes()

    @routes.handle
    async def get_max_offset(state: None, call: Call[GetMaxOffset]) -> OffsetReply:
        if released is not None:
            await released.wait()
        return OffsetReply(offset=1)

    return Router(None, [routes])


REQUEST = encode(Command(RequestCode.GET_MAX_OFFSET, 5, fields={"topic": "t", "queueId": "0"}))


async def test_answers_over_a_socket_and_ends_after_the_last_answer() -> None:
    released = trio.Event()
    table = ConnectionTable()
    listeners = await open_listeners(0, "127.0.0.1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_remoting, listeners, router(released), table)
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(listeners[0]))
            await stream.send_all(REQUEST)
            while not len(table):
                await trio.testing.wait_all_tasks_blocked(0.001)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
            released.set()
        data = b""
        async with stream:
            while part := await stream.receive_some():
                data += part
    assert [command.opaque for command in FrameDecoder().receive(data)] == [5]
    assert len(table) == 0


async def test_a_mistake_of_ours_costs_one_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(decoder: FrameDecoder, data: bytes) -> list[Command]:
        raise ZeroDivisionError("oops")

    table = ConnectionTable()
    listeners = await open_listeners(0, "127.0.0.1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_remoting, listeners, router(), table)
            for receive, answered in ((decode, False), (FrameDecoder.receive, True)):
                monkeypatch.setattr("protocol.frame.FrameDecoder.receive", receive)
                async with await trio.open_tcp_stream("127.0.0.1", port_of(listeners[0])) as stream:
                    await stream.send_all(REQUEST)
                    assert bool(await stream.receive_some()) is answered
            nursery.cancel_scope.cancel()


async def test_taken_port_is_named() -> None:
    (listener,) = await open_listeners(0, "127.0.0.1")
    port = port_of(listener)
    async with listener:
        with pytest.raises(OSError, match=f"port {port} is taken"):
            await open_listeners(port, "127.0.0.1")


class Idle:
    """Stands in for a connection in a table."""

    def __init__(self, last_active: float, unsent_bytes: int = 0) -> None:
        self.last_active = last_active
        self.unsent_bytes = unsent_bytes


def table_of(*connections: Idle) -> ConnectionTable:
    table = ConnectionTable(120)
    known: Any = table.connections
    known.update(connections)
    return table


def swept(table: ConnectionTable, now: float) -> list[Idle]:
    return cast(list[Idle], table.sweep(now))


def test_high_file_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, limit in ((100, 50), (1024, 512), (20_000, 19_488)):
        monkeypatch.setattr("resource.getrlimit", lambda which, files=files: (files, files))
        table = ConnectionTable()
        assert [table.has_room(number) for number in (3, limit - 1, limit, limit + 1, 4)] == [
            True,
            True,
            False,
            False,
            True,
        ]


def test_sweep_finds_the_idle() -> None:
    silent, lively = Idle(0), Idle(100)
    assert swept(table_of(silent, lively), 121) == [silent]


def test_sweep_finds_the_stalled_only_when_too_much_is_unsent() -> None:
    stalled, sending = Idle(0, 40 << 20), Idle(9, 20 << 20)
    assert swept(table_of(stalled, sending), 10) == []
    more = Idle(8, 20 << 20)
    assert swept(table_of(stalled, sending, more), 10) == [stalled]
