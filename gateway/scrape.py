"""GET /metrics over HTTP/1.1, with h11 on the server's own Trio loop.

The port may be open to a whole network, so it must not hurt the server: at most CONNECTION_LIMIT connections, a
deadline for each request and each answer, and nothing is read beyond a request's head.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio

from gateway.server import open_listeners

if TYPE_CHECKING:
    import h11

log = structlog.get_logger(__name__)

CONNECTION_LIMIT = 16
IDLE_SECONDS = 90.0
"""Until the next request of a connection begins; Prometheus comes every 15 to 60 s."""
REQUEST_SECONDS = 10.0
"""From the first byte of a request to the end of its head."""
SEND_SECONDS = 10.0
HEAD_LIMIT_BYTES = 16 << 10
TEXT = "text/plain; version=0.0.4; charset=utf-8"
INDEX = b'<!DOCTYPE html><title>PocketMQ</title><a href="/metrics">metrics</a>\n'

Exposition = Callable[[], AsyncIterator[bytes]]


async def open_metrics_listeners(port: int, host: str | None, *, is_default: bool) -> list[trio.SocketListener]:
    """Listeners on the metrics port; none for port 0.

    Several servers on one machine all have the default port. Only the first gets it; the others say so and go on
    without, because nobody asked for it. A taken port that was asked for is an OSError that names it.
    """
    if port == 0:
        return []
    try:
        return await open_listeners(port, host)
    except OSError as error:
        if not is_default:
            raise
        log.warning("no_metrics", reason=str(error), remedy="set metricsPort, 0 for none")
        return []


async def serve_metrics(listeners: list[trio.SocketListener], exposition: Exposition) -> NoReturn:
    """Serve `exposition` at /metrics until cancelled."""
    connections = 0

    async def serve_one(stream: trio.abc.Stream) -> None:
        nonlocal connections
        if connections >= CONNECTION_LIMIT:
            return  # serve_listeners closes it
        connections += 1
        try:
            await serve_connection(stream, exposition)
        finally:
            connections -= 1

    await trio.serve_listeners(serve_one, listeners)


async def serve_connection(stream: trio.abc.Stream, exposition: Exposition) -> None:
    """Answer the requests of one connection until it ends, is idle too long, or breaks a rule."""
    import h11

    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT_BYTES)
    with suppress(trio.BrokenResourceError, trio.TooSlowError):
        try:
            while await _serve_request(stream, connection, exposition):
                pass
        except h11.RemoteProtocolError as error:
            if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = f"{error}\n".encode()
                headers = [("Content-Type", TEXT), ("Connection", "close")]
                await _send(stream, connection, error.error_status_hint, headers, body, len(body))


async def _serve_request(stream: trio.abc.Stream, connection: "h11.Connection", exposition: Exposition) -> bool:
    """Answer one request; return whether the connection can take another."""
    import h11

    request = await _next_request(stream, connection)
    if request is None:
        return False
    status, headers, body = await _response(request, exposition)
    if connection.next_event() is h11.NEED_DATA:  # a body follows: it is not read, the connection ends instead
        headers.append(("Connection", "close"))
    await _send(stream, connection, status, headers, b"" if request.method == b"HEAD" else body, len(body))
    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
        return False
    connection.start_next_cycle()
    return True


async def _next_request(stream: trio.abc.Stream, connection: "h11.Connection") -> "h11.Request | None":
    import h11

    with trio.fail_after(IDLE_SECONDS) as scope:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(HEAD_LIMIT_BYTES)))
            scope.deadline = min(scope.deadline, trio.current_time() + REQUEST_SECONDS)
    return event if isinstance(event, h11.Request) else None


async def _response(request: "h11.Request", exposition: Exposition) -> tuple[int, list[tuple[str, str]], bytes]:
    path = request.target.partition(b"?")[0]
    if request.method not in (b"GET", b"HEAD"):
        return 405, [("Content-Type", TEXT), ("Allow", "GET, HEAD")], b"only GET\n"
    if path == b"/":
        return 200, [("Content-Type", "text/html; charset=utf-8")], INDEX
    if path != b"/metrics":
        return 404, [("Content-Type", TEXT)], b"not found; metrics are at /metrics\n"
    try:
        return 200, [("Content-Type", TEXT)], b"".join([part async for part in exposition()])
    except Exception:
        # A metric that cannot be read is a defect of the metric and must not stop the broker.
        log.exception("scrape_failed")
        return 500, [("Content-Type", TEXT)], b"a metric could not be read; the log says why\n"


async def _send(
    stream: trio.abc.Stream,
    connection: "h11.Connection",
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    length: int,
) -> None:
    """`length` is that of the whole answer, which a HEAD request is told without getting it."""
    import h11

    headers = [*headers, ("Content-Length", str(length))]
    head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
    parts = [
        connection.send(head),
        connection.send(h11.Data(data=body)) if body else None,
        connection.send(h11.EndOfMessage()),
    ]
    with trio.fail_after(SEND_SECONDS):
        await stream.send_all(b"".join(filter(None, parts)))
