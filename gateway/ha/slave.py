"""The slave's side: finds its master, agrees on where to go on, and appends what the master sends.

While linked, the receiver appends what one read brought at exactly the end of the own log and reports at once how far
that is; it dispatches what it appended while nothing more arrives. With SYNC_FLUSH what is reported is on disk. A
second task reports what a flush has brought there, and sends heartbeats. A PocketMQ master whose producers do not wait
for slaves says so, and gets a report each LAZY_SECONDS only, which spares both sides half of the work.

Whatever ends a link leads back to the start: look where the master is, compare the logs, connect. The pause in between
grows from RETRY_SECONDS to RETRY_LIMIT_SECONDS; a master that refuses this slave, or one that this slave must not
follow, is asked again each REFUSED_SECONDS, and the reason is logged when it is new. Nothing is ever cut off the own
log to make it fit.
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NoReturn

import structlog
import trio

from gateway.client import RemotingClient, open_client, split_address
from gateway.ha.joining import Joiner, JoinRefused, Plan, TryLater
from gateway.ha.locator import MasterLocator, MasterPlace
from gateway.ha.parts import LogStorage
from gateway.streams import receive, receive_now, send_now
from gateway.watermark import Watermark
from protocol.errors import FrameError
from protocol.ha import Transfer, TransferDecoder, encode_report
from store.errors import StoreError, StorePoisoned
from store.options import FlushDiskType, StoreOptions

log = structlog.get_logger(__name__)

LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.2
RETRY_LIMIT_SECONDS = 1.0
FAULT_SECONDS = 5.0
REFUSED_SECONDS = 30.0
LAZY_SECONDS = 0.1
DEADLINE_STEPS = 16  # how exactly silence is measured: moving a deadline costs as much as a send
READ_BYTES = 256 << 10
STEP_RECORDS = 64  # dispatched between two looks at the socket: about 0.3 ms
LAZY_RECORDS = 512  # the same where nobody waits
BEHIND_BYTES = 1 << 20  # of dispatch, that no longer waits for a moment in which nothing arrives
STEPS_A_TURN = 8  # reads and dispatches before the other tasks of the process have a turn
FLUSH_FAILED = "a flush failed, so it is unknown what is on disk"

OpenClient = Callable[[str], AbstractAsyncContextManager[RemotingClient]]
OpenStream = Callable[[str], Awaitable[trio.abc.Stream]]


class LinkFault(Exception):
    """What the master sends does not fit; the text says what."""


async def open_stream(address: str) -> trio.abc.Stream:
    """A connection to `host:port`; raises OSError or ValueError."""
    host, port = split_address(address)
    with trio.move_on_after(CONNECT_SECONDS):
        return await trio.open_tcp_stream(host, port)
    raise OSError(f"{address} did not accept a connection within {CONNECT_SECONDS:g} s")


class HaSlave:
    """Keeps this broker's log equal to its master's."""

    def __init__(
        self,
        storage: LogStorage,
        options: StoreOptions,
        locator: MasterLocator,
        *,
        cluster: str,
        broker: str,
        broker_id: int,
        address: str = "",
        open_client: OpenClient = open_client,
        open_stream: OpenStream = open_stream,
    ) -> None:
        """`address` is where the clients of this broker find it."""
        self.locator = locator
        self._storage = storage
        self._options = options
        self._open_client = open_client
        self._open_stream = open_stream
        self._identity = {"cluster": cluster, "broker": broker, "broker_id": broker_id, "address": address}
        self._sync_flush = options.flush_disk_type is FlushDiskType.SYNC_FLUSH
        self._last_said = ""
        self._steps = 0

    @property
    def _patience(self) -> float:
        return self._options.ha_housekeeping_interval / 1000

    async def run(self) -> NoReturn:
        """Follows the master, whoever and wherever it is, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.locator.search_forever)
            pause = RETRY_SECONDS
            while True:
                place = await self.locator.known()
                begun = trio.current_time()
                pause = max(await self._attempt(place), min(pause * 2, RETRY_LIMIT_SECONDS))
                while self._storage.dispatch(LAZY_RECORDS):
                    await trio.lowlevel.checkpoint()
                if trio.current_time() - begun > self._patience:
                    pause = RETRY_SECONDS
                with trio.move_on_after(pause):
                    await self.locator.moved_from(place)
        raise AssertionError("only cancellation ends the loop")

    async def _attempt(self, place: MasterPlace) -> float:
        """One link from beginning to end; returns how many seconds to wait at least before the next."""
        try:
            plan = await self._join(place)
            stream = await self._open_stream(place.ha_address)
            try:
                await self._follow(stream, plan, place)
            finally:
                self.locator.linked = False
                await trio.aclose_forcefully(stream)
        except JoinRefused as error:
            self.locator.refused = True
            self._say("error", "replication_refused", place, error)
            return REFUSED_SECONDS
        except (LinkFault, FrameError) as error:
            self._say("error", "replication_fault", place, error)
            return FAULT_SECONDS
        except StorePoisoned as error:
            self._say("error", "replication_ended", place, error)
            await trio.sleep_forever()
        except StoreError as error:
            self._say("error", "replica_not_stored", place, error)
            return FAULT_SECONDS
        except trio.TooSlowError:
            self._say("warning", "master_silent", place, f"nothing for {self._patience:g} s")
        except (TryLater, OSError, ValueError, *LOST) as error:
            self._say("warning", "master_lost", place, error)
        return RETRY_SECONDS

    def _say(self, level: str, event: str, place: MasterPlace, reason: object) -> None:
        """Logs it unless it is what was said last; numbers do not make it new."""
        kind = re.sub(r"\d+", "", f"{event} {place} {reason}")
        if kind != self._last_said:
            self._last_said = kind
            bound = log.bind(ha_address=place.ha_address, end_offset=self._storage.store.end_offset)
            getattr(bound, level)(event, master=place.address, reason=str(reason))

    # ---- joining

    async def _join(self, place: MasterPlace) -> Plan:
        if self._sync_flush and not await self._storage.flushed.wait_for(self._storage.store.end_offset):
            raise StorePoisoned(FLUSH_FAILED)
        async with self._open_client(place.address) as client:
            joiner = Joiner(
                client,
                self._storage,
                file_size=self._options.mapped_file_size_commit_log,
                whole_log=self._options.ha_sync_whole_log,
                **self._identity,  # type: ignore[arg-type]
            )
            try:
                return await joiner.join()
            except (JoinRefused, TryLater, StoreError) as error:
                failure = error  # raised inside, it would come out of the client's nursery as a group
        raise failure

    # ---- the link

    async def _follow(self, stream: trio.abc.Stream, plan: Plan, place: MasterPlace) -> None:
        """Runs the link until it ends, which is always an error."""
        with trio.fail_after(self._patience):
            await stream.send_all(encode_report(plan.first_report))
        reporter = Reporter(stream, self._patience, plan.begin_offset or 0)
        failure: Exception | None = None

        async def until_failure(part: Callable[[], Awaitable[NoReturn]]) -> None:
            nonlocal failure
            try:
                await part()
            except (LinkFault, FrameError, StoreError, trio.TooSlowError, *LOST) as error:
                failure = error
                nursery.cancel_scope.cancel()

        self.locator.linked = True
        self.locator.refused = False
        self._last_said = ""
        log.info(
            "linked_to_master",
            master=place.address,
            ha_address=place.ha_address,
            offset=self._storage.store.end_offset,
            master_is_pocketmq=plan.own_make,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_failure, partial(self._receive, stream, plan, reporter))
            nursery.start_soon(until_failure, partial(self._report, reporter, plan))
        if failure is not None:
            raise failure

    async def _receive(self, stream: trio.abc.Stream, plan: Plan, reporter: "Reporter") -> NoReturn:
        decoder = TransferDecoder()
        report_at_once = plan.eager and not self._sync_flush
        with trio.fail_after(self._patience) as scope:
            while True:
                data = await self._next_read(stream, STEP_RECORDS if report_at_once else LAZY_RECORDS)
                if not data:
                    raise trio.BrokenResourceError("the master closed the connection")
                patience = self._patience
                deadline = trio.current_time() + patience
                if deadline - scope.deadline > patience / DEADLINE_STEPS:
                    scope.deadline = deadline
                transfers = decoder.receive(data)
                if transfers and self._append(transfers, plan) and report_at_once:
                    await reporter.report(self._storage.store.end_offset)
        raise AssertionError("fail_after raises")

    async def _next_read(self, stream: trio.abc.Stream, step_records: int) -> bytes:
        """HOT. What has arrived, else what arrives next; dispatches what was appended meanwhile, some at a time.

        Both in one task: a wake-up of another takes longer than its part of the work. A producer may wait for what
        arrives, nobody for the dispatch.
        """
        storage = self._storage
        while True:
            self._steps += 1
            if self._steps >= STEPS_A_TURN:
                self._steps = 0
                await trio.lowlevel.checkpoint()
            if storage.undispatched_bytes > BEHIND_BYTES:
                storage.dispatch(LAZY_RECORDS)
            data = receive_now(stream, READ_BYTES)
            if data is not None:
                return data
            if not storage.dispatch(step_records):
                self._steps = 0
                return await receive(stream, READ_BYTES)

    def _append(self, transfers: list[Transfer], plan: Plan) -> bool:
        """Appends what one read brought, as one piece; raises LinkFault before anything is written.

        Returns whether there was anything.
        """
        begin = expected = self._expected(transfers[0], plan)
        for transfer in transfers:
            if transfer.offset != expected:
                raise LinkFault(f"the master sends offset {transfer.offset}, this log ends at {expected}")
            expected += len(transfer.data)
        if expected == begin:
            return False
        data = transfers[0].data if len(transfers) == 1 else b"".join([transfer.data for transfer in transfers])
        self._storage.append_raw(begin, data)
        return True

    def _expected(self, transfer: Transfer, plan: Plan) -> int:
        store = self._storage.store
        if store.start_offset != store.end_offset:
            return store.end_offset
        if plan.begin_offset is not None:
            return plan.begin_offset
        if transfer.offset % self._options.mapped_file_size_commit_log:
            raise LinkFault(f"the master begins with offset {transfer.offset}, which is no file's begin")
        return transfer.offset

    async def _report(self, reporter: "Reporter", plan: Plan) -> NoReturn:
        """Heartbeats, and what the receiver does not report: what has come to disk, or what nobody waits for."""
        mark = Watermark()
        if self._sync_flush:
            mark = self._storage.flushed
        elif not plan.eager:
            mark = self._storage.appended
        while True:
            with trio.move_on_after(self._options.ha_send_heartbeat_interval / 1000):
                await mark.wait_past(reporter.offset)
            if mark.closed:
                raise StorePoisoned(FLUSH_FAILED)
            if not plan.eager:
                await trio.sleep(LAZY_SECONDS)
            await reporter.report(mark.offset)


class Reporter:
    """Tells a master how far its slave is; the newest offset counts, whoever brings it."""

    def __init__(self, stream: trio.abc.Stream, patience: float, offset: int) -> None:
        self.offset = offset
        self._stream = stream
        self._patience = patience
        self._sending = False

    async def report(self, offset: int) -> None:
        """Sends `offset`, or what was reported before if that is more; returns once it left.

        Producers may wait for it, so other tasks have a turn only if the kernel does not take it at once.
        """
        self.offset = max(self.offset, offset)
        if self._sending:  # that task sends this one too
            return
        self._sending = True
        try:
            sent = -1
            while sent != self.offset:
                sent = self.offset
                data = encode_report(sent)
                if rest := data[send_now(self._stream, data) :]:
                    with trio.fail_after(self._patience):
                        await self._stream.send_all(rest)
        finally:
            self._sending = False
