"""Outgoing remoting calls: to name servers, and from a slave to its master.

`RemotingClient` keeps one connection to one address, opened when it is first needed and again after it broke. Names
are resolved anew at each connect, so a name server that moved is found. The one place that maps every way in which a
call can fail to one error, `CallFailed`, whose text names the address.

A connection on which an answer did not come in time is given up: the peer's machine may be gone without a word, and
then TCP would take a quarter of an hour to notice. What else waits on the connection fails with it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from gateway.connection import Connection
from gateway.routing import Router
from protocol.command import Command
from protocol.errors import LocalProtocolError

CONNECT_SECONDS = 3.0


class CallFailed(OSError):
    """No answer: the address could not be reached, the connection broke, or the time was over."""


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port", "[v6]:port" or bare "v6:port"; raises ValueError."""
    host, _, port = address.strip().rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"'{address}' is not an address of the form host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


class RemotingClient:
    """Calls to one address, over one connection that is made again when it broke."""

    def __init__(self, address: str, nursery: trio.Nursery, router: Router[Any] | None = None) -> None:
        self.address = address
        self._nursery = nursery
        self._router = router
        self._connection: Connection | None = None
        self._connecting = trio.Lock()

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    async def call(self, command: Command, timeout: float) -> Command:
        """The answer to `command`; raises CallFailed after `timeout` seconds at the latest."""
        try:
            with trio.fail_after(timeout):
                connection = await self._connected()
                return await connection.request(command, timeout)
        except trio.TooSlowError:
            self.close()
            raise CallFailed(f"{self.address} did not answer within {timeout:g} s") from None
        except (OSError, ValueError, LocalProtocolError) as error:
            raise CallFailed(f"{self.address}: {error}") from None

    async def wait_closed(self) -> None:
        """Returns when the present connection, if any, has ended."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        ended = trio.Event()
        connection.on_close(lambda _: ended.set())
        await ended.wait()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                host, port = split_address(self.address)
                with trio.fail_after(CONNECT_SECONDS):
                    stream = await trio.open_tcp_stream(host, port)
                self._connection = Connection(stream, await _peer(stream), self._router)
                # No await from here on: whoever is cancelled between has a connection that nobody closes.
                self._nursery.start_soon(_outlive_cancellation, self._connection)
            return self._connection


async def _peer(stream: trio.SocketStream) -> tuple[str, int]:
    """The IP address and the port that were reached, which a name does not tell."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        await trio.aclose_forcefully(stream)
        raise
    return host, port


async def _outlive_cancellation(connection: Connection) -> None:
    """Serves the connection until it is closed, so that whoever is cancelled can still say goodbye over it."""
    with trio.CancelScope(shield=True):
        await connection.serve()


@asynccontextmanager
async def open_client(address: str) -> AsyncIterator[RemotingClient]:
    """A client whose connection ends with the block."""
    async with trio.open_nursery() as nursery:
        client = RemotingClient(address, nursery)
        try:
            yield client
        finally:
            client.close()
