"""Long polling: pulls that found nothing wait here for the next message of their queue.

A parked pull is answered when a message arrives that its filter lets through, or when its time is over, whichever is
first; then the pull runs again, this time without waiting. Arrivals are looked up by queue, so a message costs
nothing when nobody waits for its queue. When a connection ends its pulls are dropped.

Bounds: `MAX_PARKED` pulls in all, fewer for one connection and for one queue on it; one more is answered at once
instead of waiting. Pulls whose time is over are answered a few at a time.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NoReturn, Protocol

import trio

from gateway.connection import Connection

MAX_PARKED = 100_000
MAX_PARKED_OF_CONNECTION = 20_000
MAX_PARKED_OF_QUEUE = 256  # on one connection, where each group has one: a message has all of them answered at once
EXPIRE_STEP = 200
SWEEP_SECONDS = 0.5
MIN_DEADLINES = 1000  # this many deadlines of pulls that were answered long ago do not matter

Queue = tuple[str, int]


class Arrived(Protocol):
    """What is known of a message that consumers can see now."""

    @property
    def topic(self) -> str: ...
    @property
    def queue_id(self) -> int: ...
    @property
    def tags_code(self) -> int: ...


class ParkedPull:
    """One waiting pull; `resume` runs it again and answers."""

    __slots__ = ("connection", "deadline", "matches", "queue", "resume")

    def __init__(
        self,
        connection: Connection,
        queue: Queue,
        matches: Callable[[int], bool] | None,
        deadline: float,
        resume: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.queue = queue
        self.matches = matches
        self.deadline = deadline
        self.resume = resume


class _OfConnection:
    """The parked pulls of one connection, and how many of them wait for each queue."""

    __slots__ = ("by_queue", "pulls")

    def __init__(self) -> None:
        self.pulls: set[ParkedPull] = set()
        self.by_queue: dict[Queue, int] = {}

    def add(self, pull: ParkedPull) -> bool:
        count = self.by_queue.get(pull.queue, 0)
        if count >= MAX_PARKED_OF_QUEUE or len(self.pulls) >= MAX_PARKED_OF_CONNECTION:
            return False
        self.by_queue[pull.queue] = count + 1
        self.pulls.add(pull)
        return True

    def remove(self, pull: ParkedPull) -> None:
        self.pulls.remove(pull)
        count = self.by_queue.pop(pull.queue)
        if count > 1:
            self.by_queue[pull.queue] = count - 1


class ParkedPulls:
    """All parked pulls of a broker."""

    def __init__(self) -> None:
        self._by_queue: dict[Queue, dict[ParkedPull, None]] = {}
        self._by_connection: dict[Connection, _OfConnection] = {}
        self._deadlines: list[tuple[float, int, ParkedPull]] = []
        self._order = count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def park(self, pull: ParkedPull) -> bool:
        """Keeps the pull until a message arrives or its deadline passes; False if there is no room."""
        connection = pull.connection
        if self._size >= MAX_PARKED or connection.closed:
            return False
        mine = self._by_connection.get(connection)
        if mine is None:
            mine = self._by_connection[connection] = _OfConnection()
            connection.on_close(self._drop_connection)
        if not mine.add(pull):
            return False
        self._by_queue.setdefault(pull.queue, {})[pull] = None
        self._size += 1
        heappush(self._deadlines, (pull.deadline, next(self._order), pull))
        if len(self._deadlines) > 2 * self._size + MIN_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if self._is_parked(entry[2])]
            heapify(self._deadlines)
        return True

    def arrived(self, messages: Iterable[Arrived]) -> None:
        """Answers the pulls that wait for one of these messages."""
        if not self._by_queue:
            return
        by_queue = self._by_queue
        for message in messages:
            waiting = by_queue.get((message.topic, message.queue_id))
            if waiting:
                tags_code = message.tags_code
                for pull in [p for p in waiting if p.matches is None or p.matches(tags_code)]:
                    self._resume(pull)

    def expire(self, now: float) -> bool:
        """Answers pulls whose time is over; returns whether there may be more of them."""
        deadlines = self._deadlines
        for _ in range(EXPIRE_STEP):
            if not deadlines or deadlines[0][0] > now:
                return False
            pull = heappop(deadlines)[2]
            if self._is_parked(pull):
                self._resume(pull)
        return True

    async def expire_forever(self) -> NoReturn:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            while self.expire(trio.current_time()):
                await trio.lowlevel.checkpoint()

    def _is_parked(self, pull: ParkedPull) -> bool:
        return pull in self._by_queue.get(pull.queue, ())

    def _resume(self, pull: ParkedPull) -> None:
        self._forget(pull)
        mine = self._by_connection.get(pull.connection)
        if mine is not None:
            mine.remove(pull)
        if not pull.connection.closed:
            pull.resume()

    def _forget(self, pull: ParkedPull) -> None:
        waiting = self._by_queue.get(pull.queue)
        if waiting is not None and waiting.pop(pull, pull) is None:
            self._size -= 1
            if not waiting:
                del self._by_queue[pull.queue]

    def _drop_connection(self, connection: Connection) -> None:
        for pull in self._by_connection.pop(connection).pulls:
            self._forget(pull)
