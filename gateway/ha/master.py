"""The master's side: what it answers to a slave that wants to join, and the listener that slaves connect to.

Two kinds of slaves come. One of our own make has joined over remoting before (`join`), where names, file sizes and
bytes were compared, and shows its ticket. An official one sends its first report, 5 s after it connected, and nothing
is known of it: it is inspected where that is possible, and its report is believed only as far as it can be true.

Bounds: `MAX_LINKS` connections, `MAX_CHECK_BYTES` that one question makes the master read, `MAX_HOSTS` remembered.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn, TypeVar

import structlog
import trio

from gateway.ha import history
from gateway.ha.history import MAX_CHECK_BYTES, Holdings, Sameness
from gateway.ha.link import LOST, SlaveLink
from gateway.ha.parts import LogStorage
from gateway.ha.progress import Replica, ReplicaProgress, ReportRefused
from gateway.ha.tickets import Join, Tickets
from gateway.routing import Refused
from protocol.codes import ResponseCode
from protocol.errors import FrameError
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)
from store.errors import OffsetOutOfRange
from store.options import BrokerRole, StoreOptions

log = structlog.get_logger(__name__)

MAX_LINKS = 64
MAX_HOSTS = 1024
SAY_AGAIN_SECONDS = 60.0
BACK_SECONDS = 2.0
DRAIN_SECONDS = 2.0
DRAIN_LOOK_SECONDS = 0.01

T = TypeVar("T")
Inspect = Callable[[str, int], Awaitable[Sameness]]


async def _cannot_inspect(host: str, end: int) -> Sameness:
    return Sameness.UNKNOWN


class LinkRefused(Exception):
    """The peer on the HA port cannot be served; the text says why."""


class Identity(NamedTuple):
    """Whose log it is: brokerClusterName and brokerName."""

    cluster: str
    broker: str


class HaMaster:
    """Serves slaves. `progress` is what sends that wait for a slave look at (Storage.replicas)."""

    def __init__(
        self, storage: LogStorage, options: StoreOptions, identity: Identity, *, inspect: Inspect | None = None
    ) -> None:
        """`inspect(host, end)` compares an official slave's log with ours, as far as that is possible."""
        self.progress = ReplicaProgress(options)
        self.progress.hear = self._hear
        self._storage = storage
        self._options = options
        self._identity = identity
        self._inspect = inspect or _cannot_inspect
        self._tickets = Tickets()
        self._links: dict[Replica, SlaveLink] = {}
        self._scopes: set[trio.CancelScope] = set()
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
        self._refuse_second(request, address)
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
        lacks_older = empty and begin > ours.start
        join = Join(request.broker_id, name, begin, lacks_older=lacks_older, address=request.address)
        return JoinReplicationReply(
            ticket=self._tickets.issue(join, trio.current_time()),
            begin_offset=begin,
            eager=self._options.broker_role is BrokerRole.SYNC_MASTER,
        )

    def _refuse_second(self, request: JoinReplication, address: str) -> None:
        """Refuses a slave whose brokerId another one has, which lives elsewhere and was heard of lately.

        They would replace each other for ever, here and at the name servers.
        """
        lately = self._options.ha_housekeeping_interval / 1000 / 2
        for replica, link in self._links.items():
            if replica.broker_id != request.broker_id or link.silent_seconds > lately:
                continue
            if request.address and replica.address and request.address != replica.address:
                reason = (
                    f"brokerId {request.broker_id} is that of the slave at {replica.address}, which is linked;"
                    f" give the one at {request.address} a brokerId of its own"
                )
                log.error("slave_refused", slave=address, broker_id=request.broker_id, reason=reason)
                raise Refused(ResponseCode.NO_PERMISSION, reason)

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

    def role_changed(self) -> None:
        """From now on sends wait for slaves, or no longer do: those that a join told so join again.

        Meanwhile they are not missing: a send waits for those that are back within BACK_SECONDS.
        """
        for replica, link in self._links.items():
            if replica.broker_id is not None:
                link.is_back_soon = True
                link.close()

    # ---- the HA port

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> NoReturn:
        """Accepts slaves until cancelled; then gives those that keep up DRAIN_SECONDS to get what was appended last."""
        async with trio.open_nursery() as links:
            try:
                await trio.serve_listeners(self.serve_one, list(listeners), handler_nursery=links)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + DRAIN_SECONDS):
                    while self._lags():  # noqa: ASYNC110 (at the end of a process, and not worth an event)
                        await trio.sleep(DRAIN_LOOK_SECONDS)
                for scope in self._scopes:
                    scope.cancel()
        raise AssertionError("only cancellation ends serve_listeners")

    def _lags(self) -> bool:
        """Whether a slave that is linked lacks something."""
        end = self._storage.store.end_offset
        return any(replica.acked < end for replica in self.progress.replicas)

    async def serve_one(self, stream: trio.SocketStream) -> None:
        """Serves one connection to its end."""
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # gone before it was looked at
            return
        host = host.removeprefix("::ffff:")
        scope = trio.CancelScope(shield=True)  # it outlives the listener by what `serve` grants
        self._scopes.add(scope)
        try:
            with scope:
                await self.serve_stream(stream, host, f"{host}:{port}")
        finally:
            self._scopes.discard(scope)

    async def serve_stream(self, stream: trio.abc.Stream, host: str, peer: str) -> None:
        """Serves the slave behind `stream`; never raises for what a peer does."""
        peer_log = log.bind(slave=peer)
        if self._link_count >= MAX_LINKS:
            peer_log.warning("slave_refused", reason=f"there are {MAX_LINKS} connections already")
            await trio.aclose_forcefully(stream)
            return
        link = SlaveLink(stream, self._storage, self.progress, self._options)
        self._link_count += 1
        try:
            first = await link.first_report()
            replica = await self._greet(first, host, peer)
            self._attach(link, replica)
            await link.run(replica)
        except LinkRefused as error:
            if self._is_news(host, str(error)):
                peer_log.error("slave_refused", reason=str(error))
        except (FrameError, ReportRefused) as error:
            peer_log.error("slave_closed", reason=str(error))
        except OffsetOutOfRange as error:
            peer_log.error("slave_closed", reason=history.behind(error.offset, error.low))
        except OSError as error:
            peer_log.error("slave_closed", reason=f"the log cannot be read: {error}")
        except trio.TooSlowError:
            peer_log.warning("slave_closed", reason="it was silent or took no bytes for haHousekeepingInterval")
        except LOST as error:
            peer_log.info("slave_gone", reason=str(error) or "connection lost")
        finally:
            self._link_count -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)
            try:
                if link.is_back_soon:
                    await trio.sleep(BACK_SECONDS)
            finally:
                if link.replica is not None:
                    self._detach(link.replica)

    def _is_news(self, host: str, reason: str) -> bool:
        """Whether to log a refusal: an official slave comes again each few seconds with other offsets."""
        kind, now = re.sub(r"\d+", "", reason), trio.current_time()
        last_kind, last_time = self._refusals.get(host, ("", 0.0))
        if kind == last_kind and now - last_time < SAY_AGAIN_SECONDS:
            return False
        _put_bounded(self._refusals, host, (kind, now))
        return True

    async def _greet(self, first: int, host: str, peer: str) -> Replica:
        """The slave that a connection's first report stands for; raises LinkRefused."""
        if first < 0:
            join = self._tickets.redeem(first, trio.current_time())
            if join is None:
                raise LinkRefused("its ticket is unknown or too old")
            counted = not join.lacks_older
            return Replica(
                join.name, host, join.begin_offset, join.broker_id, counted=counted, address=join.address
            )
        ours = self.holdings()
        if first == 0:
            begin = history.begin_for_empty(ours.start, ours.end, ours.file_size, whole=False)
            return Replica(peer, host, begin, counted=begin == ours.start)
        if first > ours.end:
            raise LinkRefused(history.ahead(first, ours.end))
        if first < ours.start:
            raise LinkRefused(history.behind(first, ours.start))
        sameness = await self._inspect(host, first)
        if sameness is Sameness.DIFFERENT:
            raise LinkRefused(history.differs(first))
        if sameness is Sameness.UNKNOWN:
            if first > self._run_start and first > self._highest_sent(host):
                raise LinkRefused(history.never_sent(first, self._run_start))
            log.warning("history_not_compared", slave=peer, reason="the slave cannot be asked")
        return Replica(peer, host, first)

    def _attach(self, link: SlaveLink, replica: Replica) -> None:
        link.replica = replica
        replaced = self.progress.attach(replica)
        if replaced is not None:
            before = self._links.pop(replaced)
            before.close()
            if not before.is_back_soon:
                log.warning("slave_replaced", slave=replica.name, before=replaced.name, broker_id=replica.broker_id)
        self._links[replica] = link
        log.info("slave_linked", slave=replica.name, offset=replica.acked, end_offset=self._storage.store.end_offset)

    def _detach(self, replica: Replica) -> None:
        self.progress.detach(replica)
        self._links.pop(replica, None)
        if replica.sent > self._sent_to_host.get(replica.host, -1):
            _put_bounded(self._sent_to_host, replica.host, replica.sent)

    def _hear(self) -> None:
        for link in self._links.values():
            link.hear()

    def _highest_sent(self, host: str) -> int:
        """Up to where slaves on that host have been sent bytes in this run."""
        present = [replica.sent for replica in self._links if replica.host == host]
        return max([self._sent_to_host.get(host, 0), *present])


def _put_bounded(table: dict[str, T], host: str, value: T) -> None:
    if host not in table and len(table) >= MAX_HOSTS:
        del table[next(iter(table))]
    table[host] = value
