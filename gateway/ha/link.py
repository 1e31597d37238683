"""One connection from a slave to its master: bytes of the log out, reports in.

While a slave keeps up, each append pushes its bytes out before it returns: a producer waits for them, and a wake-up
takes longer than a send. The sender takes over when the kernel takes no more and when the slave has to catch up. The
listener takes the slave's reports; the watcher sends heartbeats while nothing is appended, and ends a link whose peer
is silent or takes no bytes for haHousekeepingInterval. What makes this cheap under load: one read of the page cache and
one write for everything that one read of a producer's socket brought, nothing per message.

A producer's wait for a slave on this machine can become a wait for this process: the kernel likes to put the slave
behind it, on its processor, even if another one is free. So a SYNC_MASTER gives way to such a slave after each push,
and once more when it looks for a report that has not come yet.

Bounds: reads and writes are of `CHUNK_BYTES` at most, with a checkpoint after each, so that a slave that catches up
does not hold up clients; transfers are of haTransferBatchSize at most, and never cross a file.
"""

import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import trio

from gateway.ha.parts import LogStorage
from gateway.ha.progress import Replica, ReplicaProgress, ReportRefused
from gateway.streams import is_within_machine, receive, receive_now, send_now
from gateway.watermark import Waiter
from protocol.errors import FrameError
from protocol.ha import REPORT_BYTES, ReportDecoder, encode_transfer_header
from store.errors import OffsetOutOfRange
from store.options import BrokerRole, StoreOptions

CHUNK_BYTES = 256 << 10
READ_BYTES = 4096
HOT_BYTES = 64 << 20  # what was appended so recently is in the page cache
LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class SlaveLink:
    """A slave's connection; `replica` is set once its first report was found good.

    `is_back_soon` tells that it was closed for its slave to come again.
    """

    def __init__(
        self, stream: trio.abc.Stream, storage: LogStorage, progress: ReplicaProgress, options: StoreOptions
    ) -> None:
        self.replica: Replica | None = None
        self.is_back_soon = False
        self._stream = stream
        self._is_local = is_within_machine(stream)
        self._storage = storage
        self._progress = progress
        self._options = options
        self._least_batch_bytes = 0
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._decoder = ReportDecoder()
        self._behind_first = b""
        self._counts_from = 0.0
        self._heard = self._wrote = trio.current_time()
        self._sending_since = math.inf
        self._beat: trio.Event | None = None
        self._pushing: Waiter | None = None
        self._push_ended = trio.Event()
        self._unsent = b""

    @property
    def _patience(self) -> float:
        return self._options.ha_housekeeping_interval / 1000

    @property
    def silent_seconds(self) -> float:
        """How long nothing has come from the slave."""
        return trio.current_time() - self._heard

    def close(self) -> None:
        """Ends the link: the same slave has come again."""
        self._scope.cancel()

    async def first_report(self) -> int:
        """What a slave says first: an offset, or below 0 its ticket. Raises TooSlowError, BrokenResourceError."""
        data = b""
        with trio.fail_after(self._patience):
            while len(data) < REPORT_BYTES:
                data += await self._receive()
        self._behind_first = data[REPORT_BYTES:]
        return int.from_bytes(data[:REPORT_BYTES], "big", signed=True)

    async def run(self, replica: Replica) -> None:
        """Sends and listens until something ends that.

        Raises FrameError, ReportRefused, OffsetOutOfRange, OSError (the log cannot be read), TooSlowError or one of
        LOST; returns only after `close`.
        """
        if replica.broker_id is not None:  # one of our own takes larger transfers
            self._least_batch_bytes = CHUNK_BYTES
        if not replica.counted:
            self._counts_from = trio.current_time() + self._options.slave_timeout / 1000
        self._wrote = trio.current_time()
        self._take(replica, self._behind_first)

        async def until_failure(part: Callable[[], Awaitable[NoReturn]]) -> None:
            try:
                await part()
            except (FrameError, ReportRefused, OffsetOutOfRange, OSError, trio.TooSlowError, *LOST) as error:
                self._fail(error)

        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_failure, partial(self._listen, replica))
                nursery.start_soon(until_failure, partial(self._send, replica))
                nursery.start_soon(until_failure, partial(self._watch, replica))
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._scope.cancel()

    # ---- what comes in

    async def _receive(self) -> bytes:
        data = await receive(self._stream, READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("the slave closed the connection")
        return data

    async def _listen(self, replica: Replica) -> NoReturn:
        while True:
            self._take(replica, await self._receive())

    def hear(self) -> None:
        """HOT. Takes a report that has arrived now: the listener's turn may come later than a producer would like."""
        replica = self.replica
        if replica is None or replica.acked >= replica.sent or self._failure is not None:
            return
        try:
            data = receive_now(self._stream, READ_BYTES)
            if data is None and self._is_local:
                os.sched_yield()
                data = receive_now(self._stream, READ_BYTES)
            if data:
                self._take(replica, data)
        except (FrameError, ReportRefused) as error:
            self._fail(error)
        except trio.BrokenResourceError:
            pass  # the listener meets the same, and ends the link

    def _take(self, replica: Replica, data: bytes) -> None:
        now = self._heard = trio.current_time()
        report = self._decoder.receive(data)
        # A slave that was empty goes on reporting 0 until it has got something. One that lacks older files counts
        # only when nobody can wait any more for what was written before it came.
        if report and now >= self._counts_from:
            self._progress.reported(replica, report)

    # ---- what goes out

    async def _send(self, replica: Replica) -> NoReturn:
        appended = self._storage.appended
        while True:
            if appended.offset <= replica.sent:
                await self._push_until_stuck(replica)
            frames = self._unsent or self._frames(replica, await self._read(replica.sent))
            self._unsent = b""
            await self._write(frames)

    def _frames(self, replica: Replica, data: bytes) -> bytes:
        """What the log has next for the slave, as it leaves; it counts as sent from now on."""
        position = replica.sent
        replica.sent += len(data)
        return transfers(position, data, max(self._options.ha_transfer_batch_size, self._least_batch_bytes))

    async def _push_until_stuck(self, replica: Replica) -> None:
        """Lets appends push; returns when that left something to send, or failed, with the connection free."""
        self._push_ended = trio.Event()
        self._pushing = self._storage.appended.when_past(replica.sent, partial(self._push, replica))
        try:
            await self._push_ended.wait()
        finally:
            if self._pushing is not None:
                self._storage.appended.forget(self._pushing)
                self._pushing = None
        if self._beat is not None:
            await self._beat.wait()

    def _push(self, replica: Replica) -> None:
        """HOT. Called by the append that brought something new."""
        self._pushing = None
        taken, frames = 0, b""
        try:
            if self._beat is None:
                frames = self._frames(replica, self._storage.store.read_raw(replica.sent, CHUNK_BYTES))
                taken = send_now(self._stream, frames)
                if self._is_local and self._options.broker_role is BrokerRole.SYNC_MASTER:
                    os.sched_yield()
        except (trio.BrokenResourceError, OffsetOutOfRange, OSError):
            pass  # the sender meets the same, and ends the link
        self._unsent = frames[taken:]
        self._wrote = trio.current_time()
        if self._unsent or replica.sent < self._storage.appended.offset:
            self._push_ended.set()
        else:
            self._pushing = self._storage.appended.when_past(replica.sent, partial(self._push, replica))

    async def _watch(self, replica: Replica) -> NoReturn:
        """Ends the link when the peer has been silent or taken nothing for too long; sends heartbeats while idle."""
        while True:
            heartbeat = self._options.ha_send_heartbeat_interval / 1000
            beat_due = (self._wrote if self._pushing is not None else trio.current_time()) + heartbeat
            await trio.sleep_until(min(self._heard + self._patience, self._sending_since + self._patience, beat_due))
            now = trio.current_time()
            if now >= min(self._heard, self._sending_since) + self._patience:
                raise trio.TooSlowError
            if self._pushing is not None and now >= self._wrote + heartbeat:
                self._beat = trio.Event()
                await self._write(encode_transfer_header(replica.sent, 0))
                self._beat.set()
                self._beat = None

    async def _read(self, position: int) -> bytes:
        store = self._storage.store
        if store.end_offset - position <= HOT_BYTES:
            return store.read_raw(position, CHUNK_BYTES)
        return await self._storage.read_cold(partial(store.read_raw, position, CHUNK_BYTES))

    async def _write(self, data: bytes) -> None:
        self._sending_since = trio.current_time()
        await self._stream.send_all(data)
        self._sending_since = math.inf
        self._wrote = trio.current_time()


def transfers(offset: int, data: bytes, batch_bytes: int) -> bytes:
    """The log's bytes from `offset` on as transfers of at most `batch_bytes` each, one behind the other."""
    if len(data) <= batch_bytes:
        return encode_transfer_header(offset, len(data)) + data
    parts: list[bytes] = []
    for begin in range(0, len(data), batch_bytes):
        part = data[begin : begin + batch_bytes]
        parts += (encode_transfer_header(offset + begin, len(part)), part)
    return b"".join(parts)
