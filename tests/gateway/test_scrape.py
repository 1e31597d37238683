"""The HTTP side of /metrics: right answers, and bounds on what a client can hold."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from gateway import scrape
from gateway.metrics import Metrics
from gateway.scrape import (
    IDLE_SECONDS,
    REQUEST_SECONDS,
    SEND_SECONDS,
    open_metrics_listeners,
    serve_connection,
    serve_metrics,
)
from gateway.server import open_listeners, port_of


async def exposition() -> AsyncIterator[bytes]:
    yield b"a 1\n"
    yield b"b 2\n"


async def broken_exposition() -> AsyncIterator[bytes]:
    yield b"a 1\n"
    raise RuntimeError("a metric that cannot be read")


async def talk(request: bytes, metrics: scrape.Exposition = exposition) -> bytes:
    """All that the server answers before it closes or waits for more."""
    client, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_and_close, server, metrics)
        await client.send_all(request)
        await client.send_eof()
        answer = b"".join([bytes(data) async for data in client])
    return answer


async def serve_and_close(stream: trio.abc.Stream, metrics: scrape.Exposition) -> None:
    async with stream:
        await serve_connection(stream, metrics)


class TestAnswers:
    async def test_metrics(self) -> None:
        head, _, body = (await talk(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert b"Content-Length: 8" in head
        assert body == b"a 1\nb 2\n"

    async def test_a_query_does_not_matter(self) -> None:
        assert b" 200 " in await talk(b"GET /metrics?name[]=a HTTP/1.1\r\nHost: h\r\n\r\n")

    async def test_http_1_0(self) -> None:
        assert (await talk(b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"a 1\nb 2\n")

    async def test_head_has_a_length_and_no_body(self) -> None:
        answer = await talk(b"HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"Content-Length: 8" in answer
        assert answer.endswith(b"\r\n\r\n")

    async def test_the_root_points_to_the_metrics(self) -> None:
        assert b'href="/metrics"' in await talk(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")

    async def test_several_requests_on_one_connection(self) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
        assert (await talk(request * 3)).count(b"a 1\nb 2\n") == 3

    @pytest.mark.parametrize("split", range(1, 36, 7))
    async def test_a_request_in_pieces(self, split: int) -> None:
        request = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
        client, server = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_and_close, server, exposition)
            await client.send_all(request[:split])
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(request[split:])
            assert b" 200 " in await client.receive_some()
            await client.aclose()


class TestBadRequests:
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n", 404),
            (b"GET /metrics/ HTTP/1.1\r\nHost: h\r\n\r\n", 404),
            (b"DELETE /metrics HTTP/1.1\r\nHost: h\r\n\r\n", 405),
            (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
            (b"GET /metrics\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 20_000, 431),
        ],
    )
    async def test_status(self, request_: bytes, status: int) -> None:
        assert (await talk(request_)).startswith(b"HTTP/1.1 %d " % status)

    async def test_a_body_is_not_read(self) -> None:
        answer = await talk(b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"Connection: close" in answer

    async def test_nothing_at_all(self) -> None:
        assert await talk(b"") == b""

    async def test_a_metric_that_fails_is_a_500_and_no_more(self) -> None:
        answer = await talk(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 2, broken_exposition)
        assert answer.count(b"HTTP/1.1 500 ") == 2


class TestBounds:
    async def ends_after(self, act: Callable[[trio.abc.Stream], Awaitable[None]]) -> float:
        """Seconds until the server gives up a client that acts like this."""
        client, server = trio.testing.memory_stream_pair()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act, client)
            await serve_and_close(server, exposition)
            nursery.cancel_scope.cancel()
        return trio.current_time() - started

    async def test_a_silent_connection_is_closed(self, autojump_clock: trio.testing.MockClock) -> None:
        async def silent(client: trio.abc.Stream) -> None:
            await trio.sleep_forever()

        assert await self.ends_after(silent) == pytest.approx(IDLE_SECONDS)

    async def test_a_sender_of_single_bytes_is_closed(self, autojump_clock: trio.testing.MockClock) -> None:
        async def slow(client: trio.abc.Stream) -> None:
            for byte in b"GET /metrics HTTP/1.1\r\nHost: " + b"h" * 1000:
                await client.send_all(bytes([byte]))
                await trio.sleep(0.7)  # never just when the time is over

        assert await self.ends_after(slow) == pytest.approx(REQUEST_SECONDS)

    async def test_a_reader_that_never_reads_is_closed(self, autojump_clock: trio.testing.MockClock) -> None:
        client, server = trio.testing.lockstep_stream_pair()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_and_close, server, exposition)
            await client.send_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        assert trio.current_time() - started == pytest.approx(SEND_SECONDS)


async def serve_on_port(
    port: int, host: str, *, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED
) -> None:
    """As both servers do it: listeners first, then the answers."""
    listeners = await open_listeners(port, host)
    task_status.started(listeners)
    await serve_metrics(listeners, Metrics().exposition)


class TestListener:
    """Over real sockets."""

    async def test_metrics_of_a_server(self) -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(serve_on_port, 0, "127.0.0.1")
                port = listener.socket.getsockname()[1]
                async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                    await client.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
                    answer = b"".join([bytes(data) async for data in client])
                nursery.cancel_scope.cancel()
        assert b"process_open_fds" in answer

    async def test_a_taken_port_is_named(self) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(serve_on_port, 0, "127.0.0.1")
            port = listener.socket.getsockname()[1]
            with pytest.raises(OSError, match=f"port {port} is taken"):
                await serve_on_port(port, "127.0.0.1")
            nursery.cancel_scope.cancel()

    async def test_connections_beyond_the_limit_are_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scrape, "CONNECTION_LIMIT", 2)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(serve_on_port, 0, "127.0.0.1")
                port = listener.socket.getsockname()[1]
                clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
                assert await clients[2].receive_some() == b""
                await clients[0].aclose()
                await clients[1].send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                assert b" 200 " in await clients[1].receive_some()
                for client in clients:
                    await client.aclose()
                nursery.cancel_scope.cancel()


async def test_default_port_that_another_server_has_is_done_without() -> None:
    (taken,) = await open_listeners(0, "127.0.0.1")
    async with taken:
        port = port_of(taken)
        assert await open_metrics_listeners(port, "127.0.0.1", is_default=True) == []
        with pytest.raises(OSError, match=f"port {port} is taken"):
            await open_metrics_listeners(port, "127.0.0.1", is_default=False)
    assert await open_metrics_listeners(0, "127.0.0.1", is_default=False) == []
