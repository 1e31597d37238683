"""The one waiting primitive: an offset that only grows, and those who wait for it to pass theirs.

Flush, replication and dispatch each have one. `advance` wakes every waiter at or below the new offset, so one flush
or one slave's report releases all that it covers. `wait_past` checks and registers with no await in between: no
wake-up can be lost.
"""

import heapq
from collections.abc import Callable
from itertools import count

import trio

Waiter = tuple[int, int, Callable[[], None]]
"""The offset that it waits for, its place among those who wait for the same, and what wakes it."""


class Watermark:
    """An offset that only grows, with waiters."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.closed = False
        self.moved: Callable[[], None] = lambda: None
        """Called after each move, and when the mark is closed; for the one who has many waiting at a time."""
        self._waiters: list[Waiter] = []
        self._order = count()

    def advance(self, offset: int) -> None:
        """Moves to `offset` and wakes whom it covers; an offset behind the present one changes nothing."""
        if offset <= self.offset:
            return
        self.offset = offset
        waiters = self._waiters
        while waiters and waiters[0][0] <= offset:
            heapq.heappop(waiters)[2]()
        self.moved()

    def close(self) -> None:
        """The mark will not move again: wakes everybody, whatever they wait for."""
        self.closed = True
        waiters, self._waiters = self._waiters, []
        for _, _, wake in waiters:
            wake()
        self.moved()

    async def wait_past(self, offset: int) -> None:
        """Returns once the mark stands above `offset`; put a `trio.move_on_after` around it for a deadline."""
        await self.wait_for(offset + 1)

    async def wait_for(self, offset: int) -> bool:
        """Returns True once the mark has reached `offset`; False if it was closed before."""
        if self.offset >= offset or self.closed:
            await trio.lowlevel.checkpoint()
            return self.offset >= offset
        reached = trio.Event()
        waiter = self._add(offset, reached.set)
        try:
            await reached.wait()
        except trio.Cancelled:
            self.forget(waiter)
            raise
        return self.offset >= offset

    def when_past(self, offset: int, wake: Callable[[], None]) -> Waiter:
        """Calls `wake` once, inside the `advance` that passes `offset`, or when the mark is closed; never at once.

        It must neither raise nor take long. `forget` takes the answer.
        """
        return self._add(offset + 1, wake)

    def _add(self, offset: int, wake: Callable[[], None]) -> Waiter:
        waiter = (offset, next(self._order), wake)
        heapq.heappush(self._waiters, waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """The waiter is not woken any more; nothing happens if it was."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            heapq.heapify(self._waiters)

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._waiters)

    def __repr__(self) -> str:
        return f"<Watermark {self.offset}, {len(self._waiters)} waiting>"
