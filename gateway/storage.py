"""The store on the event loop: when what it wrote is safe, who waits for that, and the only threads of the process.

Appending goes to the page cache and stays in line. What may block (fsync, reading what is not in memory, reserving
and deleting files) runs in a thread, once for a whole batch: a lane for flushes, so that two never overlap, one for
upkeep, and a few for cold reads.

A flush of SYNC_FLUSH is the exception while the disk is quick (INLINE_FLUSH_SECONDS): then the way to a thread and back
costs more than the flush. One flush that takes longer sends those after it to the thread again.

Group commit: a flush takes its target when it begins, so it covers everything that was appended by then, whichever
connection it came from. A reply that promises a flush or a slave waits with `when_confirmed`, which calls back: a task
for each would cost more than the flush.
"""

from collections.abc import Callable
from time import perf_counter
from typing import NoReturn, Protocol, TypeVar

import structlog
import trio

from gateway.watermark import Watermark
from protocol.codes import ResponseCode
from protocol.message import NewMessage
from store.engine import Arrivals, MessageStore
from store.errors import StoreError
from store.options import BrokerRole, FlushDiskType, StoreOptions

log = structlog.get_logger(__name__)

DISPATCH_LIMIT = 512
MAINTAIN_SECONDS = 1.0
COLD_READERS = 4
EXPIRE_SECONDS = 0.1
LOST_SLAVE_MS = 1000.0  # a slave that went away may be back by then; clients wait for three seconds
INLINE_FLUSH_SECONDS = 0.002
SLOW_FLUSH_SECONDS = 0.01  # what is expected of a disk until it has shown that it is quicker
FLUSH_WEIGHT = 0.2  # of the latest flush in what the next one is expected to take

T = TypeVar("T")


class Replicas(Protocol):
    """What a master knows of its slaves (gateway.ha)."""

    acknowledged: Watermark
    hear: Callable[[], None]
    """Takes the slaves' reports that have arrived, without waiting for any."""

    @property
    def are_enough(self) -> bool:
        """Whether enough slaves are connected."""

    def in_reach(self, offset: int) -> bool:
        """Whether enough slaves are connected and near enough to acknowledge `offset` in time."""


class _Promise:
    """Somebody waits until what stands below `end` is safe; `code` is what they will be told."""

    __slots__ = ("code", "end", "given", "told", "waits_for_slave")

    def __init__(self, end: int, given: float, told: Callable[[ResponseCode], None]) -> None:
        self.end = end
        self.given = given
        self.told = told
        self.waits_for_slave = False
        self.code = ResponseCode.SUCCESS


class Storage:
    """The store's flush, dispatch and maintenance, and the promises that hang on them."""

    def __init__(
        self,
        store: MessageStore,
        options: StoreOptions,
        *,
        arrived: Callable[[Arrivals], None] = lambda arrivals: None,
    ) -> None:
        self.store = store
        self.appended = Watermark(store.end_offset)
        store.log_grew = self.appended.advance
        self.flushed = Watermark(store.flushed_offset)
        self.flushed.moved = self._settle_promises
        self._replicas: Replicas | None = None
        self._promises: list[_Promise] = []
        self._options = options
        self._arrived = arrived
        self._sync_flush = options.flush_disk_type is FlushDiskType.SYNC_FLUSH
        self._expected_flush_seconds = SLOW_FLUSH_SECONDS
        self._flush_lane = trio.CapacityLimiter(1)
        self._upkeep_lane = trio.CapacityLimiter(1)
        self._cold_lane = trio.CapacityLimiter(COLD_READERS)

    @property
    def promises_more_than_append(self) -> bool:
        """Whether a send waits for a flush or a slave."""
        return self._sync_flush or self.waits_for_slaves

    @property
    def waits_for_slaves(self) -> bool:
        """Whether a send waits for a slave; a change of brokerRole counts for the next one."""
        return self._options.broker_role is BrokerRole.SYNC_MASTER

    @property
    def consumers_see_appends(self) -> bool:
        """Whether an appended message is visible at once; under SYNC_FLUSH only what is flushed is."""
        return not self._sync_flush

    def also_tell(self, arrived: Callable[[Arrivals], None]) -> None:
        """Calls `arrived`, too, with what consumers can see from then on."""
        first = self._arrived

        def both(arrivals: Arrivals) -> None:
            first(arrivals)
            arrived(arrivals)

        self._arrived = both

    # ---- writing

    def append(self, messages: list[NewMessage], *, atomic: bool = False, dispatch: bool = True) -> int:
        """Appends the messages; returns the offset below which they stand. Raises StoreError; then nothing is kept.

        Without `dispatch` consumers see them after `dispatch_appended`, which has to follow in the same turn.
        """
        end = self.store.append(messages, atomic=atomic, dispatch=dispatch)
        self.hear_slaves()
        return end

    def dispatch_appended(self) -> None:
        """Makes visible what was appended without `dispatch`; under SYNC_FLUSH each flush does it."""
        if self.undispatched_bytes:
            self.store.dispatch_step(DISPATCH_LIMIT)

    def append_raw(self, offset: int, data: bytes) -> int:
        """Appends a master's bytes at `offset`; `dispatch` makes visible what is complete."""
        return self.store.append_raw(offset, data)

    @property
    def undispatched_bytes(self) -> int:
        """How much `dispatch` has still to do, 0 under SYNC_FLUSH, where each flush does it."""
        return 0 if self._sync_flush else self.store.end_offset - self.store.dispatched_offset

    def dispatch(self, limit: int) -> bool:
        """On a slave: makes up to `limit` messages visible; returns whether there were any."""
        return self.undispatched_bytes > 0 and self._dispatch(limit)

    def _dispatch(self, limit: int) -> bool:
        arrivals = self.store.dispatch_step(limit)
        if arrivals:
            self._arrived(arrivals)
        return bool(arrivals)

    def when_confirmed(self, end: int, told: Callable[[ResponseCode], None]) -> None:
        """Calls `told` once what stands below `end` is flushed and replicated, as far as the options promise it.

        The message is stored in any case; the code says which promise could not be kept in time.
        """
        promise = _Promise(end, trio.current_time(), told)
        if self.waits_for_slaves and self._replicas is not None:
            if self._replicas.in_reach(end):
                promise.waits_for_slave = True
            else:
                promise.code = ResponseCode.SLAVE_NOT_AVAILABLE
        if not self._settle(promise, promise.given):
            self._promises.append(promise)
            self.hear_slaves()

    def hear_slaves(self) -> None:
        """Settles what slaves have acknowledged by now, for those who are about to keep the event loop busy."""
        if self._promises and self._replicas is not None and self.waits_for_slaves:
            self._replicas.hear()

    async def confirm(self, end: int) -> ResponseCode:
        """The same for one task, which waits."""
        settled = trio.Event()
        codes: list[ResponseCode] = []

        def told(code: ResponseCode) -> None:
            codes.append(code)
            settled.set()

        self.when_confirmed(end, told)
        patience = max(self._options.slave_timeout, self._options.sync_flush_timeout) / 1000
        while not codes:
            with trio.move_on_after(patience):
                await settled.wait()
            self._settle_promises()
        await trio.lowlevel.checkpoint()
        return codes[0]

    @property
    def replicas(self) -> Replicas | None:
        return self._replicas

    @replicas.setter
    def replicas(self, replicas: Replicas) -> None:
        self._replicas = replicas
        replicas.acknowledged.moved = self._settle_promises

    def _settle_promises(self) -> None:
        """Tells those whose promise holds, or whose time is over. One flush, or one acknowledgement, covers many."""
        if self._promises:
            now = trio.current_time()
            promises, self._promises = self._promises, []
            self._promises = [promise for promise in promises if not self._settle(promise, now)] + self._promises

    def _settle(self, promise: "_Promise", now: float) -> bool:
        waited = (now - promise.given) * 1000
        if promise.waits_for_slave and self._replicas is not None:
            if self._replicas.acknowledged.offset >= promise.end:
                promise.waits_for_slave = False
            elif waited >= self._options.slave_timeout or self._replicas.acknowledged.closed:
                promise.waits_for_slave = False
                promise.code = ResponseCode.FLUSH_SLAVE_TIMEOUT
            elif waited >= LOST_SLAVE_MS and not self._replicas.are_enough:
                promise.waits_for_slave = False
                promise.code = ResponseCode.SLAVE_NOT_AVAILABLE
        if self._sync_flush and self.flushed.offset < promise.end:
            if waited < self._options.sync_flush_timeout and not self.flushed.closed:
                return False
            promise.code = promise.code or ResponseCode.FLUSH_DISK_TIMEOUT
        if promise.waits_for_slave:
            return False
        promise.told(promise.code)
        return True

    async def expire_forever(self) -> NoReturn:
        """Tells those whose time is over although nothing moves."""
        while True:
            await trio.sleep(EXPIRE_SECONDS)
            self._settle_promises()

    # ---- reading

    async def read_cold(self, read: Callable[[], T]) -> T:
        """Runs a read that has to wait for the disk."""
        return await trio.to_thread.run_sync(read, limiter=self._cold_lane)

    async def write_file(self, write: Callable[[], None]) -> OSError | None:
        """Runs the writing of a whole small file; returns why it failed, if it did."""
        try:
            await trio.to_thread.run_sync(write, limiter=self._cold_lane)
        except OSError as error:
            return error
        return None

    # ---- services

    async def flush_forever(self) -> NoReturn:
        """Flushes: at once under SYNC_FLUSH, else by the interval and the least pages of the options."""
        options = self._options
        last_flush = trio.current_time()
        while True:
            if self._sync_flush:
                await self.appended.wait_past(self.flushed.offset)
            else:
                least_bytes = options.flush_commit_log_least_pages * 4096
                with trio.move_on_after(options.flush_interval_commit_log / 1000):
                    if options.flush_commit_log_timed:
                        await trio.sleep_forever()
                    await self.appended.wait_past(self.flushed.offset + least_bytes)
                dirty = self.store.end_offset - self.store.flushed_offset
                overdue = trio.current_time() - last_flush >= options.flush_commit_log_thorough_interval / 1000
                if dirty < (1 if overdue else least_bytes):
                    continue
            await self.flush()
            last_flush = trio.current_time()

    async def flush(self) -> None:
        """Makes what has been appended safe. After a failure the store takes no more writes."""
        job = self.store.flush_begin()
        try:
            if self._sync_flush and self._expected_flush_seconds <= INLINE_FLUSH_SECONDS:
                seconds = _timed(job.run)
            else:
                seconds = await trio.to_thread.run_sync(_timed, job.run, limiter=self._flush_lane)
        except (OSError, StoreError) as error:
            self.store.poison(f"flush failed: {error}")
            log.error("flush_failed", error=str(error))
            self.flushed.close()
            await trio.sleep_forever()
        self._expected_flush_seconds += (seconds - self._expected_flush_seconds) * FLUSH_WEIGHT
        self.store.flush_done(job)
        self.flushed.advance(self.store.flushed_offset)
        if self._sync_flush:
            while self._dispatch(DISPATCH_LIMIT):
                pass

    async def maintain_forever(self) -> NoReturn:
        """Writes derived files, reserves space ahead, and removes what retention lets go."""
        is_more_due = False
        while True:
            if not is_more_due:
                await trio.sleep(MAINTAIN_SECONDS)
            job = self.store.maintain_begin()
            if job is None:
                is_more_due = False
                continue
            try:
                await trio.to_thread.run_sync(job.run, limiter=self._upkeep_lane)
            except OSError as error:
                log.warning("maintenance_failed", error=str(error))
            is_more_due = self.store.maintain_done(job)


def _timed(run: Callable[[], None]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started
