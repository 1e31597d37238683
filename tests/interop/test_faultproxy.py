"""The fault proxy does what it says; otherwise what it proves of brokers would be nothing."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.interop.child import free_ports, wait_until
from tests.interop.faultproxy import TO_CLIENT, FaultProxy, Link


class Echo:
    """A server that answers every byte with itself and keeps count of its connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.open = 0
        self.reads: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.open += 1
                threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                self.reads.append(len(data))
                sock.sendall(data)
        self.open -= 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.listener.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[Link]:
    with FaultProxy() as proxy:
        yield proxy.link(("127.0.0.1", free_ports()), ("127.0.0.1", echo.port))


@pytest.fixture
def client(link: Link) -> Iterator[socket.socket]:
    """A connection that has been used."""
    with socket.create_connection(link.listen, 5) as sock:
        assert talk(sock, b"hello") == b"hello"
        yield sock


def talk(sock: socket.socket, data: bytes, seconds: float = 5) -> bytes:
    """What comes back within that time; raises ConnectionError if the connection ends."""
    sock.settimeout(seconds)
    sock.sendall(data)
    return listen(sock, len(data))


def listen(sock: socket.socket, count: int) -> bytes:
    answer = b""
    with contextlib.suppress(TimeoutError):
        while len(answer) < count:
            part = sock.recv(1 << 16)
            if not part:
                raise ConnectionResetError
            answer += part
    return answer


def test_passes_everything(link: Link, client: socket.socket) -> None:
    data = bytes(range(256)) * 4096
    assert talk(client, data) == data
    assert link.accepted == 1
    wait_until(lambda: link.passed == [len(data) + 5] * 2, "the count of what has just passed", 5)


@pytest.mark.parametrize("reset", [False, True])
def test_cut_ends_connections_and_takes_new_ones(link: Link, client: socket.socket, echo: Echo, reset: bool) -> None:
    link.cut(reset=reset)
    with pytest.raises(OSError):  # noqa: PT011 - the end or a reset, as it comes
        listen(client, 1)
    wait_until(lambda: echo.open == 0, "the end at the server", 5)
    with socket.create_connection(link.listen, 5) as again:
        assert talk(again, b"x") == b"x"


def test_refuse_ends_new_connections_too(link: Link, client: socket.socket) -> None:
    link.refuse()
    # The reset may be quicker than the end of connecting.
    with pytest.raises(OSError), socket.create_connection(link.listen, 5) as again:  # noqa: PT011
        talk(again, b"x")
    link.heal()
    with socket.create_connection(link.listen, 5) as again:
        assert talk(again, b"x") == b"x"


def test_freeze_holds_back_and_loses_nothing(link: Link, client: socket.socket) -> None:
    link.freeze()
    assert talk(client, b"held", 0.2) == b""
    with socket.create_connection(link.listen, 5) as new:
        assert talk(new, b"new", 0.2) == b"", "accepted, and never answered"
        link.heal()
        assert listen(new, 3) == b"new"
    client.settimeout(5)
    assert listen(client, 4) == b"held"


def test_freeze_of_one_direction(link: Link, client: socket.socket, echo: Echo) -> None:
    link.freeze(TO_CLIENT)
    assert talk(client, b"one way", 0.2) == b""
    assert echo.reads[-1] == 7


def test_half_open(link: Link, client: socket.socket, echo: Echo) -> None:
    link.half_open()
    wait_until(lambda: echo.open == 0, "the end at the server", 5)
    assert talk(client, b"is anybody there", 0.2) == b"", "it does not learn that nobody is"
    link.heal()
    with pytest.raises(OSError):  # noqa: PT011
        listen(client, 1)


def test_delay_and_split(link: Link, client: socket.socket, echo: Echo) -> None:
    link.delay(0.1)
    began = time.monotonic()
    assert talk(client, b"x") == b"x"
    assert time.monotonic() - began >= 0.2
    link.heal()
    link.split(1)
    echo.reads.clear()
    for _ in range(5):  # unsplit it would be five reads; a busy machine joins many of the pieces
        assert talk(client, b"x" * 200) == b"x" * 200
    assert len(echo.reads) > 10
