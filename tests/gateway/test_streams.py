"""What the kernel takes and gives at once, over real sockets."""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import memory_stream_pair

from gateway.streams import is_within_machine, receive, receive_now, send_now


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        theirs = await trio.open_tcp_stream(*listener.socket.getsockname())
        return await listener.accept(), theirs


@asynccontextmanager
async def waiting_to_receive(stream: trio.SocketStream) -> AsyncIterator[list[bytes]]:
    """Another task waits for what comes next; it is in the list afterwards."""
    received: list[bytes] = []

    async def wait_for_it() -> None:
        received.append(await receive(stream, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_it)
        await trio.testing.wait_all_tasks_blocked()
        yield received


async def test_what_is_taken_arrives() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs:
        assert send_now(ours, b"acknowledged") == 12
        assert await theirs.receive_some(100) == b"acknowledged"


async def test_a_full_connection_takes_a_part_and_then_nothing() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs:
        data = bytes(8 << 20)
        taken = send_now(ours, data)
        assert 0 < taken < len(data)
        assert send_now(ours, data) == 0
        received = 0
        while received < taken:
            received += len(await theirs.receive_some(1 << 20))
        assert received == taken
        assert send_now(ours, b"x") == 1


async def test_a_broken_connection_is_an_error() -> None:
    ours, theirs = socket_pair()
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError, match="the connection broke"):
        send_now(ours, b"x")
    await ours.aclose()
    with pytest.raises(trio.BrokenResourceError):
        send_now(ours, b"x")


async def test_other_streams_take_nothing() -> None:
    ours, _ = memory_stream_pair()
    assert send_now(ours, b"x") == 0


async def test_what_has_arrived_is_received_in_the_order_it_was_sent() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs:
        assert receive_now(ours, 100) is None
        await theirs.send_all(b"first second")
        assert receive_now(ours, 6) == b"first "
        assert await receive(ours, 100) == b"second"
        assert receive_now(ours, 100) is None


async def test_receiving_waits_for_what_is_sent_later() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs, waiting_to_receive(ours) as received:
        assert received == []
        await theirs.send_all(b"late")
    assert received == [b"late"]


async def test_what_another_task_took_is_not_received_twice() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs, waiting_to_receive(ours) as received:
        os.write(theirs.socket.fileno(), b"for one")
        assert receive_now(ours, 100) == b"for one"
        await trio.testing.wait_all_tasks_blocked()
        assert received == []
        await theirs.send_all(b"for the other")
    assert received == [b"for the other"]


async def test_others_have_a_turn_even_if_something_is_there() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs:
        await theirs.send_all(b"ab")
        for expected in (b"a", b"b"):
            with trio.testing.assert_checkpoints():
                assert await receive(ours, 1) == expected


async def test_the_end_is_empty_both_ways() -> None:
    ours, theirs = socket_pair()
    await theirs.aclose()
    async with ours:
        assert receive_now(ours, 100) == b""
        assert await receive(ours, 100) == b""


async def test_receiving_from_what_this_side_closed_is_an_error() -> None:
    ours, theirs = socket_pair()
    await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await receive(ours, 100)
    with pytest.raises(trio.BrokenResourceError):
        receive_now(ours, 100)
    await theirs.aclose()


async def test_closing_ends_the_wait() -> None:
    ours, theirs = socket_pair()
    async with theirs, trio.open_nursery() as nursery:

        async def wait_for_it() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await receive(ours, 100)

        nursery.start_soon(wait_for_it)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()


async def test_a_reset_is_an_error() -> None:
    ours, theirs = await tcp_pair()
    theirs.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
    await theirs.aclose()
    async with ours:
        with pytest.raises(trio.BrokenResourceError, match="the connection broke: Connection reset"):
            await receive(ours, 100)


async def test_other_streams_give_nothing_at_once_and_everything_later() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"x")
    assert receive_now(ours, 100) is None
    assert await receive(ours, 100) == b"x"


@pytest.mark.parametrize(
    ("host", "listening"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1")]
)
async def test_a_peer_on_this_machine_is_known(host: str, listening: str) -> None:
    try:
        (listener,) = await trio.open_tcp_listeners(0, host=listening)
    except OSError as error:
        pytest.skip(f"no {listening} here: {error}")
    async with listener:
        theirs = await trio.open_tcp_stream(host, listener.socket.getsockname()[1])
        ours = await listener.accept()
        assert is_within_machine(ours)
        assert is_within_machine(theirs)
        await theirs.aclose()
        await ours.aclose()
        assert not is_within_machine(ours)


async def test_other_streams_may_lead_anywhere() -> None:
    ours, theirs = socket_pair()
    async with ours, theirs:
        assert not is_within_machine(ours)
    assert not is_within_machine(memory_stream_pair()[0])
