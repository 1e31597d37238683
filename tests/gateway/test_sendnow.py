"""What the kernel takes at once, over real sockets."""

import pytest
import trio
from trio.testing import memory_stream_pair

from gateway.sendnow import send_now


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


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
