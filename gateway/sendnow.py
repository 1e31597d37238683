"""Sending what the kernel takes at once, without waiting.

`send_all` gives all other tasks a turn after each send. Where one message makes three sends in a row (to the slave, its
acknowledgement, the answer to the producer) these turns take longer than the sends, and the producer waits for them.
"""

import os

import trio


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
        raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
