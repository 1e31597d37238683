"""The master's side: what it answers to a slave that wants to join, and the listener that slaves connect to.

Each slave's connection has two tasks. The sender sleeps until something is appended, then sends all that came meanwhile
in as few writes as possible; the reader takes the slave's reports. What makes this cheap under load: one wake-up, one
read of the page cache and one write for everything that was appended since the last one, nothing per message.

Two kinds of slaves come. One of our own make has joined over remoting before (`join`), where names, file sizes and
bytes were compared, and shows its ticket. An official one sends its first report, 5 s after it connected, and nothing
is known of it; its report is believed as far as it can be true (`_greet_official`).

Bounds: `MAX_LINKS` connections; a peer that is silent, or takes no bytes, for haHousekeepingInterval is closed; reads
and writes are of `CHUNK_BYTES` at most, with a checkpoint after each, so that catching up does not hold up clients.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn, TypeVar

import structlog
import trio

from gateway.ha import history
from gateway.ha.history import Holdings
from gateway.ha.parts import LogStorage
from gateway.ha.progress import Replica, ReplicaProgress, ReportRefused
from gateway.ha.tickets import Join, Tickets
from gateway.routing import Refused
from protocol.codes import ResponseCode
from protocol.errors import FrameError
from protocol.ha import REPORT_BYTES, ReportDecoder, encode_transfer_header
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)
from store.errors import OffsetOutOfRange
from store.options import StoreOptions

log = structlog.get_logger(__name__)

LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

MAX_LINKS = 64
CHUNK_BYTES = 256 << 10
READ_BYTES = 4096
HOT_BYTES = 64 << 20  # what was appended so recently is in the page cache
MAX_CHECK_BYTES = 64 << 20  # bounds the work that one question can cause
MAX_HOSTS = 1024
SAY_AGAIN_SECONDS = 60.0

T = TypeVar("T")


class LinkRefused(Exception):
    """The peer on the HA port cannot be served; the text says why."""


class Identity(NamedTuple):
    """Whose log it is: brokerClusterName and brokerName."""

    cluster: str
    broker: str


class HaMaster:
    """Serves slaves. `progress` is what sends that wait for a slave look at (Storage.replicas)."""

    def __init__(self, storage: LogStorage, options: StoreOptions, identity: Identity) -> None:
        # SYNC_MASTER without a slave that counts would be ASYNC_MASTER under another name, so 2 is the least.
        copies = max(2, options.in_sync_replicas)
        self.progress = ReplicaProgress(copies=copies, reach_bytes=options.ha_slave_fallbehind_max)
        self._storage = storage
        self._options = options
        self._identity = identity
        self._tickets = Tickets()
        self._links: dict[Replica, SlaveLink] = {}
        self._link_count = 0
        self._run_start = storage.store.end_offset
        self._sent_to_host: dict[str, int] = {}
        self._refusals: dict[str, tuple[str, float]] = {}

    # ---- over remoting: before a slave of our own make connects

    def holdings(self) -> Holdings:
        """Who this master is and which part of its log it has."""
        store, file_size = self._storage.store, self._options.mapped_file_size_commit_log
        return Holdings(*self._identity, file_size, store.start_offset, store.end_offset)

    async def query(self, request: QueryReplication) -> QueryReplicationReply:
        """Answers QUERY_REPLICATION; refuses ranges that the log does not hold."""
        ours = self.holdings()
        checksum = 0
        if request.length:
            checksum = await self._checksum(request.offset, request.offset + request.length)
        return QueryReplicationReply(
            cluster_name=ours.cluster,
            broker_name=ours.broker,
            file_size=ours.file_size,
            start_offset=ours.start,
            end_offset=ours.end,
            checksum=checksum,
        )

    async def join(self, request: JoinReplication, address: str) -> JoinReplicationReply:
        """Answers JOIN_REPLICATION: a ticket if the slave's log is a part of ours, else a refusal that says why not."""
        ours = self.holdings()
        theirs = Holdings(
            request.cluster_name, request.broker_name, request.file_size, request.start_offset, request.end_offset
        )
        reason = history.why_not(ours, theirs)
        empty = theirs.start == theirs.end
        if reason is None and not empty:
            if not max(ours.start, theirs.start) <= request.check_offset <= theirs.end:
                remark = f"offset {request.check_offset} to compare from is not in both logs"
                raise Refused(ResponseCode.SYSTEM_BUSY, remark)
            if await self._checksum(request.check_offset, theirs.end) != request.checksum:
                reason = history.differs(theirs.end)
        if reason is not None:
            log.error("slave_refused", slave=address, broker_id=request.broker_id, reason=reason)
            raise Refused(ResponseCode.SYSTEM_ERROR, reason)
        begin = theirs.end
        if empty:
            begin = history.begin_for_empty(ours.start, ours.end, ours.file_size, whole=request.whole_log)
        name = f"{ours.broker}-{request.broker_id}@{address}"
        join = Join(request.broker_id, name, begin, lacks_older=empty and begin > ours.start)
        return JoinReplicationReply(ticket=self._tickets.issue(join, trio.current_time()), begin_offset=begin)

    async def _checksum(self, begin: int, end: int) -> int:
        ours = self.holdings()
        if not (ours.start <= begin <= end <= ours.end and end - begin <= MAX_CHECK_BYTES):
            raise Refused(
                ResponseCode.SYSTEM_BUSY,
                f"bytes {begin} to {end} cannot be compared; the log holds {ours.start} to {ours.end}"
                f" and {MAX_CHECK_BYTES} are compared at a time",
            )
        try:
            return await self._storage.read_cold(
                partial(history.checksum, begin, end, self._storage.store.read_raw)
            )
        except OffsetOutOfRange as error:  # deleted meanwhile
            raise Refused(ResponseCode.SYSTEM_BUSY, str(error)) from None

    # ---- the HA port

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Accepts slaves until cancelled."""
        await trio.serve_listeners(self.serve_one, list(listeners), task_status=task_status)  # type: ignore[arg-type]
        raise AssertionError("only cancellation ends serve_listeners")

    async def serve_one(self, stream: trio.SocketStream) -> None:
        """Serves one connection to its end."""
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # gone before it was looked at
            return
        host = host.removeprefix("::ffff:")
        await self.serve_stream(stream, host, f"{host}:{port}")

    async def serve_stream(self, stream: trio.abc.Stream, host: str, peer: str) -> None:
        """Serves the slave behind `stream`; never raises for what a peer does."""
        peer_log = log.bind(slave=peer)
        if self._link_count >= MAX_LINKS:
            peer_log.warning("slave_refused", reason=f"there are {MAX_LINKS} connections already")
            await trio.aclose_forcefully(stream)
            return
        link = SlaveLink(self, stream, host, peer)
        self._link_count += 1
        try:
            await link.run()
        except LinkRefused as error:
            if self._is_news(host, str(error)):
                peer_log.error("slave_refused", reason=str(error))
        except (FrameError, ReportRefused) as error:
            peer_log.error("slave_closed", reason=str(error))
        except OffsetOutOfRange as error:
            peer_log.error("slave_closed", reason=history.behind(error.offset, error.low))
        except trio.TooSlowError:
            peer_log.warning("slave_closed", reason="it was silent or took no bytes for haHousekeepingInterval")
        except LOST as error:
            peer_log.info("slave_gone", reason=str(error) or "connection lost")
        finally:
            self._link_count -= 1
            if link.replica is not None:
                self.progress.detach(link.replica)
                self._links.pop(link.replica, None)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)

    def _is_news(self, host: str, reason: str) -> bool:
        """Whether to log a refusal: an official slave comes again each few seconds with other offsets."""
        kind, now = re.sub(r"\d+", "", reason), trio.current_time()
        last_kind, last_time = self._refusals.get(host, ("", 0.0))
        if kind == last_kind and now - last_time < SAY_AGAIN_SECONDS:
            return False
        _put_bounded(self._refusals, host, (kind, now))
        return True

    def _greet(self, first: int, host: str, peer: str) -> Replica:
        """The slave that a connection's first report stands for; raises LinkRefused."""
        if first >= 0:
            return self._greet_official(first, host, peer)
        join = self._tickets.redeem(first, trio.current_time())
        if join is None:
            raise LinkRefused("its ticket is unknown or too old")
        return Replica(join.name, host, join.begin_offset, join.broker_id, counted=not join.lacks_older)

    def _greet_official(self, report: int, host: str, peer: str) -> Replica:
        ours = self.holdings()
        if report == 0:
            begin = history.begin_for_empty(ours.start, ours.end, ours.file_size, whole=False)
            return Replica(peer, host, begin, counted=begin == ours.start)
        if report > ours.end:
            raise LinkRefused(history.ahead(report, ours.end))
        if report < ours.start:
            raise LinkRefused(history.behind(report, ours.start))
        if report > self._run_start and report > self._sent_to_host.get(host, 0):
            raise LinkRefused(history.never_sent(report, self._run_start))
        return Replica(peer, host, report)

    def _attach(self, link: "SlaveLink", replica: Replica) -> None:
        replaced = self.progress.attach(replica)
        if replaced is not None:
            self._links.pop(replaced).close()
        self._links[replica] = link
        log.info("slave_linked", slave=replica.name, offset=replica.acked, end_offset=self._storage.store.end_offset)

    def _note_sent(self, host: str, offset: int) -> None:
        if offset > self._sent_to_host.get(host, -1):
            _put_bounded(self._sent_to_host, host, offset)


def _put_bounded(table: dict[str, T], host: str, value: T) -> None:
    if host not in table and len(table) >= MAX_HOSTS:
        del table[next(iter(table))]
    table[host] = value


class SlaveLink:
    """One connection to a slave; `replica` once it has reported."""

    def __init__(self, master: HaMaster, stream: trio.abc.Stream, host: str, peer: str) -> None:
        self.replica: Replica | None = None
        self._master = master
        self._stream = stream
        self._host = host
        self._peer = peer
        self._scope = trio.CancelScope()
        self._counts_from = 0.0
        options = master._options
        self._patience = options.ha_housekeeping_interval / 1000
        self._heartbeat = options.ha_send_heartbeat_interval / 1000
        self._batch_bytes = options.ha_transfer_batch_size

    def close(self) -> None:
        """Ends the link: the same slave has come again."""
        self._scope.cancel()

    async def run(self) -> None:
        """Greets the slave, then sends and listens until something ends that."""
        decoder = ReportDecoder()
        first, rest = await self._first_report()
        replica = self._master._greet(first, self._host, self._peer)
        if replica.broker_id is not None:
            self._batch_bytes = max(self._batch_bytes, CHUNK_BYTES)
        self.replica = replica
        if not replica.counted:
            self._counts_from = trio.current_time() + self._master._options.slave_timeout / 1000
        self._master._attach(self, replica)
        report = decoder.receive(rest)
        if report is not None:
            self._reported(replica, report)
        with self._scope:
            await self._send_and_listen(replica, decoder)

    async def _send_and_listen(self, replica: Replica, decoder: ReportDecoder) -> None:
        failure: Exception | None = None

        async def until_failure(part: Callable[[], Awaitable[NoReturn]]) -> None:
            nonlocal failure
            try:
                await part()
            except (FrameError, ReportRefused, OffsetOutOfRange, trio.TooSlowError, *LOST) as error:
                failure = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_failure, partial(self._listen, replica, decoder))
            nursery.start_soon(until_failure, partial(self._send, replica))
        if failure is not None:
            raise failure

    async def _first_report(self) -> tuple[int, bytes]:
        """The first 8 bytes as a number, and what came behind them."""
        data = b""
        with trio.fail_after(self._patience):
            while len(data) < REPORT_BYTES:
                data += await self._receive()
        return int.from_bytes(data[:REPORT_BYTES], "big", signed=True), data[REPORT_BYTES:]

    async def _receive(self) -> bytes:
        data = await self._stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("the slave closed the connection")
        return bytes(data)

    async def _listen(self, replica: Replica, decoder: ReportDecoder) -> NoReturn:
        patience = self._patience
        with trio.fail_after(patience) as scope:
            while True:
                report = decoder.receive(await self._receive())
                scope.deadline = trio.current_time() + patience
                if report is not None:
                    self._reported(replica, report)
        raise AssertionError("fail_after raises")

    def _reported(self, replica: Replica, offset: int) -> None:
        # A slave that was empty goes on reporting 0 until it has got something. One that lacks older files counts
        # only when nobody can wait any more for what was written before it came.
        if offset and trio.current_time() >= self._counts_from:
            self._master.progress.reported(replica, offset)

    async def _send(self, replica: Replica) -> NoReturn:
        appended = self._master._storage.appended
        while True:
            position = replica.sent
            if appended.offset <= position:
                with trio.move_on_after(self._heartbeat):
                    await appended.wait_past(position)
                if appended.offset <= position:
                    await self._write(encode_transfer_header(position, 0))
                    continue
            data = await self._read(position)
            self._master.progress.sent(replica, position + len(data))
            self._master._note_sent(self._host, position + len(data))
            await self._write(transfers(position, data, self._batch_bytes))

    async def _read(self, position: int) -> bytes:
        storage = self._master._storage
        store = storage.store
        if store.end_offset - position <= HOT_BYTES:
            return store.read_raw(position, CHUNK_BYTES)
        return await storage.read_cold(partial(store.read_raw, position, CHUNK_BYTES))

    async def _write(self, data: bytes) -> None:
        with trio.fail_after(self._patience):
            await self._stream.send_all(data)


def transfers(offset: int, data: bytes, batch_bytes: int) -> bytes:
    """The log's bytes from `offset` on as transfers of at most `batch_bytes` each, one behind the other."""
    if len(data) <= batch_bytes:
        return encode_transfer_header(offset, len(data)) + data
    parts: list[bytes] = []
    for begin in range(0, len(data), batch_bytes):
        part = data[begin : begin + batch_bytes]
        parts += (encode_transfer_header(offset + begin, len(part)), part)
    return b"".join(parts)
