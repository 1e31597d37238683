"""Outgoing calls over real sockets: names, lost connections, and peers that accept and never answer."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from gateway.client import CallFailed, open_client, split_address
from gateway.connection import Connection
from gateway.server import port_of
from protocol.codes import RequestCode
from protocol.command import MAX_FRAME_BYTES, Command, encode, response


class Peer:
    """A server on a loopback address of its own that answers everything, or nothing."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.answers = True
        self.port = 0
        self.accepted = 0
        self._nursery = nursery
        self._scope = trio.CancelScope()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._scope = trio.CancelScope()
        listeners = await trio.open_tcp_listeners(port, host=host)
        self.port = port_of(listeners[0])
        self._nursery.start_soon(self._serve, listeners)

    async def _serve(self, listeners: list[trio.SocketListener]) -> None:
        with self._scope:
            await trio.serve_listeners(self._serve_one, listeners)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        self.accepted += 1
        await Connection(stream, ("127.0.0.1", 1), self).serve()  # type: ignore[arg-type]

    def stop(self) -> None:
        self._scope.cancel()

    def batch_handler(self, code: int) -> None:
        return None

    def run(self, connection: Connection, command: Command) -> None:
        if self.answers:
            connection.post(encode(response(command, remark="here")))


@pytest.fixture
async def peer(nursery: trio.Nursery) -> AsyncIterator[Peer]:
    peer = Peer(nursery)
    await peer.start()
    yield peer
    peer.stop()


def question() -> Command:
    return Command(RequestCode.GET_BROKER_RUNTIME_INFO)


async def test_calls_share_one_connection(peer: Peer) -> None:
    async with open_client(f"127.0.0.1:{peer.port}") as client:
        for _ in range(3):
            assert (await client.call(question(), 5)).remark == "here"
    assert peer.accepted == 1


async def test_a_connection_that_broke_is_made_again(peer: Peer) -> None:
    async with open_client(f"127.0.0.1:{peer.port}") as client:
        await client.call(question(), 5)
        peer.stop()
        with trio.fail_after(5):
            await client.wait_closed()
        assert not client.connected
        with pytest.raises(CallFailed, match=str(peer.port)):
            await client.call(question(), 5)
        await peer.start(port=peer.port)
        assert (await client.call(question(), 5)).remark == "here"


async def test_a_peer_that_hangs_costs_the_time_and_the_connection(peer: Peer) -> None:
    """Its machine may be gone; only a new connection can tell."""
    async with open_client(f"127.0.0.1:{peer.port}") as client:
        peer.answers = False
        with pytest.raises(CallFailed, match=r"did not answer within 0\.05 s"):
            await client.call(question(), 0.05)
        with trio.fail_after(5):
            await client.wait_closed()
        peer.answers = True
        assert (await client.call(question(), 5)).remark == "here"
    assert peer.accepted == 2


async def test_who_is_cancelled_while_it_connects_leaves_no_connection(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody knows, to a peer that never closes it, would hold up the end of the block for ever."""
    peer.answers = False
    connect = trio.open_tcp_stream

    async def connect_and_be_cancelled(host: str, port: int) -> trio.SocketStream:
        stream = await connect(host, port)
        scope.cancel()
        return stream

    monkeypatch.setattr(trio, "open_tcp_stream", connect_and_be_cancelled)
    with trio.fail_after(5):
        async with open_client(f"127.0.0.1:{peer.port}") as client:
            with trio.CancelScope() as scope:
                await client.call(question(), 60)
            assert scope.cancelled_caught
        assert not client.connected


async def test_a_request_that_is_too_long_fails_alone(peer: Peer) -> None:
    async with open_client(f"127.0.0.1:{peer.port}") as client:
        with pytest.raises(CallFailed, match="the limit is 16777216"):
            await client.call(Command(RequestCode.REGISTER_BROKER, body=bytes(MAX_FRAME_BYTES)), 5)
        assert (await client.call(question(), 5)).remark == "here"


class Resolver(trio.abc.HostnameResolver):
    """Says where one name is."""

    def __init__(self) -> None:
        self.place = "127.0.0.1"
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, *more: Any, **others: Any) -> Any:
        assert host == b"ns.example"
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.place, port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_name_is_asked_for_at_each_connect(peer: Peer, nursery: trio.Nursery) -> None:
    """A name server that moved is found under its name."""
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    other = Peer(nursery)
    try:
        async with open_client(f"ns.example:{peer.port}") as client:
            await client.call(question(), 5)
            await other.start(host="127.0.0.2", port=peer.port)
            resolver.place = "127.0.0.2"
            peer.stop()
            with trio.fail_after(5):
                await client.wait_closed()
            await client.call(question(), 5)
    finally:
        trio.socket.set_custom_hostname_resolver(None)
        other.stop()
    assert (peer.accepted, other.accepted, resolver.asked) == (1, 1, 2)


async def test_a_name_that_is_not_known_is_a_failed_call() -> None:
    class Nowhere(Resolver):
        async def getaddrinfo(self, host: Any, port: Any, *more: Any, **others: Any) -> Any:
            raise socket.gaierror(-2, "Name or service not known")

    trio.socket.set_custom_hostname_resolver(Nowhere())
    try:
        async with open_client("ns.example:9876") as client:
            with pytest.raises(CallFailed, match=r"ns\.example"):
                await client.call(question(), 5)
    finally:
        trio.socket.set_custom_hostname_resolver(None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9876", ("127.0.0.1", 9876)),
        (" ns-1.example:65535 ", ("ns-1.example", 65535)),
        ("[::1]:9876", ("::1", 9876)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)
