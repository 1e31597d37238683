"""Listeners and the tasks of their connections.

`serve_remoting` never returns unless cancelled. Inside it the order of stopping is nesting: listeners end first, then
the connections get `GRACE_SECONDS` to send what is queued, then they are cut.
"""

import errno
import resource
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import structlog
import trio

from gateway.connection import Budgets, Connection

log = structlog.get_logger(__name__)

BACKLOG = 1024
SWEEP_SECONDS = 1.0
GRACE_SECONDS = 3.0
STALLED_SECONDS = 5.0
RESERVED_FILES = 512
UNSENT_LIMIT_BYTES = 64 * 1024 * 1024
"""All connections together; above it those that took nothing for STALLED_SECONDS are closed."""


class ConnectionTable:
    """All connections of one process, for limits, metrics and the idle sweep."""

    def __init__(self, max_idle_seconds: float = 120.0) -> None:
        self.connections: set[Connection] = set()
        self.budgets = Budgets()
        self._max_idle_seconds = max_idle_seconds
        self._file_limit = file_limit()
        self._is_full = False

    def __len__(self) -> int:
        return len(self.connections)

    @property
    def unsent_bytes(self) -> int:
        return sum(connection.unsent_bytes for connection in self.connections)

    def has_room(self, file_number: int) -> bool:
        """Whether a connection that got this file number may be served.

        The system gives the lowest number that is free, so a high one tells that few are left, whoever has the others.
        """
        full = file_number >= self._file_limit
        if full and not self._is_full:
            log.warning("connections_refused", connections=len(self.connections), file_limit=self._file_limit)
        self._is_full = full
        return not full

    def sweep(self, now: float) -> list[Connection]:
        """Which connections to close: the idle ones and, when too much waits for slow readers, the stalled ones."""
        idle = [c for c in self.connections if now - c.last_active > self._max_idle_seconds]
        if self.unsent_bytes > UNSENT_LIMIT_BYTES:
            idle += [c for c in self.connections if c.unsent_bytes and now - c.last_active > STALLED_SECONDS]
        return idle

    async def sweep_forever(self) -> NoReturn:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            for connection in self.sweep(trio.current_time()):
                connection.log.info("idle_connection_closed", unsent_bytes=connection.unsent_bytes)
                connection.close()


async def open_listeners(port: int, host: str | None = None, backlog: int = BACKLOG) -> list[trio.SocketListener]:
    """Listeners on `port`; raises OSError that names the port."""
    try:
        return list(await trio.open_tcp_listeners(port, host=host, backlog=backlog))
    except OSError as error:
        reason = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error}"
        raise OSError(error.errno, f"port {port} {reason}") from None


async def serve_remoting(
    listeners: Sequence[trio.SocketListener],
    router: Any,
    table: ConnectionTable,
    *,
    accepted: Callable[[Connection], None] = lambda connection: None,
) -> NoReturn:
    """Accepts and serves connections until cancelled."""

    own: set[Connection] = set()

    async def serve_one(stream: trio.SocketStream) -> None:
        try:
            remote = stream.socket.getpeername()
        except OSError:  # gone before it was looked at
            return
        if not table.has_room(stream.socket.fileno()):
            return
        connection = Connection(stream, _plain(remote), router, table.budgets)
        own.add(connection)
        table.connections.add(connection)
        accepted(connection)
        try:
            with trio.CancelScope(shield=True):
                await connection.serve()
        except Exception as error:  # our own mistake with this peer must not cost the others their connections
            log.error("connection_failed", peer=connection.remote_address, exc_info=error)
        finally:
            own.discard(connection)
            table.connections.discard(connection)

    async with trio.open_nursery() as connections:
        try:
            await trio.serve_listeners(serve_one, list(listeners), handler_nursery=connections)
        finally:
            for connection in own:
                connection.finish(GRACE_SECONDS)


def _plain(remote: Any) -> tuple[str, int]:
    """(ip, port) of a socket address; an IPv4 peer of a dual-stack listener as IPv4."""
    host = remote[0].removeprefix("::ffff:") if "." in remote[0] else remote[0]
    return host, remote[1]


def port_of(listener: trio.SocketListener) -> int:
    """The port that a listener got."""
    port: int = listener.socket.getsockname()[1]
    return port


def file_limit() -> int:
    """The file number from which on connections are refused, so that the store always has some to open its files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return files - min(files // 2, RESERVED_FILES)


def raise_open_file_limit() -> int:
    """Raises the soft limit of open files to the hard one: each connection needs one. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
