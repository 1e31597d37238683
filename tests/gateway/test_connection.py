"""The connection shell over memory streams: batches, order, waiting requests, slow readers, closing."""

import select
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair, wait_all_tasks_blocked

from gateway import connection as connection_module
from gateway.budget import Budget
from gateway.connection import Budgets, Connection, ConnectionClosed
from gateway.routing import Call, Router, Routes
from gateway.streams import receive_now, send_now
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command, encode, response
from protocol.frame import FrameDecoder
from protocol.requests.offsets import GetMaxOffset, GetMinOffset, OffsetReply

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class State:
    """What the handlers of these tests saw."""

    def __init__(self) -> None:
        self.release = trio.Event()
        self.batches: list[list[int]] = []
        self.ended = 0
        self.while_sending: Callable[[Connection], None] = lambda connection: None
        """Called inside the receive loop, before what it posts is sent."""


def routes() -> Routes:
    table = Routes()

    @table.handle
    def get_max_offset(state: State, call: Call[GetMaxOffset]) -> OffsetReply:
        return OffsetReply(offset=call.header.queue_id)

    @table.handle
    async def get_min_offset(state: State, call: Call[GetMinOffset]) -> OffsetReply:
        try:
            await state.release.wait()
        finally:
            state.ended += 1
        return OffsetReply(offset=100 + call.header.queue_id)

    @table.handle_batch(RequestCode.SEND_MESSAGE)
    def send(state: State, connection: Connection, commands: list[Command]) -> None:
        state.while_sending(connection)
        state.batches.append([command.opaque for command in commands])
        for command in commands:
            connection.post(encode(response(command)))

    return table


def ask(code: RequestCode, opaque: int) -> bytes:
    return encode(Command(code, opaque, fields={"topic": "t", "queueId": str(opaque)}))


@asynccontextmanager
async def connected(state: State, budgets: Budgets | None = None) -> AsyncIterator[tuple[Stream, Connection]]:
    """The client's stream, and the server's connection, which is closed after the block."""
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, ("10.0.0.1", 5), Router(state, [routes()]), budgets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        yield ours, connection
        connection.close()


async def answers(stream: Stream, count: int) -> list[Command]:
    decoder = FrameDecoder()
    commands: list[Command] = []
    with trio.fail_after(5):
        while len(commands) < count:
            commands += decoder.receive(bytes(await stream.receive_some(65536)))
    return commands


async def test_one_read_is_answered_with_one_write() -> None:
    async with connected(State()) as (stream, _):
        await stream.send_all(b"".join(ask(RequestCode.GET_MAX_OFFSET, n) for n in range(50)))
        data = await stream.receive_some(1 << 20)
    assert [*range(50)] == [command.opaque for command in FrameDecoder().receive(bytes(data))]


async def test_batch_handler_gets_one_read_at_once() -> None:
    state = State()
    async with connected(state) as (stream, _):
        send = [encode(Command(RequestCode.SEND_MESSAGE, n)) for n in range(3)]
        await stream.send_all(send[0] + ask(RequestCode.GET_MAX_OFFSET, 7) + send[1] + send[2])
        got = await answers(stream, 4)
    assert state.batches == [[0, 1, 2]]
    assert [command.opaque for command in got] == [7, 0, 1, 2]


async def test_waiting_request_lets_others_pass() -> None:
    state = State()
    async with connected(state) as (stream, _):
        await stream.send_all(ask(RequestCode.GET_MIN_OFFSET, 1) + ask(RequestCode.GET_MAX_OFFSET, 2))
        assert [command.opaque for command in await answers(stream, 1)] == [2]
        state.release.set()
        (late,) = await answers(stream, 1)
    assert (late.opaque, late.fields["offset"]) == (1, "101")


async def test_waiting_requests_end_with_their_connection() -> None:
    state = State()
    async with connected(state) as (stream, connection):
        await stream.send_all(ask(RequestCode.GET_MIN_OFFSET, 1))
        await wait_all_tasks_blocked()
        await stream.aclose()
        await wait_all_tasks_blocked()
        assert connection.closed
    assert state.ended == 1


async def test_reading_stops_while_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "WAITING_LIMIT", 2)
    state = State()
    async with connected(state) as (stream, _):
        await stream.send_all(ask(RequestCode.GET_MIN_OFFSET, 1) + ask(RequestCode.GET_MIN_OFFSET, 2))
        await wait_all_tasks_blocked()
        await stream.send_all(ask(RequestCode.GET_MAX_OFFSET, 3))
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some(10)
        assert scope.cancelled_caught
        state.release.set()
        assert {1, 2, 3} == {command.opaque for command in await answers(stream, 3)}


async def test_one_read_of_many_requests_lets_no_more_wait_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "WAITING_LIMIT", 3)
    state, budgets = State(), Budgets()
    async with connected(state, budgets) as (stream, _):
        await stream.send_all(b"".join(ask(RequestCode.GET_MIN_OFFSET, number) for number in range(50)))
        await wait_all_tasks_blocked()
        assert budgets.waiting == 3
        state.release.set()
        assert {*range(50)} == {command.opaque for command in await answers(stream, 50)}
    assert budgets.waiting == 0


async def test_answers_leave_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "WAITING_LIMIT", 1)
    state = State()
    async with connected(state) as (stream, _):
        await stream.send_all(
            b"".join(ask(code, 1) for code in (RequestCode.GET_MAX_OFFSET, *[RequestCode.GET_MIN_OFFSET] * 2))
        )
        assert [command.fields["offset"] for command in await answers(stream, 1)] == ["1"]
        state.release.set()
        await answers(stream, 2)


async def test_when_too_many_wait_in_all_each_connection_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "ALL_WAITING_LIMIT", 10)
    monkeypatch.setattr(connection_module, "WAITING_SHARE", 2)
    state, budgets = State(), Budgets()
    requests = b"".join(ask(RequestCode.GET_MIN_OFFSET, number) for number in range(50))
    async with connected(state, budgets) as (greedy, _), connected(state, budgets) as (modest, _):
        await greedy.send_all(requests)
        await wait_all_tasks_blocked()
        assert budgets.waiting == 10
        await modest.send_all(requests)
        await wait_all_tasks_blocked()
        assert budgets.waiting == 12
        state.release.set()
        for stream in (greedy, modest):
            await answers(stream, 50)


async def test_the_oldest_incomplete_frame_goes_when_all_are_too_much() -> None:
    budgets = Budgets()
    budgets.frames = Budget(350_000)
    part = encode(Command(RequestCode.GET_MAX_OFFSET, 1, body=bytes(125_000)))[:120_000]
    async with (
        connected(State(), budgets) as (first, slow),
        connected(State(), budgets) as (second, _),
        connected(State(), budgets) as (third, _),
    ):
        for stream in (first, second, third):
            await stream.send_all(part)
            await wait_all_tasks_blocked()
        assert slow.closed
        assert await first.receive_some() == b""
        for stream in (second, third):
            await stream.send_all(bytes(10_000))
            with trio.fail_after(5):
                assert (await answers(stream, 1))[0].opaque == 1


async def test_who_takes_nothing_goes_when_all_answers_are_too_much() -> None:
    budgets = Budgets()
    budgets.answers = Budget(500_000)
    connections = [Connection(trio.testing.lockstep_stream_pair()[1], ("10.0.0.1", 5), None, budgets) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(connection.serve)
            connection.post(bytes(200_000))
            await wait_all_tasks_blocked()
        assert [connection.closed for connection in connections] == [True, False, False]
        nursery.cancel_scope.cancel()
    assert budgets.answers.held_bytes == 0


async def test_a_slow_reader_that_takes_something_is_active(autojump_clock: Any) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(theirs, ("10.0.0.1", 5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        connection.post(bytes(300_000))
        for _ in range(3):
            await trio.sleep(100)
            unsent = connection.unsent_bytes
            for _ in range(2):
                await ours.receive_some(50_000)
            await wait_all_tasks_blocked()
            assert connection.unsent_bytes < unsent
            assert trio.current_time() - connection.last_active < 1
        nursery.cancel_scope.cancel()


async def test_broken_frame_closes_after_the_good_ones_were_answered() -> None:
    async with connected(State()) as (stream, _):
        await stream.send_all(ask(RequestCode.GET_MAX_OFFSET, 1) + b"\xff" * 20)
        assert [command.opaque for command in await answers(stream, 1)] == [1]
        assert await stream.receive_some(10) == b""


async def test_answers_nobody_asked_for_are_dropped() -> None:
    async with connected(State()) as (stream, _):
        await stream.send_all(encode(response(Command(10, 4711))) + ask(RequestCode.GET_MAX_OFFSET, 1))
        assert [command.opaque for command in await answers(stream, 1)] == [1]


async def test_reader_that_never_reads_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "OUTBOX_LIMIT_BYTES", 1000)
    _ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(theirs, ("10.0.0.1", 5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        for _ in range(11):
            connection.post(b"x" * 100)
        assert connection.closed
    assert connection.unsent_bytes == 0


async def test_finish_answers_what_waits_and_reads_no_more() -> None:
    state = State()
    async with connected(state) as (stream, connection):
        await stream.send_all(ask(RequestCode.GET_MIN_OFFSET, 1))
        await wait_all_tasks_blocked()
        connection.finish(5)
        await wait_all_tasks_blocked()
        state.release.set()
        assert [command.opaque for command in await answers(stream, 1)] == [1]
        assert await stream.receive_some(10) == b""


async def test_call_to_the_peer_and_its_answer() -> None:
    async with connected(State()) as (stream, connection):

        async def peer() -> None:
            (command,) = await answers(stream, 1)
            await stream.send_all(encode(response(command, body=b"pong")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer)
            answer = await connection.request(Command(RequestCode.GET_CONSUMER_RUNNING_INFO), timeout=5)
    assert answer.body == b"pong"


async def test_call_without_an_answer(autojump_clock: Any) -> None:
    async with connected(State()) as (stream, connection):
        with pytest.raises(trio.TooSlowError):
            await connection.request(Command(RequestCode.GET_CONSUMER_RUNNING_INFO), timeout=5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            with pytest.raises(ConnectionClosed):
                await connection.request(Command(RequestCode.GET_CONSUMER_RUNNING_INFO), timeout=5)


async def test_client_side_refuses_requests() -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(theirs, ("10.0.0.1", 5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        await ours.send_all(ask(RequestCode.GET_MAX_OFFSET, 1))
        (answer,) = await answers(ours, 1)
        assert answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
        connection.close()


async def test_on_close_is_called_once() -> None:
    closed: list[Connection] = []
    async with connected(State()) as (stream, connection):
        connection.on_close(closed.append)
        await stream.aclose()
        await wait_all_tasks_blocked()
        connection.close()
    assert [connection] == closed


@asynccontextmanager
async def over_sockets(state: State) -> AsyncIterator[tuple[trio.SocketStream, Connection]]:
    ours, theirs = trio.socket.socketpair()
    connection = Connection(trio.SocketStream(theirs), ("10.0.0.1", 5), Router(state, [routes()]))
    async with trio.SocketStream(ours) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        yield stream, connection
        connection.close()


async def test_post_now_leaves_without_a_turn_for_others() -> None:
    async with over_sockets(State()) as (stream, connection):
        await wait_all_tasks_blocked()
        connection.post_now(b"a", b"b")
        assert connection.unsent_bytes == 0
        assert stream.socket.fileno() in select.select([stream.socket.fileno()], [], [], 0)[0]
        assert await stream.receive_some(10) == b"ab"


async def test_post_now_keeps_the_order() -> None:
    async with over_sockets(State()) as (stream, connection):
        await wait_all_tasks_blocked()
        sent = b""
        for number in range(3000):
            part = bytes((number % 251,)) * 997
            sent += part
            (connection.post if number % 5 == 0 else connection.post_now)(part)
        assert connection.unsent_bytes > 0
        received = bytearray()
        with trio.fail_after(5):
            while len(received) < len(sent):
                received += await stream.receive_some(65536)
        assert received == sent


async def test_post_now_inside_the_receive_loop_does_not_wait_for_its_end() -> None:
    state = State()
    arrived: list[bytes] = []
    async with over_sockets(state) as (stream, _):

        def post_now(connection: Connection) -> None:
            connection.post_now(b"an answer to an earlier read")
            arrived.append(receive_now(stream, 1000) or b"")

        state.while_sending = post_now
        await stream.send_all(encode(Command(RequestCode.SEND_MESSAGE, 1)))
        assert (await stream.receive_some(1000)).endswith(b"}")
    assert arrived == [b"an answer to an earlier read"]


class TurnCounter(trio.abc.Instrument):
    """Counts how often the event loop comes round."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_few_reads_follow_each_other_before_others_have_a_turn() -> None:
    """However much a client sends, in however small pieces."""
    state = State()
    turns = TurnCounter()
    at_turn: list[int] = []
    request = encode(Command(RequestCode.SEND_MESSAGE, 1))
    trio.lowlevel.add_instrument(turns)
    async with over_sockets(state) as (stream, _):

        def send_another(connection: Connection) -> None:
            at_turn.append(turns.count)
            if len(at_turn) < 5 * connection_module.READS_A_TURN:
                send_now(stream, request)

        state.while_sending = send_another
        await stream.send_all(request)
        with trio.fail_after(5):
            while len(at_turn) < 5 * connection_module.READS_A_TURN:
                await trio.lowlevel.checkpoint()
    assert list(Counter(at_turn).values()) == [connection_module.READS_A_TURN] * 5


async def test_post_now_on_a_broken_connection_closes_it() -> None:
    async with over_sockets(State()) as (stream, connection):
        await wait_all_tasks_blocked()
        await stream.aclose()
        connection.post_now(b"a")
        assert connection.closed
