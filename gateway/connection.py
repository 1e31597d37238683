"""One remoting connection: a stream, a frame decoder, and what is under way on it.

The receive loop takes what one read brought, runs the requests in order and sends all their replies with one write.
What has to wait runs in the connection's nursery, so closing the connection ends it. Replies made elsewhere (a pull
that waited for a message, a flush that covers a send) are posted to the outbox, and the writer task sends them.

Bounds: the receive loop sends before it goes on once `HIGH_WATER_BYTES` wait to be sent, so a slow reader is slowed
down; a connection that still gets more than `OUTBOX_LIMIT_BYTES` from elsewhere is closed. While `WAITING_LIMIT`
requests wait, nothing more is run or read. What waiting requests, incomplete frames and unsent answers of all
connections may take together is said by `Budgets`. Idle connections are closed by the server's sweep, which looks at
`last_active`.

The same class serves both sides: a client's connection has no router and refuses requests.
"""

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import structlog
import trio

from gateway.budget import COUNTED_BYTES, Budget
from gateway.routing import BatchHandler, Router
from gateway.streams import receive, receive_now, send_now
from protocol.codes import FLAG_ONEWAY, FLAG_RESPONSE, ResponseCode
from protocol.command import Command, encode, response
from protocol.frame import FrameDecoder
from protocol.message import pack_host

log = structlog.get_logger(__name__)

READ_BYTES = 128 * 1024
READS_A_TURN = 4  # one behind the other, while they bring little, before other tasks have a turn
SEND_BYTES = 64 * 1024
HIGH_WATER_BYTES = 256 * 1024
OUTBOX_LIMIT_BYTES = 32 * 1024 * 1024
WAITING_LIMIT = 256
ALL_WAITING_LIMIT = 10_000
WAITING_SHARE = 8  # what each connection may still have waiting above ALL_WAITING_LIMIT
FRAMES_LIMIT_BYTES = 128 * 1024 * 1024
ANSWERS_LIMIT_BYTES = 128 * 1024 * 1024
OWN_OPAQUE = count(1)  # one for the process: an opaque then names a call wherever it shows up


class ConnectionClosed(OSError):
    """The connection ended before the answer came."""


class Budgets:
    """What the incomplete frames, the unsent answers and the waiting requests of a server's connections may take."""

    def __init__(self) -> None:
        self.waiting = 0
        self.frames: Budget[Connection] = Budget(FRAMES_LIMIT_BYTES)
        self.answers: Budget[Connection] = Budget(ANSWERS_LIMIT_BYTES)


class Connection:
    """One peer. `serve` runs it until either side closes."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        remote: tuple[str, int],
        router: Router[Any] | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self.remote_address = f"{remote[0]}:{remote[1]}"
        self.peer_host = pack_host(remote[0], remote[1])
        self.last_active = trio.current_time()
        self.closed = False
        self.log = log.bind(peer=self.remote_address)
        self._stream = stream
        self._router = router
        self._budgets = budgets or Budgets()
        self._decoder = FrameDecoder()
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._sending = False
        self._wake_writer = trio.Event()
        self._room_in_turn = 0  # how much may be read before other tasks have a turn
        self._receiving = False  # the receive loop sends what it posts itself
        self._drained = trio.Event()
        self._waiting = 0
        self._one_done = trio.Event()
        self._receive_scope = trio.CancelScope()
        self._grace_seconds = 0.0
        self._nursery: trio.Nursery | None = None
        self._calls: dict[int, trio.MemorySendChannel[Command]] = {}
        self._on_close: list[Callable[[Connection], None]] = []

    # ---- life

    async def serve(self) -> None:
        """Receives and answers until the peer or `close` ends the connection."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.closed:  # before it was served
                    nursery.cancel_scope.cancel()
                nursery.start_soon(self._write_loop)
                with self._receive_scope:
                    await self._receive_loop()
                with trio.move_on_after(self._grace_seconds):
                    await self._wait_below(1)
                    await self.drain()
                nursery.cancel_scope.cancel()
        finally:
            self._ended()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(self._stream)

    def close(self) -> None:
        """Ends the connection and all that waits on it; may be called from anywhere."""
        self.closed = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def finish(self, grace_seconds: float) -> None:
        """Reads no more, and closes when what waits has been answered, after `grace_seconds` at the latest."""
        self._grace_seconds = grace_seconds
        self._receive_scope.cancel()

    def on_close(self, callback: "Callable[[Connection], None]") -> None:
        """Calls `callback(connection)` once, when the connection has ended."""
        self._on_close.append(callback)

    def _ended(self) -> None:
        self.closed = True
        self._budgets.frames.hold(self, 0)
        self._budgets.answers.hold(self, 0)
        for channel in self._calls.values():
            channel.close()
        self._calls.clear()
        self._decoder = FrameDecoder()
        self._outbox.clear()
        self._outbox_bytes = 0
        for callback in self._on_close:
            callback(self)
        self._on_close.clear()

    # ---- receiving

    async def _receive_loop(self) -> None:
        decoder = self._decoder
        while True:
            await self._make_way()
            try:
                data = await self._next_read()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            self.last_active = trio.current_time()
            commands = decoder.receive(data)
            for other in self._budgets.frames.hold(self, decoder.buffered_bytes, renewed=bool(commands)):
                other.log.warning("incomplete_frame_closed", buffered_bytes=other._decoder.buffered_bytes)
                other.close()
            if commands:
                self._receiving = True
                try:
                    await self._process(commands)
                    await self.drain()
                finally:
                    self._receiving = False
            if decoder.error is not None:
                self.log.warning("frame_refused", reason=decoder.error.remark)
                return

    async def _next_read(self) -> bytes:
        """HOT. What has arrived, else what arrives next; all the reads of a turn bring READ_BYTES at most."""
        room = self._room_in_turn
        data = receive_now(self._stream, room) if room > 0 else None
        if data is None:
            room = READ_BYTES
            data = await receive(self._stream, room)
        self._room_in_turn = room - max(len(data), READ_BYTES // READS_A_TURN)
        return data

    async def _process(self, commands: list[Command]) -> None:
        """Runs one read's requests; those with a batch handler together, at the end."""
        router = self._router
        batches: dict[BatchHandler, list[Command]] = {}
        for command in commands:
            if command.flag & FLAG_RESPONSE:
                self._answered(command)
                continue
            if router is None:
                self._refuse_as_client(command)
                continue
            if self._waiting:
                await self._make_way()
            handler = router.batch_handler(command.code)
            if handler is None:
                router.run(self, command)
            elif handler in batches:
                batches[handler].append(command)
            else:
                batches[handler] = [command]
            if self._outbox_bytes > HIGH_WATER_BYTES:
                await self.drain()
        if router is not None:
            for handler, batch in batches.items():
                router.run_batch(handler, self, batch)

    def _refuse_as_client(self, command: Command) -> None:
        if not command.flag & FLAG_ONEWAY:
            remark = f" request type {command.code} not supported"
            self.post(encode(response(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark=remark)))

    def start_waiting(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Runs `function(*args)` beside the receive loop; it ends with the connection."""
        if self._nursery is None or self.closed:
            return
        self.begin_waiting()
        self._nursery.start_soon(self._run_waiting, function, args)

    async def _run_waiting(self, function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        finally:
            self.end_waiting()

    def begin_waiting(self) -> None:
        """A request waits for something that will call back; `end_waiting` must follow, whatever happens."""
        self._waiting += 1
        self._budgets.waiting += 1

    def end_waiting(self) -> None:
        self._waiting -= 1
        self._budgets.waiting -= 1
        self._one_done.set()

    async def _make_way(self) -> None:
        """Waits while too many requests wait: of this connection, or of all, when it has more than its share."""
        limit = WAITING_LIMIT if self._budgets.waiting < ALL_WAITING_LIMIT else WAITING_SHARE
        if self._waiting >= limit:
            await self._wait_below(limit)

    async def _wait_below(self, limit: int) -> None:
        """Returns when fewer than `limit` requests wait. Meanwhile the writer sends what they answer."""
        receiving, self._receiving = self._receiving, False
        self._wake_writer.set()
        while self._waiting >= limit:
            self._one_done = trio.Event()
            await self._one_done.wait()
        self._receiving = receiving

    # ---- sending

    @property
    def unsent_bytes(self) -> int:
        return self._outbox_bytes

    def post(self, *buffers: bytes) -> None:
        """Queues bytes for the peer; they leave with the next write. Never waits."""
        if self.closed:
            return
        for buffer in buffers:
            self._outbox.append(buffer)
            self._outbox_bytes += len(buffer)
        if not self._receiving:
            self._wake_writer.set()
        if self._outbox_bytes > OUTBOX_LIMIT_BYTES:
            self._close_slow_reader()
        elif self._outbox_bytes > COUNTED_BYTES:
            for other in self._budgets.answers.hold(self, self._outbox_bytes):
                other._close_slow_reader()

    def post_now(self, *buffers: bytes) -> None:
        """As `post`, for what somebody waits for: what the kernel takes at once does not wait for its turn."""
        if self.closed or self._sending or self._outbox:
            self.post(*buffers)
            return
        data = b"".join(buffers)
        try:
            data = data[send_now(self._stream, data) :]
        except trio.BrokenResourceError:
            self.close()
        self.last_active = trio.current_time()
        if data:
            self.post(data)

    def _close_slow_reader(self) -> None:
        self.log.warning("slow_reader_closed", unsent_bytes=self._outbox_bytes)
        self.close()

    async def drain(self) -> None:
        """Sends what is queued; returns when the kernel has it all. Others have a turn only if that is much."""
        while self._sending:
            await self._drained.wait()
        if not self._outbox:
            return
        self._sending = True
        self._drained = trio.Event()
        try:
            while self._outbox:
                data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
                self._outbox = []
                if len(data) <= SEND_BYTES:
                    await self._send(data, send_now(self._stream, data))
                else:
                    await self._send_in_parts(memoryview(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()
        finally:
            self._sending = False
            self._drained.set()

    async def _send(self, data: bytes | memoryview, taken: int = 0) -> None:
        if taken < len(data):
            await self._stream.send_all(data[taken:])
        self._outbox_bytes -= len(data)
        self.last_active = trio.current_time()

    async def _send_in_parts(self, data: memoryview) -> None:
        """Notes each part that the peer has taken: whoever takes something is neither idle nor stalled."""
        for begin in range(0, len(data), SEND_BYTES):
            await self._send(data[begin : begin + SEND_BYTES])
            self._budgets.answers.hold(self, self._outbox_bytes, renewed=True)

    async def _write_loop(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            await self.drain()

    # ---- calling the peer

    def notify(self, command: Command) -> None:
        """Sends a one-way request."""
        command.flag |= FLAG_ONEWAY
        command.opaque = next(OWN_OPAQUE)
        self.post(encode(command))

    async def request(self, command: Command, timeout: float) -> Command:
        """Sends a request and waits for its answer.

        Raises trio.TooSlowError after `timeout` seconds, ConnectionClosed if the connection ends before.
        """
        if self.closed:
            raise ConnectionClosed(f"connection to {self.remote_address} is closed")
        opaque = command.opaque = next(OWN_OPAQUE)
        send_channel, receive_channel = trio.open_memory_channel[Command](1)
        self._calls[opaque] = send_channel
        try:
            self.post(encode(command))
            with trio.fail_after(timeout):
                return await receive_channel.receive()
        except trio.EndOfChannel:
            raise ConnectionClosed(f"{self.remote_address} closed the connection before it answered") from None
        finally:
            self._calls.pop(opaque, None)
            receive_channel.close()

    def _answered(self, command: Command) -> None:
        """Hands an answer to its caller; one that nobody asked for, or asked twice, is dropped."""
        channel = self._calls.pop(command.opaque, None)
        if channel is None:
            self.log.debug("unexpected_answer", opaque=command.opaque, code=command.code)
            return
        channel.send_nowait(command)
