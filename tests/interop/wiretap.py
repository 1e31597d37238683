"""A TCP proxy that keeps every frame it passes on.

Owns two threads a connection. `swap` replaces bytes by others of the same length on the way from the server
to the client, so that an address in an answer can be made to lead through another wiretap; what is kept is
the original.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.interop import raw
from tests.interop.child import free_ports

RESPONSE_FLAG: Final = 1
ONEWAY_FLAG: Final = 2


class Frame(NamedTuple):
    """One frame as it passed: number of its connection, whether the client sent it, its bytes."""

    connection: int
    from_client: bool
    data: bytes

    @property
    def head(self) -> tuple[int, int, int]:
        """(code, opaque, flag), whichever way the header is serialized."""
        header, _ = raw.split(self.data)
        return header["code"], header["opaque"], header["flag"]

    @property
    def is_response(self) -> bool:
        """Whether it answers something."""
        return bool(self.head[2] & RESPONSE_FLAG)


class Exchange(NamedTuple):
    """A request and its answer, if there is one yet."""

    request: Frame
    answer: Frame | None

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come: answered, or one-way."""
        return self.answer is not None or bool(self.request.head[2] & ONEWAY_FLAG)


class Wiretap:
    """Listens on a port of 127.0.0.1, a free one unless said, and passes everything on to `target` and
    back.
    """

    def __init__(
        self, target: str, swap: Mapping[bytes, bytes] | None = None, *, framed: bool = True, port: int | None = None
    ) -> None:
        self.target = target
        self.swap = dict(swap or {})
        self.framed = framed
        self.frames: list[Frame] = []
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._connections = 0
        self.port = port or free_ports()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where clients connect to be overheard."""
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self.target.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)), 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._connections += 1
                number = self._connections
                self._sockets += [client, server]
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(number, *ends), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        pending = b""
        try:
            while data := source.recv(1 << 16):
                pending += data
                while (size := self._complete(pending)) > 0:
                    frame, pending = pending[:size], pending[size:]
                    with self._lock:
                        self.frames.append(Frame(number, from_client, frame))
                    for old, new in () if from_client else self.swap.items():
                        frame = frame.replace(old, new)
                    sink.sendall(frame)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _complete(self, pending: bytes) -> int:
        """The length of the first whole unit; 0 when there is none yet."""
        if not self.framed:
            return len(pending)
        if len(pending) < 4:
            return 0
        size = 4 + int.from_bytes(pending[:4], "big")
        return size if len(pending) >= size else 0

    def exchanges(self) -> Sequence[Exchange]:
        """Every request with its answer, in the order of the requests."""
        with self._lock:
            frames = list(self.frames)
        answers = {(f.connection, not f.from_client, f.head[1]): f for f in frames if f.is_response}
        asked = [frame for frame in frames if not frame.is_response]
        return [Exchange(f, answers.get((f.connection, f.from_client, f.head[1]))) for f in asked]

    def close(self) -> None:
        """Closes the listener and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
