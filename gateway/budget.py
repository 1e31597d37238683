"""Budget: bytes that all connections of a server together may hold, and who has to go when it is too much.

Each connection alone is bounded, but thousands of them may each hold what one may. Then those go that have held theirs
the longest: a peer in good health completes its frame, or takes its answer, within moments.
"""

from typing import Generic, TypeVar

COUNTED_BYTES = 64 * 1024
"""Less is not counted, so that the many who never hold much cost nothing."""


Holder = TypeVar("Holder")


class Budget(Generic[Holder]):
    """What each holder holds, the longest first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[Holder, int] = {}
        self.held_bytes = 0

    def hold(self, holder: Holder, size: int, *, renewed: bool = False) -> list[Holder]:
        """Notes that the holder now holds `size` bytes; returns whom to close, whose bytes no longer count.

        `renewed`: what it held before has gone on, so that it has held these since now.
        """
        size = size if size > COUNTED_BYTES else 0
        before = self._held.get(holder, 0)
        if before and (renewed or not size):
            del self._held[holder]
        if size:
            self._held[holder] = size
        self.held_bytes += size - before
        gone: list[Holder] = []
        while self.held_bytes > self._limit_bytes:
            longest = next(iter(self._held))
            self.held_bytes -= self._held.pop(longest)
            gone.append(longest)
        return gone
