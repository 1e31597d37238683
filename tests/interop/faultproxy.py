"""A TCP proxy between the parts of a cluster that does to their connections what networks do.

Owns a thread with a Trio loop in which every link lives: an address that is listened on and the server behind it. All
methods of a Link may be called from any thread and have taken effect when they return. Faults:

    cut          every connection ends, by FIN or by RST; new ones are fine
    refuse       and new ones end as soon as they come
    freeze       connections stay and new ones are accepted, but no byte passes, in one direction or in both; nothing
                 is lost: what was held back passes after `heal`, as after a partition that TCP survives
    half_open    the server's side of every connection ends, the client's side stays and is never answered
    delay        each piece of data comes later
    split        data passes in pieces of so many bytes

`heal` ends all of them; what is left of half-open connections is closed by it.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import trio

CONNECT_SECONDS: Final = 3.0
BLOCK: Final = 64 << 10
LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
TO_SERVER, TO_CLIENT = 0, 1


class Link:
    """One listening address and the server behind it."""

    def __init__(self, proxy: "FaultProxy", listen: tuple[str, int], target: tuple[str, int]) -> None:
        self.listen = listen
        self.target = target
        self.accepted = 0
        self.passed = [0, 0]  # bytes towards the server, towards the client
        self._proxy = proxy
        self._pairs: dict[trio.SocketStream, trio.SocketStream] = {}  # client's side: server's side
        self._widowed: set[trio.SocketStream] = set()
        self._gates = [_opened(), _opened()]
        self._refuses = False
        self._delay = 0.0
        self._piece = BLOCK

    @property
    def address(self) -> str:
        """What clients are told."""
        return f"{self.listen[0]}:{self.listen[1]}"

    # ---- faults

    def cut(self, *, reset: bool = False) -> None:
        self._proxy.call(self._cut, reset)

    def refuse(self) -> None:
        def begin() -> None:
            self._refuses = True
            self._cut(True)

        self._proxy.call(begin)

    def freeze(self, *directions: int) -> None:
        """Holds back everything, or only what goes in the given direction (TO_SERVER, TO_CLIENT)."""

        def begin() -> None:
            for direction in directions or (TO_SERVER, TO_CLIENT):
                self._gates[direction] = trio.Event()

        self._proxy.call(begin)

    def half_open(self) -> None:
        def begin() -> None:
            for client, server in list(self._pairs.items()):
                self._widowed.add(client)
                _end(server, reset=True)

        self._proxy.call(begin)

    def delay(self, seconds: float) -> None:
        self._proxy.call(lambda: setattr(self, "_delay", seconds))

    def split(self, piece: int) -> None:
        self._proxy.call(lambda: setattr(self, "_piece", piece))

    def heal(self) -> None:
        def end() -> None:
            self._refuses = False
            self._delay, self._piece = 0.0, BLOCK
            for gate in self._gates:
                gate.set()
            for client in list(self._widowed):
                _end(client, reset=True)

        self._proxy.call(end)

    def _cut(self, reset: bool) -> None:
        for client, server in list(self._pairs.items()):
            _end(server, reset)
            _end(client, reset)

    # ---- connections

    async def _serve(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        if self._refuses:
            _end(client, reset=True)
            return
        try:
            with trio.fail_after(CONNECT_SECONDS):
                server = await trio.open_tcp_stream(*self.target)
        except (OSError, trio.TooSlowError):
            _end(client, reset=True)
            return
        self._pairs[client] = server
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, TO_SERVER, nursery.cancel_scope)
                nursery.start_soon(self._pump, server, client, TO_CLIENT, nursery.cancel_scope)
        finally:
            del self._pairs[client]
            self._widowed.discard(client)
            _end(server)
            _end(client)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, direction: int, pair: trio.CancelScope
    ) -> None:
        """Passes what comes until one side ends, which ends both in the same way, unless the other is to stay."""
        try:
            while data := await source.receive_some(BLOCK):
                if self._delay:
                    await trio.sleep(self._delay)
                await self._pass(bytes(data), sink, direction)
        except LOST:
            _linger(sink)
        client = source if direction == TO_SERVER else sink
        if client not in self._widowed:
            pair.cancel()
        elif direction == TO_SERVER:
            with suppress(*LOST):
                while await source.receive_some(BLOCK):
                    pass
            pair.cancel()

    async def _pass(self, data: bytes, sink: trio.SocketStream, direction: int) -> None:
        for begin in range(0, len(data), self._piece or BLOCK):
            await self._gates[direction].wait()
            await sink.send_all(data[begin : begin + self._piece])
        self.passed[direction] += len(data)


def _opened() -> trio.Event:
    gate = trio.Event()
    gate.set()
    return gate


def _linger(stream: trio.SocketStream) -> None:
    """The socket's end, when it comes, will be an RST."""
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _end(stream: trio.SocketStream, reset: bool = False) -> None:
    """Closes a socket; with `reset` its peer sees RST."""
    if reset:
        _linger(stream)
    stream.socket.close()


class FaultProxy:
    """All links of a cluster; runs from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Runs it in the proxy's loop, and returns then."""
        trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def link(self, listen: tuple[str, int], target: tuple[str, int]) -> Link:
        """Listens on one address for another; OSError if it cannot."""
        link = Link(self, listen, target)

        async def begin() -> None:
            (listener,) = await trio.open_tcp_listeners(listen[1], host=listen[0])
            self._nursery.start_soon(trio.serve_listeners, link._serve, [listener])

        trio.from_thread.run(begin, trio_token=self._token)
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self._nursery.cancel_scope.cancel)
        self._thread.join(10)
