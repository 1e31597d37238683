"""Reading and writing a socket with as few turns of the event loop as possible.

Trio's streams give all other tasks a turn after each operation that need not wait, and try before they wait. Where one
message goes through six of them in a row (to the slave, its acknowledgement, the answer to the producer) these turns
take longer than the system calls, and the producer waits for them.

Streams that are not plain sockets (TLS, memory) work as well, in Trio's way.
"""

import os
from ipaddress import ip_address

import trio

IP_FAMILIES = (trio.socket.AF_INET, trio.socket.AF_INET6)


def send_now(stream: trio.abc.Stream, data: bytes) -> int:
    """How many bytes of `data` the kernel took: maybe none, and none for a stream that is not a plain socket.

    Raises trio.BrokenResourceError. Only while nobody is inside `send_all` of that stream; the rest is the caller's.
    """
    if not isinstance(stream, trio.SocketStream):
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise _broken(error) from error


def receive_now(stream: trio.abc.Stream, max_bytes: int) -> bytes | None:
    """What has arrived, up to `max_bytes`; b"" at the end. None if there is nothing, or it is not a plain socket.

    Raises trio.BrokenResourceError. Another task may be inside `receive`, and goes on waiting.
    """
    if not isinstance(stream, trio.SocketStream):
        return None
    try:
        return os.read(stream.socket.fileno(), max_bytes)
    except BlockingIOError:
        return None
    except OSError as error:
        raise _broken(error) from error


async def receive(stream: trio.abc.Stream, max_bytes: int) -> bytes:
    """The next bytes, up to `max_bytes`; b"" at the end. Others have exactly one turn, even if some are there.

    Raises trio.BrokenResourceError, or trio.ClosedResourceError if this side closed the stream.
    """
    if not isinstance(stream, trio.SocketStream):
        return bytes(await stream.receive_some(max_bytes))
    data = None
    while data is None:
        if stream.socket.fileno() < 0:
            raise trio.ClosedResourceError("this side has closed the connection")
        await trio.lowlevel.wait_readable(stream.socket)
        data = receive_now(stream, max_bytes)
    return data


def is_within_machine(stream: trio.abc.Stream) -> bool:
    """Whether the peer of a TCP connection is a process of this machine, as far as addresses tell."""
    if not isinstance(stream, trio.SocketStream) or stream.socket.family not in IP_FAMILIES:
        return False
    try:
        own, peer = stream.socket.getsockname()[0], stream.socket.getpeername()[0]
    except OSError:
        return False
    return bool(own == peer or ip_address(peer).is_loopback)


def _broken(error: OSError) -> trio.BrokenResourceError:
    return trio.BrokenResourceError(f"the connection broke: {error.strerror}")
